"""The journal: items added to and removed from a served catalogue, kept on disk for the next start or the next checkpoint.

A file of JSON lines, one for each change, written and synced before the request is answered:

    {"add": [{"id": "B1", "title": "...", "text": "..."}]}
    {"remove": ["B2"]}

If a crash leaves half a line, its request was never answered, and the line is dropped. The file holds the items as they were
given, mostly as texts, so that the next checkpoint can encode them in its own way.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from setrec.errors import ConfigError, DataError


class JournalWriteError(Exception):
    """A change could not be written to the disk, so it was not made."""


class Journal:
    """The changes made to a catalogue since its training.

    Attributes:
        added: the added items, in order: id -> the item as it was given.
        removed: ids of removed items of the training.

    Args:
        path: the file; the first change makes it.
        writable: changes can be added; false: read only, which several processes may do at the same time.

    Raises:
        ConfigError: another process uses this file, or it cannot be written.
        DataError: a line is not a change; the message gives its number.
    """

    def __init__(self, path: Path, writable: bool = True) -> None:
        self.path = path
        self.added: dict[str, dict[str, Any]] = {}
        self.removed: set[str] = set()
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

    def close(self) -> None:
        """Release the file for other processes."""
        self._lock.release()

    def _append(self, change: dict[str, Any]) -> None:
        line = json.dumps(change) + "\n"  # ASCII: no character can break a line
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):  # or half a line would stand before the next change
                os.truncate(self.path, size)
            raise JournalWriteError(f"{self.path}: {error.strerror}") from error
        self._apply(change)

    def _apply(self, change: dict[str, Any]) -> None:
        for item in change.get("add", []):
            self.added[item["id"]] = dict(item)
        for name in change.get("remove", []):
            if self.added.pop(name, None) is None:
                self.removed.add(name)

    def _read(self) -> None:
        if not self.path.exists():
            return
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read ({error.strerror}); name another file with --items."
            ) from None
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content) and self._writable:
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._apply(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise DataError(
                    f"{self.path}, line {number}: {line[:60]!r} is not a change of a catalogue; correct or delete the line."
                ) from None
