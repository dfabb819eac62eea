"""Watching the served checkpoint: when its file has changed and is no longer being written, it is taken over."""

import asyncio
import logging
from pathlib import Path
from typing import NamedTuple

from setrec.serve.model_holder import ModelHolder, TakeoverRunningError
from setrec.serve.prometheus import ServerMetrics

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


async def watch(holder: ModelHolder, every: float, metrics: ServerMetrics) -> None:
    """Take over the served path again whenever its file changes; runs until cancelled.

    A changed file must look the same twice before it is loaded, because it may still be being written. A broken one is
    logged and counted once, and the old model stays in service.

    Args:
        holder: the model in service.
        every: seconds between two looks.
        metrics: counts the takeovers.
    """
    path = holder.current.path
    tried = before = file_state(path)
    while True:
        await asyncio.sleep(every)
        if holder.current.path != path:  # a request has named another path
            path = holder.current.path
            tried = before = file_state(path)
        now = file_state(path)
        if now is not None and now == before != tried:
            tried = now
            try:
                served = await asyncio.to_thread(holder.take_over, path)
                metrics.takeovers.labels("done").inc()
                log.info("took over %s, generation %d", path, served.generation)
            except TakeoverRunningError:
                tried = None  # look again
            except Exception as error:
                metrics.takeovers.labels("refused").inc()
                log.error("refused %s: %s", path, error)
        before = now
