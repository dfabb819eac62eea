"""What runs the cleaning, the split and the counts: polars in memory, DuckDB on the disk of one machine, or Spark on a cluster.

The steps themselves are written once, as narwhals expressions (clean.py, split.py, cf.py); no result depends on the engine. Where
an engine reads a table itself, the log never passes through this process. What comes here: the different ids, and at the end two
numbers of four bytes an event, and its time and kind.
"""

import importlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import fsspec
import narwhals as nw
import polars as pl

from setrec.data.readers.base import PlainTable
from setrec.data.ties import MIX
from setrec.errors import ConfigError, DataError
from setrec.files.parts import is_url

Frame: TypeAlias = "nw.LazyFrame[Any]"
_MICROS = {"s": "1000000", "ms": "1000", "us": "1", "ns": "1"}
_SIGNED = 1 << 63


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


class DuckDBEngine(Engine):
    """On the disk of one machine: a log larger than memory is sorted and counted in files.

    Args:
        memory: what DuckDB may hold, such as 4GB; null: 80% of the machine.
        threads: null: one a core.
        work: folder of intermediate results; null: beside the prepared data.
    """

    def __init__(self, memory: str | None = None, threads: int | None = None, work: str | None = None) -> None:
        self.memory, self.threads, self.work = memory, threads, work

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Session]:
        """See `Engine.opened`."""
        duckdb = _package("duckdb", "DuckDBEngine", "duckdb")
        with _work(folder, self.work) as place:
            settings = {"temp_directory": str(place / "spilled"), "preserve_insertion_order": "false"}
            settings |= {"memory_limit": self.memory} if self.memory is not None else {}
            settings |= {"threads": str(self.threads)} if self.threads is not None else {}
            try:
                with duckdb.connect(config=settings) as connection:
                    connection.execute("SET enable_progress_bar = false")
                    yield _DuckDB(place, connection)
            except duckdb.Error as error:
                raise DataError(_failed("DuckDBEngine", error)) from None


class _DuckDB(SQLSession):
    unsigned = "CAST(CAST({} AS HUGEINT) & 18446744073709551615::HUGEINT AS UBIGINT)"
    _modulo = "CAST(({}) & 18446744073709551615::UHUGEINT AS UBIGINT)"
    mixing = [  # noqa: RUF012
        _modulo.format(f"CAST(x AS UHUGEINT) + {MIX[0]}::UHUGEINT"),
        _modulo.format(f"CAST(xor(x, x >> 30) AS UHUGEINT) * {MIX[1]}::UHUGEINT"),
        _modulo.format(f"CAST(xor(x, x >> 27) AS UHUGEINT) * {MIX[2]}::UHUGEINT"),
        "xor(x, x >> 31)",
    ]
    ordered, xor, whole_division = "x", "xor({}, {})", "({}) // {}"

    def __init__(self, folder: Path, connection: Any) -> None:
        super().__init__("DuckDBEngine", folder)
        self._connection, self._stores = connection, set[str]()

    def files(self, paths: list[str], table: PlainTable | None = None) -> Any:
        for path in paths:
            store = path.partition("://")[0]
            if is_url(path) and store not in self._stores:
                self._connection.register_filesystem(fsspec.filesystem(store))
                self._stores.add(store)
        if table is None or table.csv is None:
            return self._connection.read_parquet(paths)
        types = ", ".join(f"{_text(name)}: '{kind}'" for name, kind in _csv_types(table, "VARCHAR").items())
        quote = _text('"' if table.csv.quotes else "")
        return self._connection.sql(
            f"SELECT * FROM read_csv([{', '.join(map(_text, paths))}], auto_detect=false, header=false, "
            f"skip={table.csv.skip}, delim={_text(table.csv.separator)}, quote={quote}, escape={quote}, "
            f"columns={{{types}}})"
        )

    def select(self, frame: Any, columns: list[str]) -> Any:
        return frame.project(", ".join(columns))

    def types(self, frame: Any) -> dict[str, str]:
        return {name: str(kind).upper() for name, kind in zip(frame.columns, frame.types, strict=True)}

    def write(self, frame: Any, folder: str, ordered: bool) -> None:
        if ordered:
            Path(folder).mkdir()
            frame.to_parquet(f"{folder}/part.parquet")
        else:
            frame.to_parquet(folder, per_thread_output=True)

    def micros(self, column: str) -> str:
        return f"epoch_us(CAST({column} AS TIMESTAMP))"


