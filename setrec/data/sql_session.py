"""What the engines that understand SQL share: raw tables read by the engine itself, intermediate results as partitioned parquet."""

import importlib
import os
import shutil
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import narwhals as nw
import polars as pl

from setrec.data.engines import Frame, Session
from setrec.data.readers.base import PlainTable
from setrec.errors import ConfigError, DataError

_MICROS = {"s": "1000000", "ms": "1000", "us": "1", "ns": "1"}


class SQLSession(Session):
    """A session of an engine that reads raw tables itself and keeps intermediate results as partitioned parquet.

    Args:
        engine: the name of its class, for messages.
        folder: where they go. All machines of a cluster must see it.
    """

    # expressions: of a 64-bit number `x` or a column; see `tied` and `scan`
    unsigned: str  # a signed number as an unsigned one, where there are such
    mixing: list[str]  # the steps of ties.py
    ordered: str  # the result as something that sorts as an unsigned number does
    whole_division: str

    def __init__(self, engine: str, folder: Path) -> None:
        self.engine, self._folder, self._count, self._before = engine, folder.resolve(), 0, ""

    @abstractmethod
    def files(self, paths: list[str], table: PlainTable | None = None) -> Any:
        """A native frame of parquet files; with a table that is a CSV, of this."""

    @abstractmethod
    def select(self, frame: Any, columns: list[str]) -> Any:
        """SELECT expressions FROM a native frame."""

    @abstractmethod
    def types(self, frame: Any) -> dict[str, str]:
        """The names of the types of a native frame's columns, in capital letters."""

    @abstractmethod
    def write(self, frame: Any, folder: str, ordered: bool) -> None:
        """Write a native frame into a folder, as parquet parts, in the order of their names if it is ordered."""

    @abstractmethod
    def micros(self, column: str) -> str:
        """An expression: the microseconds since 1970 of a date or a timestamp."""

    def _written(self, frame: Frame, ordered: bool = False) -> str:
        self._count += 1
        folder = str(self._folder / f"kept{self._count:03d}")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.write(frame.to_native(), folder, ordered)
        return folder

    def keep(self, frame: Frame) -> Frame:
        """See `Session.keep`."""
        folder = self._written(frame)
        if self._before:
            shutil.rmtree(self._before)
        self._before = folder
        return self._frame(self.files(_parts(folder)))

    def in_order(self, frame: Frame, by: list[str]) -> pl.DataFrame:
        """See `Session.in_order`."""
        folder = self._written(frame.sort(by), ordered=True)
        data = pl.concat([pl.scan_parquet(part).drop(by[1:]).collect() for part in _parts(folder)], rechunk=False)
        shutil.rmtree(folder)
        return data

    def put(self, data: pl.DataFrame) -> Frame:
        """Give the engine a table of this process."""
        self._count += 1
        folder = self._folder / f"put{self._count:03d}"
        folder.mkdir(parents=True)
        data.write_parquet(folder / "part.parquet")
        return self._frame(self.files(_parts(str(folder))))

    @staticmethod
    def _frame(native: Any) -> Frame:
        frame: Frame = nw.from_native(native).lazy()
        return frame

    def scan(self, table: PlainTable) -> Frame:
        """The events of a table: user, item (as they are there), time (microseconds), rating float32 and kind where it has them.

        Raises:
            DataError: this engine cannot read a column.
        """
        raw = self.files(table.paths, table)
        types = self.types(raw)
        time, kind = self._quoted(table.time), types[table.time]
        if any(name in kind for name in ("TIMESTAMP", "DATE")):
            time = self.micros(time)
        elif any(name in kind for name in ("INT", "LONG", "SHORT", "BYTE")):
            time = self._in_micros(f"CAST({time} AS BIGINT)", table.time_unit)
        else:
            raise DataError(
                f"{table.counter.file}, column {table.time!r} holds {kind}: {self.engine} reads times that are whole numbers or "
                "timestamps; convert it, or use --data.engine PolarsEngine."
            )
        columns = [f"{self._quoted(table.user)} AS user", f"{self._quoted(table.item)} AS item", f"{time} AS time"]
        if table.rating is not None:
            rating = f"CAST({self._quoted(table.rating)} AS FLOAT)"
            columns.append(f"CASE WHEN isnan({rating}) THEN NULL ELSE {rating} END AS rating")
        if table.kind is not None:
            columns.append(f"CAST({self._quoted(table.kind)} AS {self.text}) AS kind")
        return self._frame(self.select(raw, columns))

    text = "VARCHAR"
    quote = '"'

    def _quoted(self, name: str) -> str:
        return f"{self.quote}{name.replace(self.quote, self.quote * 2)}{self.quote}"

    def _in_micros(self, time: str, unit: str) -> str:
        """Numbers in microseconds, as `setrec.files.times.times` reads them; NULL where int64 ends."""
        size = f"abs(CAST({time} AS DOUBLE))"
        nanos = self.whole_division.format(f"{time} - (({time} % 1000) + 1000) % 1000", 1000)
        if unit == "auto":
            cases = f"WHEN {size} < 1e11 THEN {time} * 1000000 WHEN {size} < 1e14 THEN {time} * 1000 "
            return f"CASE {cases} WHEN {size} < 1e17 THEN {time} WHEN {size} < 9e18 THEN {nanos} END"
        value = nanos if unit == "ns" else f"{time} * {_MICROS[unit]}"
        return f"CASE WHEN {size} * {_MICROS[unit]} < 9e18 THEN {value} END"

    def tied(self, frame: Frame) -> Frame:
        """Put `tie`, what `setrec.data.ties.tie_keys` computes, in place of user_hash (mixed), item_hash (int64) and second."""
        native = frame.to_native()
        rest = [name for name in frame.collect_schema().names() if name not in ("user_hash", "item_hash")]
        user, item, second = (self.unsigned.format(name) for name in ("user_hash", "item_hash", "second"))
        native = self.select(native, [*rest, "item_hash", f"{self.xor.format(user, item)} AS x"])
        for step in self.mixing:
            native = self.select(native, [*rest, f"{step} AS x"])
        native = self.select(native, [*rest, f"{self.xor.format('x', second)} AS x"])
        for step in self.mixing:
            native = self.select(native, [*rest, f"{step} AS x"])
        rest.remove("second")
        return self._frame(self.select(native, [*rest, f"{self.ordered} AS tie"]))

    xor = "({} ^ {})"


def sql_text(value: str) -> str:
    """A text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def csv_types(table: PlainTable, text: str) -> dict[str, str]:
    """The columns of a CSV, all of them, and their types."""
    assert table.csv is not None, "only of a CSV"
    types = dict.fromkeys(table.csv.columns, text)
    types[table.time] = "BIGINT"
    return types | ({table.rating: "DOUBLE"} if table.rating is not None else {})


def _parts(folder: str) -> list[str]:
    return sorted(str(part) for part in Path(folder).glob("*.parquet"))


@contextmanager
def work_folder(folder: Path, work: str | None) -> Iterator[Path]:
    """The folder of a session's intermediate results, removed afterwards."""
    place = folder if work is None else Path(work) / f"setrec-{os.getpid()}-{folder.name.strip('.')}"
    shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def needed_package(name: str, engine: str, extra: str) -> ModuleType:
    """Import a package that an extra installs.

    Raises:
        ConfigError: it is missing.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"{engine} needs a package that is not installed: pip install 'setrec[{extra}]'.") from None


def failure(engine: str, error: Exception) -> str:
    """One sentence about what an engine says."""
    return f"{engine} cannot do it ({' '.join(str(error).split())[:400]}); --data.engine PolarsEngine reads more forms of tables."
