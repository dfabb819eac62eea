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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from setrec.errors import ConfigError, DataError, SETRecError
from setrec.files.whole import sync_folder, whole_file
from setrec.inference.journal_lines import Change, RecentChange, change_of, is_torn, recent_of, sum_of

log = logging.getLogger("uvicorn.error")
_LOCK_WAIT = 60.0  # seconds that a change waits for another one to be written

RECENT = 10_000  # changes that `Journal.recent` lists


class JournalWriteError(Exception):
    """A change could not be written to the disk, so it was not made."""


class Mark(NamedTuple):
    """A place in a journal: its first lines, and the hash of all of them."""

    lines: int
    sha256: str


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
    def _file(self) -> Path:
        """The file itself: `path` becomes a link when journals are joined, maybe while this server runs."""
        return Path(os.path.realpath(self.path))

    @property
    def _head(self) -> Path:
        return self._file.with_name(f"{self._file.name}.head")

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
        return [recent_of(change) for change in self.changes[-RECENT:]]

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
        lock = FileLock(f"{self._file}.lock")
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
        changes = [change if "time" in change else change | {"time": now} for change in changes]
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
        torn = bool(last) and is_torn(last)
        if torn and not quiet:
            log.warning("%s: its last line is half a change, which was never confirmed; it is dropped.", self.path)
        for line in lines if torn or not last else [*lines, last]:
            size = len(line) + 1
            line = line.removesuffix(b"\r")
            change = change_of(line)
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
