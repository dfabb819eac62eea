"""The journal: items added to, changed in and removed from a served catalogue, kept for the next start or checkpoint.

A file of JSON lines, one for each change, written and synced before the request is answered:

    {"add": [{"id": "B1", "title": "...", "text": "..."}], "sha256": "..."}
    {"remove": ["B2"], "sha256": "..."}
    {"patch": [{"id": "B3", "fields": {"price": 9.5}}], "sha256": "..."}

A line also holds its "time" (ISO 8601, UTC), which earlier versions did not write. The hash is that of the line without the
hash. Earlier versions wrote none, and a line that a person writes needs none.

If a crash leaves half a line, its request was never answered: the line is dropped, and the log says so. The file holds the items
as they were given, mostly as texts, so that the next checkpoint can encode them in its own way.

A second file beside it, X.jsonl.head, holds the number of lines and the hash of all of them, so that lost or exchanged lines are
seen. It is written after the line is on the disk and before the request is answered. After a crash between the two it lags behind
the lines, which is sound: what it counts must be there, and what follows is checked by the hashes of the lines alone.
"""

import hashlib
import json
import logging
import os
import re
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import FileLock, Timeout

from setrec.errors import ConfigError, DataError
from setrec.files.whole import sync_folder, whole_file

log = logging.getLogger("uvicorn.error")
RECENT = 10_000  # changes that are remembered one by one
_HASHED = re.compile(rb'(\{.*), "sha256": "([0-9a-f]{64})"\}')


class JournalWriteError(Exception):
    """A change could not be written to the disk, so it was not made."""


class Change(NamedTuple):
    """One line of the journal."""

    time: datetime | None  # earlier versions wrote none
    kind: Literal["added", "removed", "patched"]
    ids: list[str]
    fields: list[str]  # attributes that were changed


