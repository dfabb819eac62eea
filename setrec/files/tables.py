"""A table that a person gives as a file, and what its columns mean: ids as text, times in microseconds."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import polars as pl

from setrec.errors import DataError
from setrec.files.spreadsheet import unquoted

TimeUnit = Literal["auto", "s", "ms", "us", "ns"]
TICKS = 1_000_000  # in a second: `times` gives microseconds
_PER_UNIT = {"s": 1_000_000, "ms": 1_000, "us": 1}


def read_table(path: str | Path) -> pl.DataFrame:
    """Read a whole table: .parquet; .jsonl, .ndjson or .json (one object a line); anything else is CSV with a header.

    Columns of a CSV come as text, without the ' that `spreadsheet.quoted` puts before a formula.

    Raises:
        DataError: the file is missing, or cannot be read as such a table.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix in (".jsonl", ".ndjson", ".json"):
            return pl.read_ndjson(path, infer_schema_length=None)
        return unquoted(pl.read_csv(path, infer_schema=False))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} cannot be read as a table ({str(error).splitlines()[0]}).") from None


def as_text(column: pl.Series) -> pl.Series:
    """Turn a column of ids into text: whole numbers without a decimal point, null for an empty field."""
    value = pl.col("value")
    text = value.cast(pl.String, strict=False)
    if column.dtype.is_float():
        whole = value.cast(pl.Int64, strict=False).cast(pl.String)
        text = pl.when(value == value.floor()).then(whole).when(value.is_not_nan()).then(text)
    return column.alias("value").to_frame().select(pl.when(text != "").then(text).alias(column.name)).to_series()


def times(column: pl.Series, unit: TimeUnit = "auto") -> pl.Series:
    """Turn a column of times into microseconds since 1970, int64, null where a time cannot be read.

    Args:
        column: numbers, text with numbers or ISO dates ("2014-07-23", "2014-07-23T10:00:00+02:00"; without a zone they are
            UTC), or dates.
        unit: of the numbers. "auto" goes by the size of each number: below 1e11 it means seconds (until the year 5138), below
            1e14 milliseconds (from March 1973), below 1e17 microseconds, else nanoseconds.
    """
    name = column.name
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("us"), strict=False).to_physical().cast(pl.Int64).alias(name)
    value = pl.col("value")
    frame = column.alias("value").to_frame()
    if column.dtype == pl.String:
        frame = frame.with_columns(value.str.strip_chars())
    whole = value.cast(pl.Int64, strict=False) if not column.dtype.is_float() else pl.lit(None, pl.Int64)
    frame = frame.with_columns(whole=whole, float=value.cast(pl.Float64, strict=False))
    size = pl.col("float").abs()
    if unit == "auto":
        factor = pl.when(size < 1e11).then(1_000_000).when(size < 1e14).then(1_000).otherwise(1)
        divisor = pl.when(size < 1e17).then(1).otherwise(1_000)
    else:
        factor, divisor = pl.lit(_PER_UNIT.get(unit, 1)), pl.lit(1_000 if unit == "ns" else 1)
    factor = factor.cast(pl.Int64)
    fits = size * factor < 9e18  # int64 ends at 9.2e18
    exact = pl.col("whole") * factor // divisor.cast(pl.Int64)
    rounded = (pl.col("float") * factor / divisor).round().cast(pl.Int64, strict=False)
    number = pl.when(pl.col("whole").is_not_null()).then(exact).otherwise(rounded)
    frame = frame.select("value", "float", micros=pl.when(fits).then(number))
    if column.dtype == pl.String:
        no_number = frame.select((value.is_not_null() & pl.col("float").is_null()).alias("no"))["no"]
        if no_number.any():
            dates = {text: _from_iso(text) for text in frame["value"].filter(no_number).unique().to_list()}
            table = pl.DataFrame({"value": list(dates), "iso": pl.Series(list(dates.values()), dtype=pl.Int64)})
            frame = frame.join(table, "value", how="left", maintain_order="left")
            frame = frame.with_columns(pl.coalesce("micros", "iso").alias("micros"))
    return frame["micros"].alias(name)


def _from_iso(text: str) -> int | None:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    seconds = (when.replace(microsecond=0) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    return int(seconds) * TICKS + when.microsecond
