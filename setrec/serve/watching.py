"""A checkpoint's file, looked at now and then: when it has changed and come to rest, it is taken over."""

import asyncio
import logging
from pathlib import Path
from typing import NamedTuple

from setrec.serve.measures import Measures
from setrec.serve.models import Models, TakeoverRunningError

log = logging.getLogger("uvicorn.error")


class Stamp(NamedTuple):
    """What tells one version of a file from another."""

    inode: int
    size: int
    changed: int  # nanoseconds


def stamp(path: Path) -> Stamp | None:
    """The version of a file, or of the newest file in a folder; None where nothing is."""
    try:
        files = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
        newest = max((file.stat() for file in files), key=lambda state: state.st_mtime_ns)
    except OSError:
        return None
    return Stamp(newest.st_ino, newest.st_size, newest.st_mtime_ns)


async def watch(models: Models, every: float, measures: Measures) -> None:
    """Take over the served path whenever another version of it lies there; runs until cancelled.

    A version must look the same twice before it is loaded, so that one being written is left alone. A broken one is logged
    and counted once, and the old one goes on serving.

    Args:
        models: what is being served.
        every: seconds between two looks.
        measures: where takeovers are counted.
    """
    path = models.served.path
    tried = before = stamp(path)
    while True:
        await asyncio.sleep(every)
        if models.served.path != path:  # a request named another one
            path = models.served.path
            tried = before = stamp(path)
        now = stamp(path)
        if now is not None and now == before != tried:
            tried = now
            try:
                served = await asyncio.to_thread(models.take_over, path)
                measures.takeovers.labels("done").inc()
                log.info("took over %s, generation %d", path, served.generation)
            except TakeoverRunningError:
                tried = None  # look again
            except Exception as error:
                measures.takeovers.labels("refused").inc()
                log.error("refused %s: %s", path, error)
        before = now
