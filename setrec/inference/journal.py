"""The journal of a catalogue: every item added, changed and removed since training, one line a change, in order.

    CKPT.items.jsonl, beside the checkpoint or the published folder:
    {"add": [{"id": "B1", "title": "...", "text": "..."}], "encoder": {...}, "time": "...", "sha256": "..."}
    {"remove": ["B2"], "time": "...", "sha256": "..."}
    {"patch": [{"id": "B3", "fields": {"price": 9.5}}], "time": "...", "sha256": "..."}

`add-items`, `Recommender.save` and every worker of every server append to it, each under a lock that is held while it writes only.
All read on from where they are when the file has grown. A version folder is a snapshot of it, see versions.py.

A line is written and synced before its change is confirmed. `time` is ISO 8601, UTC. The hash is that of the line without it.
Version 0.2.0 wrote no time, earlier ones no hash, and a line that a person writes needs neither. If a crash leaves half a line, its
change was never confirmed: the line is dropped, and the log says so. The file holds the items as they were given, mostly as texts,
so that the next checkpoint can encode them in its own way. `encoder` is there if a text encoder other than that of the training
was named.

A second file beside it, X.jsonl.head, holds the number of lines and the hash of all of them, so that lost or exchanged lines are
seen. It is written after the line is on the disk and before the change is confirmed. After a crash between the two it lags behind
the lines, which is sound: what it counts must be there, and what follows is checked by the hashes of the lines alone.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from filelock import FileLock, Timeout

from setrec.class_names import current_names
from setrec.errors import ConfigError, DataError, SETRecError
from setrec.files.whole import sync_folder, whole_file
from setrec.hparams import instantiate
from setrec.text import TextVectors

log = logging.getLogger("uvicorn.error")
_HASHED = re.compile(rb'(\{.*), "sha256": "([0-9a-f]{64})"\}')
_LOCK_WAIT = 60.0  # seconds that a change waits for another one to be written

Change = dict[
    str, Any
]  # {"add": [items]}, with "encoder" or without; {"remove": [ids]}; or {"patch": [{"id", "fields"}]}; and "time"
RECENT = 10_000  # changes that `Journal.recent` lists


class JournalWriteError(Exception):
    """A change could not be written to the disk, so it was not made."""


class Mark(NamedTuple):
    """A place in a journal: its first lines, and the hash of all of them."""

    lines: int
    sha256: str


class Sum(NamedTuple):
    """What several changes come to: first take out `removed`, as far as it is there, then add of `added` what is not there."""

    removed: set[str]
    added: dict[str, dict[str, Any]]  # id -> the item as it was given, in order
    encoder: dict[str, Any] | None  # the last one named
    patched: dict[str, dict[str, Any]]  # id -> attributes changed since


class RecentChange(NamedTuple):
    """One line of a journal, to be shown."""

    time: datetime | None  # version 0.2.0 wrote none
    kind: Literal["added", "removed", "patched"]
    ids: list[str]
    fields: list[str]  # attributes that were changed


def sum_of(changes: Sequence[Change]) -> Sum:
    """Add changes up. An item that was removed and then added again is both removed and added."""
    total = Sum(set(), {}, None, {})
    for change in changes:
        total = _plus(total, change)
    return total


def _plus(total: Sum, change: Change) -> Sum:
    for item in change.get("add", []):
        total.added[item["id"]] = dict(item)
    for name in change.get("remove", []):
        total.added.pop(name, None)
        total.patched.pop(name, None)
        total.removed.add(name)
    for patch in change.get("patch", []):
        total.patched[patch["id"]] = total.patched.get(patch["id"], {}) | dict(patch["fields"])
    return total._replace(encoder=change["encoder"]) if change.get("encoder") is not None else total


def journal_path(model: Path) -> Path:
    """The journal of a checkpoint or a published folder: a file beside it; that of a link beside the link.

    So the changes stay when the link that `update` keeps leads to another checkpoint.
    """
    path = Path(os.path.abspath(model))
    return path.with_name(path.name + ".items.jsonl")


class Journal:
    """The changes made to a catalogue since its training.

    Attributes:
        changes: all that was read or written, one for each line.

    Args:
        path: the file; the first change makes it.
        writable: changes can be added; false: read only.

    Raises:
        ConfigError: it cannot be read or written.
        DataError: a line is not a change, the message gives its number; or lines are lost.
    """

    def __init__(self, path: Path, writable: bool = True) -> None:
        self.path = path
        self.changes: list[Change] = []
        self._head = path.with_name(f"{path.name}.head")
        self._size, self._hash = 0, hashlib.sha256()  # bytes, and the hash, of the lines so far
        self._hashes = [self._hash.hexdigest()]  # of the first 0, 1, ... lines
        self._unended = -1  # size of a file whose last line, whole, had no line break yet
        if writable:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with self._lock():
                    self._read(repair=True)
            except (JournalWriteError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise ConfigError(f"{path} cannot be written ({reason}); name another file with --items.") from None
        else:
            self._read(repair=False)

    @property
    def added(self) -> dict[str, dict[str, Any]]:
        """The added items, in order: id -> the item as it was given."""
        return sum_of(self.changes).added

    @property
    def removed(self) -> set[str]:
        """Every id that was ever removed."""
        return sum_of(self.changes).removed

    @property
    def recent(self) -> list[RecentChange]:
        """The last changes, oldest first, at most RECENT."""
        return [_recent(change) for change in self.changes[-RECENT:]]

    @property
    def mark(self) -> Mark:
        """The place up to which it was read."""
        return Mark(len(self.changes), self._hashes[-1])

    def has(self, mark: Mark | None) -> bool:
        """Whether a place is one of this journal."""
        return mark is not None and 0 <= mark.lines < len(self._hashes) and self._hashes[mark.lines] == mark.sha256

    def size_now(self) -> int:
        """The size of the file in bytes, 0 without one."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def grown(self) -> bool:
        """Whether the file holds more, or less, than was read; this costs a look at its size."""
        size = self.size_now()
        return size not in (self._size, self._unended)

    def read_on(self) -> None:
        """Read what others have written.

        Raises:
            ConfigError, DataError: see the class.
        """
        if self.grown():
            self._read(repair=False, quiet=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, having read what others have written: only in this block can changes be added.

        Raises:
            JournalWriteError: the file cannot be locked or read, or others hold it for a minute.
        """
        with self._lock():
            try:
                self._read(repair=True)
            except (SETRecError, OSError) as error:
                raise JournalWriteError(str(error)) from error
            yield

    @contextmanager
    def _lock(self) -> Iterator[None]:
        lock = FileLock(f"{self.path}.lock")
        try:
            lock.acquire(timeout=_LOCK_WAIT)
        except Timeout:
            raise JournalWriteError(
                f"{self.path} is locked by another process for more than {_LOCK_WAIT:g} s"
            ) from None
        except OSError as error:
            raise JournalWriteError(f"{self.path}: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def add(self, items: Sequence[dict[str, Any]], encoder: dict[str, Any] | None = None) -> None:
        """Write down added items.

        Raises:
            JournalWriteError: the file cannot be written.
        """
        with self.locked():
            self.append([{"add": list(items)} | ({"encoder": encoder} if encoder is not None else {})])

    def remove(self, ids: Sequence[str]) -> None:
        """Write down removed items.

        Raises:
            JournalWriteError: the file cannot be written.
        """
        with self.locked():
            self.append([{"remove": list(ids)}])

    def append(self, changes: Sequence[Change]) -> None:
        """Write down changes, all or none of them. Only in a block of `locked`.

        Raises:
            JournalWriteError: the file cannot be written.
        """
        lines = []
        now = datetime.now(UTC).isoformat(timespec="seconds")
        changes = [change | {"time": now} for change in changes]
        for change in changes:
            text = json.dumps(change)  # ASCII: no character can break a line
            lines.append(f'{text[:-1]}, "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"}}'.encode())
        new = not self.path.exists()
        try:
            with self.path.open("ab") as file:
                file.write(b"".join(line + b"\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):  # or half a line would stand before the next change
                os.truncate(self.path, self._size)
            raise JournalWriteError(f"{self.path}: {error.strerror}") from error
        if new:
            sync_folder(self.path.parent)
        for line, change in zip(lines, changes, strict=True):
            self._count(line, change, len(line) + 1)
        self._write_head()

    def _count(self, line: bytes, change: Change, size: int) -> None:
        self.changes.append(change)
        self._size += size
        self._hash.update(line + b"\n")
        self._hashes.append(self._hash.hexdigest())

    def _write_head(self) -> None:
        try:
            with whole_file(self._head) as hidden:
                hidden.write_text(json.dumps(self.mark._asdict()) + "\n")
        except OSError as error:  # the change itself is on the disk
            log.warning("%s cannot be written (%s): it counts fewer lines than there are.", self._head, error.strerror)

    def _read(self, repair: bool, quiet: bool = False) -> None:
        """Read on from the lines so far.

        Args:
            repair: take away half a line at the end; only under the lock.
            quiet: half a line is no news: it is being written.
        """
        counted, expected = self._read_head()  # before the lines, which another process may write meanwhile
        try:
            with self.path.open("rb") as file:
                whole = file.seek(0, os.SEEK_END)
                file.seek(self._size)
                content = file.read()
        except FileNotFoundError:
            if counted or self.changes:
                raise self._lost(max(counted, len(self.changes)), 0) from None
            return
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read ({error.strerror}); name another file with --items."
            ) from None
        if whole == self._unended == self._size - 1:  # nothing new
            if repair:
                with self.path.open("ab") as file:
                    file.write(b"\n")
            return
        if whole < self._size:
            raise self._lost(max(counted, len(self.changes)), content.count(b"\n"))
        if not content and not self.changes:
            log.warning("%s is empty: it holds no change.", self.path)
        *lines, last = content.split(b"\n")  # `last`: what follows the last line break, mostly nothing
        torn = bool(last) and _is_torn(last)
        if torn and not quiet:
            log.warning("%s: its last line is half a change, which was never confirmed; it is dropped.", self.path)
        for line in lines if torn or not last else [*lines, last]:
            size = len(line) + 1
            line = line.removesuffix(b"\r")
            change = _change_of(line)
            if change is None:
                raise DataError(
                    f"{self.path}, line {len(self.changes) + 1}: {line[:60]!r} is not a change of a catalogue, or was changed "
                    "after it was written; correct it and leave out its sha256, or delete the line; delete "
                    f"{self._head.name} too."
                )
            self._count(line, change, size)
            if len(self.changes) == counted and self._hashes[-1] != expected:
                raise DataError(
                    f"{self.path}: its first {counted} lines are not those that were confirmed (a line is lost, exchanged or "
                    f"corrected); take another copy of it, or delete {self._head.name} to accept it as it is."
                )
        if len(self.changes) < counted:
            raise self._lost(counted, len(self.changes))
        if last and not torn and not repair:
            self._unended = whole  # the file has one byte less than was counted
        if last and repair:
            with self.path.open("r+b") as file:
                file.seek(whole - len(last) if torn else whole)
                file.write(b"" if torn else b"\n")
                file.truncate()
        if (
            repair and len(self.changes) != counted
        ):  # a crash came before it was written, or an earlier version wrote none
            self._write_head()

    def _read_head(self) -> tuple[int, str]:
        """The number and the hash of the lines that were confirmed; 0 and "" where no head was written.

        Raises:
            DataError: it is damaged.
        """
        try:
            head = json.loads(self._head.read_bytes())
            if head.keys() == {"lines", "sha256"} and type(head["lines"]) is int and head["lines"] > 0:
                return head["lines"], head["sha256"]
        except FileNotFoundError:
            return 0, ""
        except (OSError, ValueError, AttributeError, RecursionError):
            pass  # as below
        raise DataError(
            f"{self._head} is damaged, so it is not known whether {self.path.name} is whole; delete {self._head.name} to accept "
            "the lines that are there."
        )

    def _lost(self, counted: int, found: int) -> DataError:
        return DataError(
            f"{self.path} has {found} of the {counted} lines that were confirmed; take another copy of it, or delete "
            f"{self._head.name} to accept that the others are lost."
        )


def _change_of(line: bytes) -> Change | None:
    """The change in a line; None: it holds none."""
    hashed = _HASHED.fullmatch(line)
    try:
        text = line if hashed is None else hashed[1] + b"}"
        change = json.loads(text)
        if hashed is not None and hashlib.sha256(text).hexdigest() != hashed[2].decode():
            return None
        if change.keys() - {"time"} not in (
            {"add"},
            {"add", "encoder"},
            {"remove"},
            {"patch"},
        ):  # a damaged name is not nothing
            return None
        sum_of([change])
        _recent(change)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return dict(change)


def _recent(change: Change) -> RecentChange:
    time = datetime.fromisoformat(change["time"]) if "time" in change else None
    if time is not None and time.tzinfo is None:  # a person wrote it
        time = time.replace(tzinfo=UTC)
    if "patch" in change:
        names = sorted({name for patch in change["patch"] for name in patch["fields"]})
        return RecentChange(time, "patched", [patch["id"] for patch in change["patch"]], names)
    if "add" in change:
        return RecentChange(time, "added", [item["id"] for item in change["add"]], [])
    return RecentChange(time, "removed", list(change["remove"]), [])


def _is_torn(line: bytes) -> bool:
    """Whether a line ends within its object, as a crash leaves it."""
    try:
        json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return True
    return False


# ------------------------------------------------------------------------------------------------------------- applying it
class Changeable(Protocol):
    """What a journal is applied to: a `Recommender`."""

    def add_items(self, items: Any, encoder: TextVectors | None = None, keep: Any = None) -> list[str]:
        """Add items."""

    def remove_items(self, ids: Any, keep: Any = None) -> None:
        """Remove items."""

    def patch_items(self, patches: Any, keep: Any = None) -> None:
        """Change attributes."""

    def __contains__(self, own: object) -> bool:
        """Say whether an item is there."""


def rows_of(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items in the form of a journal, or of a request, as rows of a table: their fields become columns."""
    return [
        {name: item[name] for name in ("id", "title", "text", "vector") if item.get(name) is not None}
        | {f"vector_{name}": vector for name, vector in (item.get("vectors") or {}).items()}
        | {name: value for name, value in (item.get("fields") or {}).items() if name not in item}
        for item in items
    ]


def items_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table in the form of a journal: further columns become fields, what JSON does not know becomes text."""
    items = []
    for row in json.loads(json.dumps(rows, default=str)):
        own = {name: row.pop(name) for name in ("id", "title", "text", "vector") if name in row}
        more = [name for name, value in row.items() if name.startswith("vector_") and isinstance(value, list)]
        if more:
            own["vectors"] = {name.removeprefix("vector_"): row.pop(name) for name in more}
        fields = {name: value for name, value in row.items() if value is not None}
        items.append(own | ({"fields": fields} if fields else {}))
    return items


def apply_journal(to: Changeable, path: Path, changes: Sequence[Change], encoder: TextVectors | None = None) -> None:
    """Apply changes to a catalogue that may have some of them already, such as items that the training has seen meanwhile.

    Args:
        to: the recommender.
        path: the journal, for error messages.
        changes: some of its changes, in order.
        encoder: the text encoder for new items; None: the one that the journal names, or that of the training.

    Raises:
        DataError: an item of the journal does not fit the model.
    """
    total = sum_of(changes)
    gone = [own for own in total.removed if own in to]
    try:
        if gone:
            to.remove_items(gone)
        if encoder is None and total.encoder is not None:
            encoder = instantiate(current_names(total.encoder), TextVectors)
        new = [item for own, item in total.added.items() if own not in to]
        for with_vector in (False, True):
            some = [item for item in new if (item.get("vector") is not None) == with_vector]
            if some:
                to.add_items(rows_of(some), encoder=encoder)
        patches = {own: fields for own, fields in total.patched.items() if own in to}
        if patches:
            to.patch_items(patches)
    except (SETRecError, TypeError) as error:
        raise DataError(
            f"the items in {path} cannot be added to this model ({error}); correct that file, or name another with --items, or the "
            "encoder of the training with --encoder."
        ) from error
