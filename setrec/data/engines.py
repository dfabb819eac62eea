"""What runs the cleaning, the split and the counts: polars in memory, DuckDB on the disk of one machine, or Spark on a cluster.

The steps themselves are written once, as narwhals expressions (clean.py, split.py, cf.py); no result depends on the engine. Where
an engine reads a table itself, the log never passes through this process. What comes here: the different ids, and at the end two
numbers of four bytes an event, and its time and kind.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import narwhals as nw
import polars as pl

Frame: TypeAlias = "nw.LazyFrame[Any]"


def count_rows(frame: Frame) -> int:
    """The number of rows."""
    return int(collected(frame.select(n=nw.len())).item())


def collected(frame: Frame) -> pl.DataFrame:
    """A frame as a table of this process."""
    data: pl.DataFrame = frame.collect(backend="polars").to_native()
    return data


def in_memory(frame: Frame) -> Frame:
    """Compute a frame of polars and keep its rows in memory."""
    kept: Frame = nw.from_native(frame.to_native().collect().lazy())
    return kept


class Session(ABC):
    """One use of an engine."""

    @abstractmethod
    def keep(self, frame: Frame) -> Frame:
        """Compute a frame and keep its rows. What was kept before is gone, but for what `put` took."""

    def in_order(self, frame: Frame, by: list[str]) -> pl.DataFrame:
        """Sort a frame and bring it into this process, without the columns that it is sorted by from the second on."""
        return collected(frame.sort(by).drop(by[1:]))


class Engine(ABC):
    """What runs the cleaning, the split and the counts. A subclass keeps its arguments in attributes of the same names."""

    @contextmanager
    @abstractmethod
    def opened(self, folder: Path) -> Iterator[Session]:
        """Open a session.

        Args:
            folder: for intermediate results; it is gone afterwards.

        Raises:
            ConfigError: a package is missing.
            DataError: the engine fails.
        """


class PolarsEngine(Engine):
    """In the memory of this process. The fastest while the log fits: about 100 bytes an event."""

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Session]:
        """See `Engine.opened`."""
        yield _Memory()


class _Memory(Session):
    def keep(self, frame: Frame) -> Frame:
        return in_memory(frame)