class SparkEngine(Engine):
    """On a Spark cluster, or on the cores of this machine. Needs Java.

    Args:
        master: the cluster: local[2], yarn, spark://host:7077; null: what spark-submit or SPARK_REMOTE says, otherwise local[*].
        settings: of the Spark session, such as {"spark.driver.memory": "6g"}.
        work: folder of intermediate results, which all machines must see; null: beside the prepared data, for local[...].
    """

    def __init__(
        self, master: str | None = None, settings: dict[str, str] | None = None, work: str | None = None
    ) -> None:
        self.master, self.settings, self.work = master, settings, work

    @contextmanager
    def opened(self, folder: Path) -> Iterator[Session]:
        """See `Engine.opened`."""
        sql = _package("pyspark.sql", "SparkEngine", "spark")
        errors = importlib.import_module("pyspark.errors")
        java = importlib.import_module("py4j.protocol")
        settings = {
            "spark.sql.ansi.enabled": "false",  # numbers of 64 bits wrap, as the keys of ties need it
            "spark.sql.session.timeZone": "UTC",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.driver.maxResultSize": "0",
        } | (self.settings or {})
        with _work(folder, self.work) as place:
            own = sql.SparkSession.getActiveSession() is None
            try:
                builder = sql.SparkSession.builder.appName("setrec")
                builder = builder.master(self.master) if self.master is not None else builder
                for name, value in settings.items():
                    builder = builder.config(name, value)
                spark = builder.getOrCreate()
            except (errors.PySparkException, java.Py4JError, OSError) as error:
                raise ConfigError(
                    f"Spark does not start ({' '.join(str(error).split())[:120]}); it needs Java (on Debian: apt-get install "
                    "default-jre-headless) and a --data.engine.master that it reaches."
                ) from None
            spark.sparkContext.setLogLevel("ERROR")
            try:
                yield _Spark(place, spark)
            except (errors.PySparkException, java.Py4JError) as error:
                raise DataError(_failed("SparkEngine", error)) from None
            finally:
                if own:
                    spark.stop()


class _Spark(SQLSession):
    unsigned, text, quote = "CAST({} AS BIGINT)", "STRING", "`"
    mixing = [  # noqa: RUF012
        f"x + {MIX[0] - 2 * _SIGNED}L",
        f"(x ^ shiftrightunsigned(x, 30)) * {MIX[1] - 2 * _SIGNED}L",
        f"(x ^ shiftrightunsigned(x, 27)) * {MIX[2] - 2 * _SIGNED}L",
        "x ^ shiftrightunsigned(x, 31)",
    ]
    ordered, whole_division = f"x ^ (-{_SIGNED - 1}L - 1L)", "(({}) div {})"

    def __init__(self, folder: Path, spark: Any) -> None:
        super().__init__("SparkEngine", folder)
        self._spark = spark

    def files(self, paths: list[str], table: PlainTable | None = None) -> Any:
        seen = [path.replace("s3://", "s3a://", 1) if is_url(path) else Path(path).as_uri() for path in paths]
        if any(path.startswith("memory://") for path in seen):
            raise DataError(
                f"{paths[0]} lies in the memory of this process, where Spark cannot read it; use DuckDBEngine."
            )
        if table is None or table.csv is None:
            return self._spark.read.parquet(*seen)
        if table.csv.skip > 1:
            raise DataError(f"{table.counter.file} has lines before its header; use --data.engine PolarsEngine.")
        schema = ", ".join(f"{self._quoted(name)} {kind}" for name, kind in _csv_types(table, "STRING").items())
        quote = '"' if table.csv.quotes else ""
        return self._spark.read.csv(
            seen, schema=schema, header=table.csv.skip == 1, sep=table.csv.separator, quote=quote, escape=quote,
            mode="FAILFAST", enforceSchema=True,
        )  # fmt: skip

    def select(self, frame: Any, columns: list[str]) -> Any:
        return frame.selectExpr(*columns)

    def types(self, frame: Any) -> dict[str, str]:
        return {name: kind.upper() for name, kind in frame.dtypes}

    def write(self, frame: Any, folder: str, ordered: bool) -> None:
        frame.write.parquet(Path(folder).as_uri())

    def micros(self, column: str) -> str:
        return f"unix_micros(CAST({column} AS TIMESTAMP))"


def _text(value: str) -> str:
    """A text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def _csv_types(table: PlainTable, text: str) -> dict[str, str]:
    """The columns of a CSV, all of them, and their types."""
    assert table.csv is not None, "only of a CSV"
    types = dict.fromkeys(table.csv.columns, text)
    types[table.time] = "BIGINT"
    return types | ({table.rating: "DOUBLE"} if table.rating is not None else {})


def _parts(folder: str) -> list[str]:
    return sorted(str(part) for part in Path(folder).glob("*.parquet"))


@contextmanager
def _work(folder: Path, work: str | None) -> Iterator[Path]:
    """The folder of a session's intermediate results, removed afterwards."""
    place = folder if work is None else Path(work) / f"setrec-{os.getpid()}-{folder.name.strip('.')}"
    shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _package(name: str, engine: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"{engine} needs a package that is not installed: pip install 'setrec[{extra}]'.") from None


def _failed(engine: str, error: Exception) -> str:
    return f"{engine} cannot do it ({' '.join(str(error).split())[:400]}); --data.engine PolarsEngine reads more forms of tables."
