"""Tables in batches: CSV (gzip too), parquet and JSON lines, every row with the line it stands on."""

import csv
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import IO, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from setrec.data.readers.lines import RawFile, Tally, opened, records
from setrec.errors import DataError

LINE = "\0line"  # the column that holds the line number: a name that no file has
TimeUnit = Literal["auto", "s", "ms", "us", "ns"]
TICKS = 1_000_000  # `times` gives microseconds
_BLOCK = 16 << 20  # bytes of CSV per batch
_ROWS = 250_000  # rows per batch of other formats
_PER_UNIT = {"s": 1_000_000, "ms": 1_000, "us": 1}


def header(file: RawFile, separator: str, quotes: bool = True) -> list[str]:
    """The names in the first line of a CSV.

    Raises:
        DataError: the file is empty, or its first line is no text.
    """
    with opened(file) as stream:
        first = stream.readline(1 << 20)
    try:
        text = first.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError:
        raise DataError(f"{file.name} does not begin with a line of UTF-8 text; convert it to UTF-8.") from None
    if not text:
        raise DataError(f"{file.name} is empty; it must begin with a line of column names.")
    return next(csv.reader([text], delimiter=separator, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE))


def csv_batches(
    file: RawFile,
    wanted: Sequence[str],
    tally: Tally,
    separator: str = ",",
    names: Sequence[str] | None = None,
    quotes: bool = True,
    first_line: int = 1,
) -> Iterator[pl.DataFrame]:
    """Columns of a CSV as text, "" where a field is empty and null where it is no UTF-8.

    Rows with too many or too few fields are counted as malformed. Line numbers are exact as long as no quoted field
    before it, within 16 MiB, holds a line break.

    Args:
        file: CSV, packed or not.
        wanted: the columns.
        tally: counts rows and malformed rows.
        separator: one character.
        names: every column's name; None: the first line has them.
        quotes: whether " encloses fields.
        first_line: 1 where the first line is a header that is passed over, 0 where it holds data.

    Raises:
        DataError: see `opened` and `Tally`.
    """
    names = header(file, separator, quotes) if names is None else names
    broken: list[tuple[int, int]] = []  # line within the block, and lines it takes

    def pass_over(row: pacsv.InvalidRow) -> str:
        broken.append((row.number, row.text.count("\n") + 1))
        return "skip"

    parsing = pacsv.ParseOptions(
        delimiter=separator, quote_char='"' if quotes else False, double_quote=quotes, newlines_in_values=quotes,
        ignore_empty_lines=False, invalid_row_handler=pass_over,
    )  # fmt: skip
    binary = dict.fromkeys(wanted, pa.binary())
    converting = pacsv.ConvertOptions(include_columns=list(wanted), column_types=binary, strings_can_be_null=False)
    before, skip = 0, first_line  # lines before the block, lines of it to pass over
    with opened(file) as stream:
        for block in _blocks(stream, quotes):
            broken.clear()
            reading = pacsv.ReadOptions(
                use_threads=False, block_size=len(block) + 1, column_names=names, skip_rows=skip
            )
            lines = block.count(b"\n")
            if lines + (not block.endswith(b"\n")) > skip:
                # from memory: reading the stream itself would leave a thread behind where the stream breaks off
                data = pl.from_arrow(pacsv.read_csv(pa.BufferReader(block), reading, parsing, converting))
                assert isinstance(data, pl.DataFrame)
                rows = skip + 1 + np.arange(len(data))
                shift = np.array([line for line, _ in broken], np.int64) - np.arange(len(broken))
                rows = before + rows + np.searchsorted(shift, rows, side="right")  # each broken line moves them down
                tally.lines += len(data) + sum(count for _, count in broken)
                for line, count in broken:
                    tally.bad(before + line, f"not {len(names)} fields" + ", a quote left open" * (count > 1), count)
                data = pl.DataFrame([_decoded(column) for column in data]).with_columns(pl.Series(LINE, rows))
                yield data.filter(pl.any_horizontal((pl.col(list(wanted)) != "").fill_null(True)))  # no empty lines
            before, skip = before + lines, 0


def _blocks(stream: IO[bytes], quotes: bool) -> Iterator[bytes]:
    """The file in blocks of whole lines; a quoted line break ends no line."""
    rest = b""
    while data := stream.read(_BLOCK):
        data = rest + data
        end = _end_of_lines(data, quotes)
        if end:
            yield data[:end]
        rest = data[end:]
    if rest:
        yield rest


def _end_of_lines(data: bytes, quotes: bool) -> int:
    """Where the last whole line ends, 0 where none does yet."""
    last = end = data.rfind(b"\n") + 1
    if quotes and b'"' in data:
        count = data.count(b'"', 0, end)
        while count % 2 and end:  # inside quotes: back to the line break before
            before = data.rfind(b"\n", 0, end - 1) + 1
            count -= data.count(b'"', before, end)
            end = before
    return last if not end and len(data) > 4 * _BLOCK else end  # a quote that is never closed


