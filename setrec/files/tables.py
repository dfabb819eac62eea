"""A table that a person gives as a file, read whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from setrec.errors import DataError
from setrec.files.columns import LINE, Table, TableForm
from setrec.files.ids import own_id
from setrec.files.lines import LineCounter
from setrec.files.packed import inside
from setrec.files.spreadsheet import unquoted

_ADVICE = "correct these lines: every row of this file counts"


def read_table(path: str | Path) -> pl.DataFrame:
    """Read a whole table as readers of data do: .parquet; .jsonl, .ndjson or .json; anything else is CSV with a header.

    It may be packed. Encoding and separator are seen from the file. Columns of a CSV come as text, without the ' that
    `spreadsheet.quoted` puts before a formula.

    Raises:
        DataError: the file is missing, or cannot be read as such a table, or a row is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    file = inside(path)
    table = Table(file, TableForm(), ())
    counter = LineCounter(file.name, 0, _ADVICE)
    try:
        if table.kind == "json":
            rows = [record for _, record in table.records(counter, ())]
            return pl.DataFrame([_column(name, rows) for name in dict.fromkeys(name for row in rows for name in row)])
        table.require(table.named, "give each column a name of its own")
        batches = list(table.batches(table.named, counter))
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} cannot be read as a table ({str(error).splitlines()[0]}).") from None
    if not batches:
        return pl.DataFrame(schema=dict.fromkeys(table.named, pl.String))
    empty = (pl.col(pl.String) == "").fill_null(False)
    whole = pl.concat(batches).drop(LINE).with_columns(pl.when(~empty).then(pl.col(pl.String)).name.keep())
    return unquoted(whole) if table.kind == "csv" else whole


def _column(name: str, rows: list[Mapping[str, Any]]) -> pl.Series:
    """A field of all records. Where some are numbers and some are texts, all become text."""
    values = [row.get(name) for row in rows]
    try:
        return pl.Series(name, values)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
        return pl.Series(name, [own_id(value) for value in values], pl.String)
