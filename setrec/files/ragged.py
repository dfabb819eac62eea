"""Rows of different lengths as two flat arrays."""

from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa


class Ragged(NamedTuple):
    """Rows of different lengths in one flat array. Row i is items[offsets[i]:offsets[i + 1]]. len() is the number of rows."""

    offsets: np.ndarray  # (rows + 1,) int64
    items: np.ndarray  # (all,) int32; of what stands beside items, such as times, any type

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> np.ndarray:
        """Return row i, (length,)."""
        return self.items[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """The length of each row, (rows,) int64."""
        return np.diff(self.offsets)

    @classmethod
    def from_lengths(cls, lengths: np.ndarray, items: np.ndarray) -> "Ragged":
        """Make it from lengths, (rows,), and the items of all rows in turn, (all,)."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(offsets, np.ascontiguousarray(items, np.int32))

    @classmethod
    def from_rows(cls, rows: list[list[int]]) -> "Ragged":
        """Make it from lists of items."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        flat = np.fromiter((item for row in rows for item in row), np.int32, int(lengths.sum()))
        return cls.from_lengths(lengths, flat)

    def only(self, keep: np.ndarray) -> "Ragged":
        """The rows where `keep`, (rows,) bool, and empty ones in place of the others."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths * keep)])
        return Ragged(offsets.astype(np.int64), self.items[np.repeat(keep, self.lengths)])

    def where(self, keep: np.ndarray) -> "Ragged":
        """The elements where `keep`, (all,) bool; every row keeps its place."""
        before = np.concatenate([[0], np.cumsum(keep)])  # (all + 1,)
        return Ragged(before[self.offsets].astype(np.int64), self.items[keep])

    def joined(self, other: "Ragged") -> "Ragged":
        """Append rows: row i of the result is row i of this one, then row i of `other`."""
        items = np.empty(len(self.items) + len(other.items), self.items.dtype)
        offsets = self.offsets + other.offsets
        for part, first in ((self, offsets[:-1]), (other, offsets[:-1] + self.lengths)):
            shift = np.repeat(first - part.offsets[:-1], part.lengths)  # how far each element moves
            items[np.arange(len(part.items)) + shift] = part.items
        return Ragged(offsets, items)

    def to_series(self, name: str) -> pl.Series:
        """Return a polars column of lists."""
        return pl.Series(name, pl.from_arrow(pa.LargeListArray.from_arrays(self.offsets, self.items)))

    @classmethod
    def from_series(cls, series: pl.Series) -> "Ragged":
        """Make it from a polars column of lists."""
        lengths = series.list.len().to_numpy().astype(np.int64)
        return cls.from_lengths(lengths, series.explode().drop_nulls().to_numpy())


class Splits(NamedTuple):
    """Something of every event, in rows beside those of the items of each split."""

    train: Ragged
    validation: Ragged
    test: Ragged
