"""Tables of vectors that may be larger than memory: they lie in files, and are made and read block by block."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np

from setrec.errors import DataError

_BLOCK = 1 << 25  # numbers of a block: 128 MiB in float32


def new_table(shape: tuple[int, ...], dtype: str, folder: Path | None) -> np.ndarray:
    """Make a table of zeros, (N, width), to be filled.

    Args:
        shape: (N, width).
        dtype: "float32" or "float16".
        folder: where its file lies. The file has no name, and is gone with the table or the process. None: it is in memory.

    Raises:
        DataError: the disk has no room for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize  # bytes
    if folder is None or not size:  # nothing cannot be mapped
        return np.zeros(shape, dtype)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            _take_room(file.fileno(), size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"{folder.parent} has no room for a table of {size / 2**30:.2g} GiB that is needed for a while ({error}); free some "
            "space or choose another place with --data.root DIR."
        ) from None


def _take_room(file: int, size: int) -> None:
    """Give a file its size on the disk: writing to a mapped file cannot say that the disk is full, the process would die."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    for start in range(0, size, _BLOCK):
        os.write(file, bytes(min(_BLOCK, size - start)))


def blocks(n_rows: int, width: int) -> Iterator[slice]:
    """The rows of a table, (n_rows, width), a block at a time."""
    step = max(1, _BLOCK // max(width, 1))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def by_rows(function: Callable[[np.ndarray], np.ndarray], table: np.ndarray) -> np.ndarray:
    """What `function` gives for every row: it is called with a block of rows, (block, width), and returns (block,)."""
    parts = [function(table[rows]) for rows in blocks(*table.shape)]
    return np.concatenate(parts) if parts else function(table)  # (N,)


def converted(table: np.ndarray, dtype: str, folder: Path | None) -> np.ndarray:
    """The same numbers in another type, row by row in memory order, (N, width). A number that is too large becomes infinity.

    Args:
        table: (N, width). It is returned itself if it is like that already.
        dtype: "float32" or "float16".
        folder: see `new_table`.
    """
    if table.dtype == dtype and table.flags.c_contiguous:
        return table
    made = new_table(table.shape, dtype, folder)  # (N, width)
    with np.errstate(over="ignore"):
        for rows in blocks(*table.shape):
            made[rows] = table[rows]
    return made


def row_hashes(table: np.ndarray) -> np.ndarray:
    """A number for every row, (N,) uint64: equal rows have equal ones, others almost never (2^-64 for two rows)."""

    def hashes(block: np.ndarray) -> np.ndarray:
        digests = b"".join(blake2b(row.tobytes(), digest_size=8).digest() for row in block)
        return np.frombuffer(digests, np.uint64)  # (block,)

    return by_rows(hashes, table)  # (N,)


def not_zero(table: np.ndarray) -> np.ndarray:
    """The rows that hold a number other than 0, (N,) bool."""
    return by_rows(lambda block: (block != 0).any(axis=1), table)  # (N,)
