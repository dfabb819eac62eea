"""Watching the served checkpoint: when its file has changed and is no longer being written, it is taken over."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from setrec.serve.model_holder import ModelHolder, ServedModel, TakeoverRunningError

log = logging.getLogger("uvicorn.error")


class FileState(NamedTuple):
    """Differs when the content of a file differs."""

    inode: int
    size: int
    changed: int  # nanoseconds


def file_state(path: Path) -> FileState | None:
    """The state of a file, or of the newest file in a folder; None if there is none."""
    try:
        files = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
        newest = max((file.stat() for file in files), key=lambda stat: stat.st_mtime_ns)
    except OSError:
        return None
    return FileState(newest.st_ino, newest.st_size, newest.st_mtime_ns)


class FileWatch:
    """Tells when a file has changed: it must look the same twice, because it may still be being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tried = self._before = file_state(path)

    def changed(self, path: Path) -> bool:
        """Whether the file has changed since the last change that was told. path: another file begins anew."""
        if path != self.path:
            self.__init__(path)  # type: ignore[misc]
        now, before = file_state(path), self._before
        self._before = now
        if now is None or now != before or now == self._tried:
            return False
        self._tried = now
        return True

    def look_again(self) -> None:
        """Tell the last change once more."""
        self._tried = None


async def watch(holder: ModelHolder, every: float, take_over: Callable[[Path], ServedModel]) -> None:
    """Take over the served path again whenever its file changes; runs until cancelled.

    A broken file is logged and counted once, and the old model stays in service.

    Args:
        holder: the model in service.
        every: seconds between two looks.
        take_over: takes over a checkpoint, and counts how that ended.
    """
    file = FileWatch(holder.current.path)
    while True:
        await asyncio.sleep(every)
        if file.changed(holder.current.path):
            try:
                served = await asyncio.to_thread(take_over, file.path)
                log.info("took over %s, generation %d", file.path, served.generation)
            except TakeoverRunningError:
                file.look_again()
            except Exception as error:
                log.error("refused %s: %s", file.path, error)