def _decoded(column: pl.Series) -> pl.Series:
    """Bytes as text, null where they are no UTF-8."""
    try:
        return column.cast(pl.String)
    except pl.exceptions.ComputeError:  # some row; rare, so slowly one by one
        texts = [_utf8(field) for field in column.to_list()]
        return pl.Series(column.name, texts, pl.String)


def _utf8(field: bytes) -> str | None:
    try:
        return field.decode()
    except UnicodeDecodeError:
        return None


def parquet_batches(file: RawFile, wanted: Sequence[str], tally: Tally) -> Iterator[pl.DataFrame]:
    """Columns of a parquet file in their own types; the line is the row's number from 1.

    Raises:
        DataError: no parquet file, or damaged.
    """
    with opened(RawFile(file.path)) as stream:
        row = 1
        for batch in pq.ParquetFile(stream).iter_batches(_ROWS, columns=list(wanted)):
            data = pl.from_arrow(batch)
            assert isinstance(data, pl.DataFrame)
            tally.lines += len(data)
            yield data.with_columns(pl.Series(LINE, row + np.arange(len(data))))
            row += len(data)


def json_batches(file: RawFile, wanted: Sequence[str], tally: Tally) -> Iterator[pl.DataFrame]:
    """Fields of JSON lines as text, null where one is missing, null or neither text nor a number.

    Raises:
        DataError: see `records`.
    """
    from setrec.data.readers.gather import own_id

    rows: list[tuple] = []
    schema = dict.fromkeys(wanted, pl.String) | {LINE: pl.Int64}
    for line, record in records(file, tally):
        rows.append((*(own_id(record.get(name)) for name in wanted), line))
        if len(rows) == _ROWS:
            yield pl.DataFrame(rows, schema=schema, orient="row")
            rows = []
    if rows:
        yield pl.DataFrame(rows, schema=schema, orient="row")


def as_text(column: pl.Series) -> pl.Series:
    """Ids as text: whole numbers without a decimal point, null for what is empty."""
    value = pl.col("value")
    text = value.cast(pl.String, strict=False)
    if column.dtype.is_float():
        whole = value.cast(pl.Int64, strict=False).cast(pl.String)
        text = pl.when(value == value.floor()).then(whole).when(value.is_not_nan()).then(text)
    return column.alias("value").to_frame().select(pl.when(text != "").then(text).alias(column.name)).to_series()


def times(column: pl.Series, unit: TimeUnit = "auto") -> pl.Series:
    """Times in microseconds since 1970, int64, null where one cannot be read.

    Args:
        column: numbers, text with numbers or ISO dates ("2014-07-23", "2014-07-23T10:00:00+02:00"; UTC where no zone
            is given), or dates.
        unit: of numbers. "auto" goes by the size of each number: below 1e11 seconds (until the year 5138), below 1e14
            milliseconds (from March 1973), below 1e17 microseconds, otherwise nanoseconds.
    """
    name = column.name
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("us"), strict=False).to_physical().cast(pl.Int64).alias(name)
    value = pl.col("value")
    frame = column.alias("value").to_frame()
    if column.dtype == pl.String:
        frame = frame.with_columns(value.str.strip_chars())
    exact = value.cast(pl.Int64, strict=False)
    rough = value.cast(pl.Float64, strict=False)
    frame = frame.with_columns(exact=exact if not column.dtype.is_float() else pl.lit(None, pl.Int64), rough=rough)
    size = pl.col("rough").abs()
    if unit == "auto":
        chosen = pl.when(size < 1e11).then(1_000_000).when(size < 1e14).then(1_000).otherwise(1)
        down = pl.when(size < 1e17).then(1).otherwise(1_000)
    else:
        chosen, down = pl.lit(_PER_UNIT.get(unit, 1)), pl.lit(1_000 if unit == "ns" else 1)
    chosen = chosen.cast(pl.Int64)
    fits = size * chosen < 9e18
    whole = pl.col("exact") * chosen // down.cast(pl.Int64)
    part = (pl.col("rough") * chosen / down).round().cast(pl.Int64, strict=False)
    number = pl.when(pl.col("exact").is_not_null()).then(whole).otherwise(part)
    frame = frame.select("value", "rough", micros=pl.when(fits).then(number))
    if column.dtype == pl.String:
        dated = frame.select((value.is_not_null() & pl.col("rough").is_null()).alias("dated"))["dated"]
        if dated.any():
            read = {text: _from_iso(text) for text in frame["value"].filter(dated).unique().to_list()}
            table = pl.DataFrame({"value": list(read), "iso": pl.Series(list(read.values()), dtype=pl.Int64)})
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
