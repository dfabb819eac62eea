"""Big tables in batches: CSV, parquet and JSON lines, packed or not. Every row keeps the number of its line."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from setrec.errors import ConfigError, DataError
from setrec.files.encodings import check_encoding
from setrec.files.ids import own_id
from setrec.files.lines import LineCounter, records, text_lines
from setrec.files.packed import RawFile, opened
from setrec.files.quotes import RowReader

LINE = "\0line"  # the column of line numbers: a name that no file has
_ROWS = 250_000  # rows per batch of parquet and JSON lines
_SEPARATORS = (",", "\t", ";", "|", "::", "\x01")  # that are looked for in a file; the last is Hive's
_ONE_BYTE = "\x1f"  # takes the place of a separator such as ::
_PARQUET, _JSON = (".parquet", ".pq"), (".json", ".jsonl", ".ndjson")
_NAMELESS = re.compile(r"(?:Unnamed: \d+|__index_level_\d+__)?")  # what pandas calls a column without a name
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?\s*')  # a first line that tells Excel the separator
_AROUND = " \t\ufeff"  # what may stand around the name of a column; the last is a second byte order mark
_ODD_QUOTES = "rows with odd quotes, taken as they stand"


@dataclass(frozen=True)
class TableForm:
    """How a table's file is written. null: it is seen from the file.

    Attributes:
        separator: the characters between the fields of a CSV.
        encoding: of a CSV or of JSON lines.
        columns: names of all columns of a CSV without header, in order.
        quotes: whether " encloses fields.
        likely: a separator that is looked for beside the usual ones.
    """

    separator: str | None = None
    encoding: str | None = None
    columns: Sequence[str] | None = None
    quotes: bool = True
    likely: str | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: the separator is empty, or the encoding is unknown.
        """
        check_encoding("encoding", self.encoding)
        if self.separator is not None and (not self.separator or "\n" in self.separator or '"' in self.separator):
            raise ConfigError(f"separator {self.separator!r} must be one or more characters, such as ',' or '::'.")