class Journal:
    """The changes made to a catalogue since its training.

    Attributes:
        added: the added items, in order: id -> the item as it was given.
        removed: ids of removed items of the training.
        patched: attributes that were changed: id -> name -> value.
        recent: the last changes, oldest first.

    Args:
        path: the file; the first change makes it.
        writable: changes can be added; false: read only, which several processes may do at the same time.

    Raises:
        ConfigError: another process uses this file, or it cannot be written.
        DataError: a line is not a change, the message gives its number; or lines are lost.
    """

    def __init__(self, path: Path, writable: bool = True) -> None:
        self.path = path
        self.added: dict[str, dict[str, Any]] = {}
        self.removed: set[str] = set()
        self.patched: dict[str, dict[str, Any]] = {}
        self.recent: deque[Change] = deque(maxlen=RECENT)
        self._head = path.with_name(f"{path.name}.head")
        self._lines, self._hash = 0, hashlib.sha256()  # of the file so far
        self._lock = FileLock(f"{path}.lock")
        self._writable = writable
        if writable:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=0)
            except Timeout:
                raise ConfigError(f"{path} is used by another server; name another file with --items.") from None
            except OSError as error:
                raise ConfigError(
                    f"{path} cannot be written ({error.strerror}); name another file with --items."
                ) from None
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def add(self, items: Sequence[dict[str, Any]]) -> None:
        """Write down added items.

        Raises:
            JournalWriteError: the file cannot be written.
        """
        self._append({"add": list(items)})

    def remove(self, ids: Sequence[str]) -> None:
        """Write down removed items.

        Raises:
            JournalWriteError: the file cannot be written.
        """
        self._append({"remove": list(ids)})

    def patch(self, patches: Mapping[str, Mapping[str, Any]]) -> None:
        """Write down changed attributes: id -> name -> value.

        Raises:
            JournalWriteError: the file cannot be written.
        """
        self._append({"patch": [{"id": own, "fields": dict(fields)} for own, fields in patches.items()]})

    def close(self) -> None:
        """Release the file for other processes."""
        self._lock.release()

    def _append(self, change: dict[str, Any]) -> None:
        change["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps(change)  # ASCII: no character can break a line
        line = f'{text[:-1]}, "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"}}\n'
        new = not self.path.exists()
        size = 0 if new else self.path.stat().st_size
        try:
            with self.path.open("a") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):  # or half a line would stand before the next change
                os.truncate(self.path, size)
            raise JournalWriteError(f"{self.path}: {error.strerror}") from error
        if new:
            sync_folder(self.path.parent)
        self._count(line[:-1].encode())
        self._write_head()
        self._apply(change)

    def _apply(self, change: dict[str, Any]) -> None:
        time = datetime.fromisoformat(change["time"]) if "time" in change else None
        if time is not None and time.tzinfo is None:  # a person wrote it
            time = time.replace(tzinfo=UTC)
        if "add" in change:
            for item in change["add"]:
                self.added[item["id"]] = dict(item)
            self.recent.append(Change(time, "added", [item["id"] for item in change["add"]], []))
        if "remove" in change:
            for name in change["remove"]:
                self.patched.pop(name, None)
                if self.added.pop(name, None) is None:
                    self.removed.add(name)
            self.recent.append(Change(time, "removed", list(change["remove"]), []))
        if "patch" in change:
            for patch in change["patch"]:
                self.patched[patch["id"]] = {**self.patched.get(patch["id"], {}), **patch["fields"]}
            names = sorted({name for patch in change["patch"] for name in patch["fields"]})
            self.recent.append(Change(time, "patched", [patch["id"] for patch in change["patch"]], names))

    def _count(self, line: bytes) -> None:
        self._lines += 1
        self._hash.update(line + b"\n")

    def _write_head(self) -> None:
        try:
            with whole_file(self._head) as hidden:
                hidden.write_text(json.dumps({"lines": self._lines, "sha256": self._hash.hexdigest()}) + "\n")
        except OSError as error:  # the change itself is on the disk
            log.warning("%s cannot be written (%s): it counts fewer lines than there are.", self._head, error.strerror)

    def _read(self) -> None:
        counted, expected = self._read_head()  # before the lines, which another process may write meanwhile
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            if counted:
                raise self._lost(counted, 0) from None
            return
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read ({error.strerror}); name another file with --items."
            ) from None
        if not content:
            log.warning("%s is empty: it holds no change.", self.path)
        *lines, last = content.split(b"\n")  # `last`: what follows the last line break, mostly nothing
        torn = bool(last) and _is_torn(last)
        if torn:
            log.warning("%s: its last line is half a change, which was never confirmed; it is dropped.", self.path)
        for number, line in enumerate(lines if torn or not last else [*lines, last], 1):
            line = line.removesuffix(b"\r")
            if not self._read_line(line):
                raise DataError(
                    f"{self.path}, line {number}: {line[:60]!r} is not a change of a catalogue, or was changed after it was "
                    f"written; correct it and leave out its sha256, or delete the line; delete {self._head.name} too."
                )
            self._count(line)
            if number == counted and self._hash.hexdigest() != expected:
                raise DataError(
                    f"{self.path}: its first {counted} lines are not those that were confirmed (a line is lost, exchanged or "
                    f"corrected); take another copy of it, or delete {self._head.name} to accept it as it is."
                )
        if self._lines < counted:
            raise self._lost(counted, self._lines)
        if last and self._writable:
            with self.path.open("r+b") as file:
                file.seek(len(content) - len(last) if torn else len(content))
                file.write(b"" if torn else b"\n")
                file.truncate()
        if (
            self._writable and self._lines != counted
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

    def _read_line(self, line: bytes) -> bool:
        """Apply the change in a line; false: it holds none."""
        hashed = _HASHED.fullmatch(line)
        try:
            text = line if hashed is None else hashed[1] + b"}"
            change = json.loads(text)
            if hashed is not None and hashlib.sha256(text).hexdigest() != hashed[2].decode():
                return False
            kinds = change.keys() - {"time"}
            if len(kinds) != 1 or not kinds <= {"add", "remove", "patch"}:  # or a damaged name would be read as nothing
                return False
            self._apply(change)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False
        return True


def _is_torn(line: bytes) -> bool:
    """Whether a line ends within its object, as a crash leaves it."""
    try:
        json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return True
    return False
