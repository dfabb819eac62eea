"""Writing a file or a folder whole or not at all: to a hidden path beside its place, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a hidden path to write to, and move it to `path` at the end of the block.

    If the block or the move fails, nothing is left behind and an older file stays as it was.

    Args:
        path: the file; its folder is made where needed.

    Yields:
        The hidden path, in the same folder. The block must have closed the file when it ends.

    Raises:
        OSError: the disk is full or refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = _hidden(path, os.getpid())
    try:
        yield hidden
        move_into_place(hidden, path)
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Give a hidden folder to fill, and move it to `path` at the end of the block.

    If the block or the move fails, nothing is left behind and an older folder stays as it was.

    Args:
        path: the folder; those above it are made where needed.
        replace: the new folder takes the place of an older one. Only under a lock, and after `clear_leftovers`: all processes
            use the same hidden names.

    Yields:
        The hidden folder, empty.

    Raises:
        FileExistsError: `path` exists, and `replace` is off.
        OSError: the disk is full or refuses.
    """
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists already")
    new, old = _hidden(path, "new" if replace else os.getpid()), _hidden(path, "old")
    shutil.rmtree(new, ignore_errors=True)  # of a killed process that had the same number
    try:
        new.mkdir(parents=True)
        yield new
        for inside in new.rglob("*"):
            if inside.is_file():
                _sync(inside)
        if replace and path.exists():
            os.replace(path, old)
        os.replace(new, path)  # refuses a folder that another process has filled meanwhile
        sync_folder(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if replace:
            clear_leftovers(path)


def clear_leftovers(path: Path) -> None:
    """Clear what a killed process left of `whole_folder(path, replace=True)`. Only under the lock of `path`."""
    new, old = _hidden(path, "new"), _hidden(path, "old")
    if old.exists() and not path.exists():  # killed between the two renames
        os.replace(old, path)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def move_into_place(hidden: Path, path: Path) -> None:
    """Rename a file once its content is on the disk, so that a power cut leaves the old file or the new one.

    Raises:
        OSError: the disk is full or refuses.
    """
    _sync(hidden)
    os.replace(hidden, path)
    sync_folder(path.parent)


def _hidden(path: Path, ending: object) -> Path:
    return path.with_name(f".{path.name}.{ending}")


def _sync(file: Path) -> None:
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a power cut loses no new or renamed file."""
    with suppress(OSError):  # the rename is done; Windows and some network disks cannot do this
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
