"""Items added to and removed from a served catalogue, kept on disk, so that they outlive the process and the checkpoint.

A file of JSON lines, one for each accepted change, written and synced before the change is answered:

    {"add": [{"id": "B1", "title": "...", "text": "..."}]}
    {"remove": ["B2"]}

A line that a crash left half-written was never answered and is dropped. The file holds the items as they were given, texts
mostly: whichever checkpoint comes next encodes them its own way.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from setrec.errors import ConfigError, DataError


class NotKeptError(Exception):
    """A change could not be written to the disk; it was not made."""


class Journal:
    """The changes made to a catalogue since its training.

    Attributes:
        added: the items that are there beyond the trained ones: id -> as it was given, in order.
        removed: ids of trained items that were taken out.

    Args:
        path: the file; made at the first change.
        writable: changes may come; false: only read, as several processes may.

    Raises:
        ConfigError: another process writes this file, or nothing can be written there.
        DataError: a line that is no change, with its number.
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
                raise ConfigError(f"{path} is kept by another server; give this one a file by --items.") from None
            except OSError as error:
                raise ConfigError(
                    f"{path} can't be written ({error.strerror}); give another file by --items."
                ) from None
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def add(self, items: Sequence[dict[str, Any]]) -> None:
        """Keep new items.

        Raises:
            NotKeptError: the disk is full or gone.
        """
        self._append({"add": list(items)})

    def remove(self, ids: Sequence[str]) -> None:
        """Keep a removal.

        Raises:
            NotKeptError: see `add`.
        """
        self._append({"remove": list(ids)})

    def close(self) -> None:
        """Let another process have the file."""
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
            with suppress(OSError):  # no half of a line before the next change
                os.truncate(self.path, size)
            raise NotKeptError(f"{self.path}: {error.strerror}") from error
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
            raise ConfigError(f"{self.path} can't be read ({error.strerror}); give another file by --items.") from None
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content) and self._writable:
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._apply(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise DataError(
                    f"{self.path}, line {number}: {line[:60]!r} is no change of a catalogue; mend or delete the line."
                ) from None
