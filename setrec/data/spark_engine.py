"""Spark: a log that one machine does not hold."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setrec.data.engines import Engine, Session
from setrec.data.readers.base import PlainTable
from setrec.data.sql_session import SQLSession, csv_types, failure, needed_package, work_folder
from setrec.data.ties import MIX
from setrec.errors import ConfigError, DataError
from setrec.files.parts import is_url

_SIGNED = 1 << 63


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
        sql = needed_package("pyspark.sql", "SparkEngine", "spark")
        errors = importlib.import_module("pyspark.errors")
        java = importlib.import_module("py4j.protocol")
        settings = {
            "spark.sql.ansi.enabled": "false",  # numbers of 64 bits wrap, as the keys of ties need it
            "spark.sql.session.timeZone": "UTC",
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.driver.maxResultSize": "0",
        } | (self.settings or {})
        with work_folder(folder, self.work) as place:
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
                raise DataError(failure("SparkEngine", error)) from None
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
        schema = ", ".join(f"{self._quoted(name)} {kind}" for name, kind in csv_types(table, "STRING").items())
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
