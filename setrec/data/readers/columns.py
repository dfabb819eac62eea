"""Big tables in batches: CSV, parquet and JSON lines, gzip or not. Every row keeps the number of its line."""

import csv
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from setrec.data.readers.gather import own_id
from setrec.data.readers.lines import LineCounter, RawFile, opened, records
from setrec.errors import DataError

LINE = "\0line"  # the column of line numbers: a name that no file has
_BLOCK = 16 << 20  # bytes of CSV per batch
_ROWS = 250_000  # rows per batch of other formats


def header(file: RawFile, separator: str, quotes: bool = True) -> list[str]:
    """Read the column names in the first line of a CSV.

    Args:
        file: CSV, packed or not.
        separator: one character.
        quotes: whether " encloses fields.

    Raises:
        DataError: the file is empty, or its first line is not UTF-8 text.
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
    counter: LineCounter,
    separator: str = ",",
    names: Sequence[str] | None = None,
    quotes: bool = True,
    first_line: int = 1,
) -> Iterator[pl.DataFrame]:
    """Yield columns of a CSV as text: "" for an empty field, null for one that is not UTF-8.

    Rows with too many or too few fields are counted as malformed. A line number is exact unless a quoted field in the 16 MiB
    before it holds a line break.

    Args:
        file: CSV, packed or not.
        wanted: the columns to read.
        counter: counts rows and malformed rows.
        separator: one character.
        names: the names of all columns; None: the first line has them.
        quotes: whether " encloses fields.
        first_line: 1 to skip the first line, a header; 0 where it holds data.

    Yields:
        The wanted columns and `LINE`, some rows at a time.

    Raises:
        DataError: see `opened` and `LineCounter`.
    """
    names = header(file, separator, quotes) if names is None else names
    broken: list[tuple[int, int]] = []  # malformed rows: the line within the block, and how many lines they take

    def skip_row(row: pacsv.InvalidRow) -> str:
        broken.append((row.number, row.text.count("\n") + 1))
        return "skip"

    parsing = pacsv.ParseOptions(
        delimiter=separator, quote_char='"' if quotes else False, double_quote=quotes, newlines_in_values=quotes,
        ignore_empty_lines=False, invalid_row_handler=skip_row,
    )  # fmt: skip
    binary = dict.fromkeys(wanted, pa.binary())
    converting = pacsv.ConvertOptions(include_columns=list(wanted), column_types=binary, strings_can_be_null=False)
    before, skip = 0, first_line  # lines before the block, lines at its start to skip
    with opened(file) as stream:
        for block in _blocks(stream, quotes):
            broken.clear()
            reading = pacsv.ReadOptions(
                use_threads=False, block_size=len(block) + 1, column_names=names, skip_rows=skip
            )
            lines = block.count(b"\n")
            if lines + (not block.endswith(b"\n")) > skip:
                # from memory: if pyarrow read the stream and the stream broke off, one of its threads would stay behind
                data = pl.from_arrow(pacsv.read_csv(pa.BufferReader(block), reading, parsing, converting))
                assert isinstance(data, pl.DataFrame)
                rows = skip + 1 + np.arange(len(data))
                shift = np.array([line for line, _ in broken], np.int64) - np.arange(len(broken))
                rows = (
                    before + rows + np.searchsorted(shift, rows, side="right")
                )  # a malformed row moves those after it down
                counter.lines += len(data) + sum(count for _, count in broken)
                for line, count in broken:
                    counter.skip(before + line, f"not {len(names)} fields" + ", a quote left open" * (count > 1), count)
                data = pl.DataFrame([_decode(column) for column in data]).with_columns(pl.Series(LINE, rows))
                yield data.filter(pl.any_horizontal((pl.col(list(wanted)) != "").fill_null(True)))  # no empty lines
            before, skip = before + lines, 0


def _blocks(stream: IO[bytes], quotes: bool) -> Iterator[bytes]:
    """Yield the file in blocks of whole lines. A line break inside quotes does not end a line."""
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
    """Find where the last whole line ends; 0: none does yet."""
    last = end = data.rfind(b"\n") + 1
    if quotes and b'"' in data:
        count = data.count(b'"', 0, end)
        while count % 2 and end:  # inside quotes: go back to the line break before
            before = data.rfind(b"\n", 0, end - 1) + 1
            count -= data.count(b'"', before, end)
            end = before
    return last if not end and len(data) > 4 * _BLOCK else end  # a quote that is never closed


def _decode(column: pl.Series) -> pl.Series:
    """Turn bytes into text, null where they are not UTF-8."""
    try:
        return column.cast(pl.String)
    except pl.exceptions.ComputeError:  # rare, so slowly: field by field
        texts = [_utf8(field) for field in column.to_list()]
        return pl.Series(column.name, texts, pl.String)


def _utf8(field: bytes) -> str | None:
    try:
        return field.decode()
    except UnicodeDecodeError:
        return None


def parquet_batches(file: RawFile, wanted: Sequence[str], counter: LineCounter) -> Iterator[pl.DataFrame]:
    """Yield columns of a parquet file in their own types. `LINE` is the number of the row, from 1.

    Raises:
        DataError: the file is damaged, or not parquet.
    """
    with opened(RawFile(file.path)) as stream:
        row = 1
        for batch in pq.ParquetFile(stream).iter_batches(_ROWS, columns=list(wanted)):
            data = pl.from_arrow(batch)
            assert isinstance(data, pl.DataFrame)
            counter.lines += len(data)
            yield data.with_columns(pl.Series(LINE, row + np.arange(len(data))))
            row += len(data)


def json_batches(file: RawFile, wanted: Sequence[str], counter: LineCounter) -> Iterator[pl.DataFrame]:
    """Yield fields of JSON lines as text: null where a field is missing, null, or neither text nor a number.

    Raises:
        DataError: see `records`.
    """
    rows: list[tuple[str | int | None, ...]] = []
    schema = dict.fromkeys(wanted, pl.String) | {LINE: pl.Int64}
    for line, record in records(file, counter):
        rows.append((*(own_id(record.get(name)) for name in wanted), line))
        if len(rows) == _ROWS:
            yield pl.DataFrame(rows, schema=schema, orient="row")
            rows = []
    if rows:
        yield pl.DataFrame(rows, schema=schema, orient="row")