class Table:
    """A file that is a table.

    Args:
        file: the file. The end of its name tells what it is: .parquet, .json, .jsonl, .ndjson; anything else is CSV.
        form: how it is written.
        needed: columns that it must have.

    Raises:
        DataError: the file is empty, has no readable first line, or names a column twice that is needed.
    """

    def __init__(self, file: RawFile, form: TableForm, needed: Sequence[str]) -> None:
        self.file, self.form = file, form
        self.kind: Literal["csv", "json", "parquet"] = _kind(file)
        self.encoding, self.separator, self.skip, self.blanks = form.encoding, "", 0, False
        self.names: list[str] = []  # of all columns; [] for JSON lines
        if self.kind == "csv":
            self._read_header(needed)
        elif self.kind == "parquet":
            with _parquet(file) as table:
                self.names = list(table.schema_arrow.names)

    @property
    def named(self) -> list[str]:
        """The names of the columns that have one: pandas writes its row numbers into a column without."""
        return [name for name in self.names if not _NAMELESS.fullmatch(name)]

    def _read_header(self, needed: Sequence[str]) -> None:
        """Find the separator and the names of the columns."""
        with_header = self.form.columns is None
        lines = b"".join(_first_chunks(self.file, self.form.encoding)).split(b"\n")
        if not lines[0].strip() and len(lines) < 2:
            what = "it must begin with a line of column names" if with_header else "it must hold rows"
            raise DataError(f"{self.file.name} is empty; {what}.")
        if lines[0].startswith(b"PAR1"):
            raise DataError(f"{self.file.name} is a parquet file: give it a name that ends in .parquet.")
        try:
            first = lines[0].decode()
        except UnicodeDecodeError:
            raise DataError(
                f"{self.file.name} does not begin with a line of UTF-8 text; name its encoding, such as cp1252, gb18030 or "
                "shift_jis, with --data.reader.encoding."
            ) from None
        told = _EXCEL_SEPARATOR.fullmatch(first)
        if told and with_header:
            self.skip, first = 1, lines[1].decode(errors="replace")
        given = (self.form.separator or "").replace("\\t", "\t")  # as it is written on a command line
        self.separator = given or (told[1] if told else self._find_separator(first, needed))
        self.skip += with_header
        names = _split(first, self.separator, self.form.quotes)
        start = f"{first}\n{lines[self.skip].decode(errors='replace') if self.skip < len(lines) else ''}"
        self.blanks = bool(re.search(re.escape(self.separator) + ' +"', start))
        self.names = (
            list(self.form.columns) if self.form.columns is not None else [name.strip(_AROUND) for name in names]
        )

    def _find_separator(self, first: str, needed: Sequence[str]) -> str:
        """The separator under which the first line has the needed columns, or the most columns."""
        usual = "\t" if {".tsv", ".tab"} & set(self.file.endings) else ","
        known = [*_SEPARATORS, *([self.form.likely] if self.form.likely else [])]
        fields = {one: _split(first, one, self.form.quotes) for one in known}

        def fits(one: str) -> tuple[bool, int, bool]:
            names = [name.strip(_AROUND) for name in fields[one]]
            columns = self.form.columns
            right = set(needed) <= set(names) if columns is None else len(names) == len(columns)
            return right, len(names), one == usual

        return max(known, key=fits)

    def require(self, wanted: Iterable[str], advice: str) -> None:
        """Check that the file has every wanted column, once.

        Raises:
            DataError: a column is missing or there twice. The message lists the columns of the file.
        """
        for name in wanted:
            if self.kind != "json" and self.names.count(name) != 1:
                state = "no column" if name not in self.names else "two columns called"
                if len(self.names) == 1:
                    advice = f"tell what stands between the columns with --data.reader.separator, or {advice}"
                raise DataError(
                    f"{self.file.name} has {state} {name!r} (it has {', '.join(self.names)[:300]}); {advice}."
                )

    def batches(self, wanted: Sequence[str], counter: LineCounter) -> Iterator[pl.DataFrame]:
        """Yield columns, some rows at a time, with the line numbers in `LINE`.

        The columns of a CSV are text, "" for an empty field. Those of JSON lines are text, null where a field is missing, null,
        or neither text nor a number. Those of parquet have their own types.

        Args:
            wanted: the columns to read.
            counter: counts the rows, and the malformed ones, which are left out.

        Raises:
            DataError: see `opened` and `LineCounter`.
        """
        if self.kind == "parquet":
            return _parquet_batches(self.file, wanted, counter)
        if self.kind == "json":
            return _json_batches(self.file, wanted, counter, self.encoding)
        return self._csv_batches(wanted, counter)

    def records(self, counter: LineCounter, wanted: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield the number and the wanted columns of every row. A record of JSON lines has all its fields."""
        if self.kind == "json":
            yield from records(self.file, counter, self.encoding)
        else:
            for batch in self.batches(wanted, counter):
                for record in batch.iter_rows(named=True):
                    yield record[LINE], record

    def _csv_batches(self, wanted: Sequence[str], counter: LineCounter) -> Iterator[pl.DataFrame]:
        counter.separator = self.separator
        separator = self.separator if len(self.separator.encode()) == 1 else _ONE_BYTE
        n_fields = len(self.names)
        broken: list[tuple[int, str]] = []  # malformed rows of a block: the number of the row in it, and what is wrong

        def skip_row(row: pacsv.InvalidRow) -> str:
            broken.append((row.number, f"{row.actual_columns} field{'s' * (row.actual_columns > 1)}, not {n_fields}"))
            return "skip"

        quotes = self.form.quotes
        parsing = pacsv.ParseOptions(
            delimiter=separator, quote_char='"' if quotes else False, double_quote=quotes, newlines_in_values=quotes,
            ignore_empty_lines=False, invalid_row_handler=skip_row,
        )  # fmt: skip
        names = [f"{place}" for place in range(n_fields)]  # a column may have no name
        chosen = {names[self.names.index(name)]: name for name in wanted}
        converting = pacsv.ConvertOptions(
            include_columns=list(chosen), column_types=dict.fromkeys(chosen, pa.binary()), strings_can_be_null=False
        )
        chunks = _without_lines(text_lines(self.file, counter, self.encoding), self.skip)
        if separator != self.separator:
            chunks = (chunk.replace(self.separator.encode(), separator.encode()) for chunk in chunks)
        for block in RowReader(separator.encode(), n_fields, self.blanks, quotes).blocks(chunks, self.skip + 1):
            for line, text in block.odd:
                counter.note(line, _ODD_QUOTES, text.replace(separator, self.separator))
            if not block.data:
                continue
            broken.clear()
            # pyarrow would take a byte order mark away that stands at the start of a block, or half of one for an error
            before, skip = (b"\n", 1) if block.data.startswith(b"\xef") else (b"", 0)
            source = pa.BufferReader(
                before + block.data
            )  # from memory: a stream that breaks off would leave a thread behind
            reading = pacsv.ReadOptions(
                use_threads=False, block_size=len(block.data) + 2, column_names=names, skip_rows=skip
            )
            data = pl.from_arrow(pacsv.read_csv(source, reading, parsing, converting))
            assert isinstance(data, pl.DataFrame)
            starts = block.starts if block.starts is not None else np.arange(block.lines)  # (rows,)
            good = np.ones(len(starts), bool)  # (rows,)
            good[[number - 1 - skip for number, _ in broken]] = False
            for number, why in broken:
                counter.skip(block.line + int(starts[number - 1 - skip]), why)
            counter.lines += len(starts)
            data = pl.DataFrame([_decode(data[place]).alias(name) for place, name in chosen.items()])
            data = data.with_columns(pl.Series(LINE, block.line + starts[good][: len(data)]))
            empty = pl.all_horizontal((pl.col(list(wanted)) == "").fill_null(False))
            counter.lines -= int(data.select(empty.sum()).item())  # a line without any field is no row
            yield _without_bad(data.filter(~empty), counter)


@contextmanager
def _parquet(file: RawFile) -> Iterator[pq.ParquetFile]:
    """Open a parquet file. Errors of reading inside the block turn into a DataError."""
    with opened(file) as stream:
        source: Any = stream
        if file.member or not stream.seekable():
            source = pa.BufferReader(stream.read())  # a packed parquet file is small
        try:
            with pq.ParquetFile(source) as table:
                yield table
        except DataError:
            raise
        except (
            pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, TypeError, OverflowError,
        ) as error:  # fmt: skip
            raise DataError(
                f"{file.name} is not a table that can be read ({' '.join(str(error).split())[:200]}); its name says that it is a "
                "parquet file."
            ) from None


def _kind(file: RawFile) -> Literal["csv", "json", "parquet"]:
    if any(ending in _PARQUET for ending in file.endings):
        return "parquet"
    return "json" if any(ending in _JSON for ending in file.endings) else "csv"


def _first_chunks(file: RawFile, encoding: str | None) -> Iterator[bytes]:
    """The first lines of a file."""
    lines = text_lines(file, LineCounter(file.name, 0), encoding)
    for chunk in lines:
        yield chunk[: 1 << 20]
        break
    lines.close()  # type: ignore[attr-defined]


def _split(line: str, separator: str, quotes: bool) -> list[str]:
    """The fields of a line."""
    if len(separator) > 1 or not quotes:
        return [field.strip('"') if quotes else field for field in line.split(separator)]
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True))
    except (csv.Error, StopIteration):
        return line.split(separator)


def _without_lines(chunks: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """Leave out the first lines."""
    for chunk in chunks:
        while skip and chunk:
            _, _, chunk = chunk.partition(b"\n")
            skip -= 1
        if chunk:
            yield chunk


def _decode(column: pl.Series) -> pl.Series:
    """Turn bytes into text, null where they are not UTF-8."""
    try:
        return column.cast(pl.String)
    except pl.exceptions.ComputeError:  # rare, so slowly: field by field
        texts = [_utf8(field) if field is not None else None for field in column.to_list()]
        return pl.Series(column.name, texts, pl.String)


def _utf8(field: bytes) -> str | None:
    try:
        return field.decode()
    except UnicodeDecodeError:
        return None


def _without_bad(data: pl.DataFrame, counter: LineCounter) -> pl.DataFrame:
    """Count and leave out the rows with a field that could not be decoded."""
    names = [name for name in data.columns if name != LINE]
    bad = data.select(bad=pl.any_horizontal(pl.col(names).is_null()))["bad"]
    if not bad.any():
        return data
    for row in data.filter(bad).iter_rows(named=True):
        column = next(name for name in names if row[name] is None)
        counter.skip_undecoded(row[LINE], f" in column {column!r}")
    return data.filter(~bad)


def _parquet_batches(file: RawFile, wanted: Sequence[str], counter: LineCounter) -> Iterator[pl.DataFrame]:
    with _parquet(file) as table:
        row = 1
        for batch in table.iter_batches(_ROWS, columns=list(wanted)):
            data = pl.from_arrow(batch)
            assert isinstance(data, pl.DataFrame)
            data = data.with_columns(_decode(column) for column in data if column.dtype == pl.Binary)
            counter.lines += len(data)
            yield data.with_columns(pl.Series(LINE, row + np.arange(len(data))))
            row += len(data)


def _json_batches(
    file: RawFile, wanted: Sequence[str], counter: LineCounter, encoding: str | None
) -> Iterator[pl.DataFrame]:
    rows: list[tuple[str | int | None, ...]] = []
    schema = dict.fromkeys(wanted, pl.String) | {LINE: pl.Int64}
    for line, record in records(file, counter, encoding):
        rows.append((*(own_id(record.get(name)) for name in wanted), line))
        if len(rows) == _ROWS:
            yield pl.DataFrame(rows, schema=schema, orient="row")
            rows = []
    if rows:
        yield pl.DataFrame(rows, schema=schema, orient="row")
