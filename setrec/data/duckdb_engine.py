"""DuckDB: a log larger than the memory of one machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from setrec.data.engines import Engine, Session
from setrec.data.readers.base import PlainTable
from setrec.data.sql_session import SQLSession, csv_types, failure, needed_package, sql_text, work_folder
from setrec.data.ties import MIX
from setrec.errors import DataError
from setrec.files.parts import is_url


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
        duckdb = needed_package("duckdb", "DuckDBEngine", "duckdb")
        with work_folder(folder, self.work) as place:
            settings = {"temp_directory": str(place / "spilled"), "preserve_insertion_order": "false"}
            settings |= {"memory_limit": self.memory} if self.memory is not None else {}
            settings |= {"threads": str(self.threads)} if self.threads is not None else {}
            try:
                with duckdb.connect(config=settings) as connection:
                    connection.execute("SET enable_progress_bar = false")
                    yield _DuckDB(place, connection)
            except duckdb.Error as error:
                raise DataError(failure("DuckDBEngine", error)) from None


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
        types = ", ".join(f"{sql_text(name)}: '{kind}'" for name, kind in csv_types(table, "VARCHAR").items())
        quote = sql_text('"' if table.csv.quotes else "")
        return self._connection.sql(
            f"SELECT * FROM read_csv([{', '.join(map(sql_text, paths))}], auto_detect=false, header=false, "
            f"skip={table.csv.skip}, delim={sql_text(table.csv.separator)}, quote={quote}, escape={quote}, "
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
