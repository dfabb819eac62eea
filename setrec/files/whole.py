"""Writing a file or a folder whole or not at all: to a hidden path beside its place, then renamed.

The hidden path of x.ckpt is .x.ckpt.PID, and its writer holds a lock on it. A killed process leaves it behind without the lock, and
the next process that writes x.ckpt removes it.
"""

import glob
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

try:
    import fcntl
except ImportError:  # Windows: what killed processes left stays there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a hidden path to write to, and move it to `path` at the end of the block.

    If the block or the move fails, nothing is left behind and an older file stays as it was. What killed processes left of the
    same file is removed.

    Args:
        path: the file; its folder is made where needed.

    Yields:
        The hidden path, in the same folder: an empty file. The block must have closed the file when it ends.

    Raises:
        OSError: the disk is full or refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_killed(path.parent, glob.escape(path.name))
    with _own(path, folder=False) as hidden:
        yield hidden
        move_into_place(hidden, path)


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
    if replace:
        with _replaced_folder(path) as hidden:
            yield hidden
        return
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_killed(path.parent, glob.escape(path.name))
    with _own(path, folder=True) as hidden:
        yield hidden
        _sync_all(hidden)
        os.replace(hidden, path)  # refuses a folder that another process has filled meanwhile
        sync_folder(path.parent)


@contextmanager
def _replaced_folder(path: Path) -> Iterator[Path]:
    new, old = _hidden(path, "new"), _hidden(path, "old")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        try:
            yield new
        except Exception as error:
            _raise_os_error(error, path)
            raise
        _sync_all(new)
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        clear_leftovers(path)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give a hidden folder for the parts of `path` while they are made. It is removed at the end of the block.

    What killed processes left of it is removed too.

    Args:
        path: the file that the parts will make; its folder is made where needed.

    Raises:
        OSError: the disk is full or refuses.
    """
    parts = path.with_name(f"{path.name}.parts")
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_killed(path.parent, glob.escape(parts.name))
    with _own(parts, folder=True) as hidden:
        yield hidden


def clear_leftovers(path: Path) -> None:
    """Clear what a killed process left of `whole_folder(path, replace=True)`. Only under the lock of `path`."""
    new, old = _hidden(path, "new"), _hidden(path, "old")
    if old.exists() and not path.exists():  # killed between the two renames
        os.replace(old, path)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)


def clear_killed(folder: Path, names: str) -> None:
    """Remove what killed processes left of `whole_file` and `whole_folder`: hidden paths that no living process writes.

    Args:
        folder: the folder of the finished files.
        names: their names, with wildcards as in a shell: *.ckpt
    """
    if fcntl is None:
        return
    for left in folder.glob(".*"):
        match = re.fullmatch(r"\.(.+)\.(\d+)(-\d+)?", left.name)
        if match is None or not fnmatchcase(match[1], names) or _is_alive(int(match[2])):
            continue
        with suppress(OSError), _lock(left) as state:  # it may have gone meanwhile
            if state == "ours":  # not written by a process of another machine or container
                _remove(left)


def move_into_place(hidden: Path, path: Path) -> None:
    """Rename a file once its content is on the disk, so that a power cut leaves the old file or the new one.

    Raises:
        OSError: the disk is full or refuses.
    """
    _sync(hidden)
    os.replace(hidden, path)
    sync_folder(path.parent)


@contextmanager
def _own(path: Path, folder: bool) -> Iterator[Path]:
    """Make an empty hidden file or folder, hold its lock, and remove it at the end if it is still there."""
    for number in itertools.count():
        hidden = _hidden(path, f"{os.getpid()}-{number}" if number else os.getpid())
        hidden.mkdir(exist_ok=True) if folder else hidden.touch()
        with _lock(hidden) as state:
            if state == "held":  # by another thread, or in a container in which a process has the same number
                continue
            _empty(hidden)  # of what a killed process with the same number left
            try:
                yield hidden
            except Exception as error:
                _raise_os_error(error, path)
                raise
            finally:
                with suppress(OSError):
                    _remove(hidden)
        return


@contextmanager
def _lock(hidden: Path) -> Iterator[Literal["ours", "held", "unknown"]]:
    """Lock a hidden path, if nobody else has. A disk or a system without locks: "unknown"."""
    if fcntl is None:
        yield "unknown"
        return
    descriptor = os.open(hidden, os.O_RDONLY)
    try:
        state: Literal["ours", "held", "unknown"] = "ours"
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not hidden.exists() or not os.path.samestat(hidden.stat(), os.fstat(descriptor)):
                state = "held"  # it has been moved or removed since
        except BlockingIOError:
            state = "held"
        except OSError:
            state = "unknown"
        yield state
    finally:
        os.close(descriptor)


def _raise_os_error(error: Exception, path: Path) -> None:
    """Raise the system's error that a library wrapped in one of its own, as polars and safetensors do."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is not None and not isinstance(error, OSError):
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _hidden(path: Path, ending: object) -> Path:
    return path.with_name(f".{path.name}.{ending}")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # it belongs to another user, or there is no such number
    return True


def _empty(hidden: Path) -> None:
    if hidden.is_dir():
        for inside in hidden.iterdir():
            _remove(inside)
    else:
        os.truncate(hidden, 0)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_all(folder: Path) -> None:
    for inside in folder.rglob("*"):
        if inside.is_dir():
            sync_folder(inside)
        else:
            _sync(inside)
    sync_folder(folder)


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
