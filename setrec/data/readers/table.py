"""Your own tables: events and items as CSV, parquet or JSON lines. You name the columns."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import polars as pl

from setrec.data.readers.base import CSVForm, EventLog, PlainTable, Reader
from setrec.data.readers.download import Source
from setrec.data.readers.gather import Events, Items
from setrec.errors import ConfigError, DataError
from setrec.files.columns import LINE, Table, TableForm
from setrec.files.ids import NULL_WORDS, as_text, own_id
from setrec.files.lines import Count, LineCounter, records
from setrec.files.packed import RawFile, inside
from setrec.files.parts import is_url, parquet_parts
from setrec.files.raw import raw_file
from setrec.files.times import TICKS, TimeUnit, time_form, times

_NO_HEADER = "; if it has no header, name all its columns in order with --data.reader.{}"
_CALL_IT = "name the columns with --data.reader.user, .item, .timestamp, .title and so on"


class TableFiles(Reader):
    """Reads a file of events and, if there is one, a file of items.

    The file's name tells the form: .parquet; .jsonl, .json or .ndjson (one object a line, or one array); anything else is CSV.
    Each may be packed by gzip, bzip2 or xz, or be the only file in a zip archive. Columns that are not named here are not read.
    Encoding and separator are seen from each file where they are not told.

    Ids are text without blanks around it. In a column of whole numbers, 1.0 is 1.

    Args:
        events: the file of events, one event a row: a name inside the raw folder, or a path. Or many parquet files: a folder, a
            pattern such as events/*.parquet, or an fsspec URL of either (s3://bucket/events), which is read anew only if the
            prepared data is deleted.
        items: the file of items; null: no titles and no texts. It may be the file of events: of an item's rows, the one with
            the longest text counts.
        user: column of the user's id.
        item: column of the item's id, in both files.
        timestamp: column of the time: numbers since 1970, ISO dates such as 2014-07-23 or 2014-07-23T10:00:00Z, and other common
            forms; null: there are no times, and the order of the rows is the order of the events.
        rating: column of the rating, for cleaning.min_rating; null: none.
        kind: column of the kind of an event, such as view, cart or buy, which is kept; null: none.
        item_id: column of the item's id in the file of items; null: the same name as in the events.
        title: column of the item's title; null: none.
        text_fields: columns that an item's text is made from: "title: ...; brand: ..."; null: all except the id.
        columns: names of all columns of an events CSV without header, in order; null: its first line has them.
        item_columns: the same for the file of items.
        separator: the characters between the fields of a CSV, such as ; or ::; null: seen from the first line.
        item_separator: the same for the file of items; each file may have its own.
        encoding: of the file of events, such as cp1252, utf-16 or gb18030; null: seen from its first bytes (UTF-8, UTF-16, or
            cp1252 for western text that is not UTF-8).
        item_encoding: the same for the file of items.
        time_unit: of numbers; auto: below 1e11 they are seconds, below 1e14 milliseconds, below 1e17 microseconds.
        time_format: form of the times as Python's strptime writes it, such as %d/%m/%Y; null: seen from the times.
        null_words: ids and texts that mean that nothing is there.
        keep_unreviewed: put items without any event into the catalogue too, as cold items.
        max_text: the most characters of an item's text.
        max_bad_lines: malformed lines that a file may have: a whole number, or (with a decimal point) a share of its lines.
            They are skipped and reported; more of them stop the run.
        download: files to download where --data.raw is not given.
    """

    def __init__(
        self,
        events: str = "events.csv",
        items: str | None = None,
        user: str = "user_id",
        item: str = "item_id",
        timestamp: str | None = "timestamp",
        rating: str | None = None,
        item_id: str | None = None,
        title: str | None = "title",
        text_fields: list[str] | None = None,
        columns: list[str] | None = None,
        item_columns: list[str] | None = None,
        separator: str | None = None,
        item_separator: str | None = None,
        encoding: str | None = None,
        item_encoding: str | None = None,
        time_unit: TimeUnit = "auto",
        time_format: str | None = None,
        null_words: list[str] = NULL_WORDS,
        keep_unreviewed: bool = False,
        max_text: int = 2000,
        max_bad_lines: int | float = 0.01,
        download: list[Source] | None = None,
        kind: str | None = None,
    ) -> None:
        check_time_unit(time_unit)
        self._events_form = TableForm(separator, encoding, columns)
        self._items_form = TableForm(item_separator, item_encoding, item_columns, likely=separator)
        self.events, self.items, self.user, self.item, self.timestamp = events, items, user, item, timestamp
        self.rating, self.item_id, self.title, self.text_fields = rating, item_id, title, text_fields
        self.columns, self.separator, self.encoding = columns, separator, encoding
        self.item_columns, self.item_separator, self.item_encoding = item_columns, item_separator, item_encoding
        self.time_unit, self.time_format, self.null_words = time_unit, time_format, null_words
        self.keep_unreviewed, self.max_text, self.max_bad_lines = keep_unreviewed, max_text, max_bad_lines
        self.download, self.kind = download, kind
        self.needs_raw = not is_url(events)

    def sources(self, raw: Path | None) -> list[Path]:
        """See `Reader.sources`. Remote files are not among them."""
        if raw is None:
            return []
        parts = parquet_parts(self.events, raw)
        events = [raw_file(self.events, raw)] if parts is None else [part.path for part in parts if not part.url]
        return [*events, *([raw_file(self.items, raw)] if self.items is not None else [])]

    def read(self, raw: Path | None) -> EventLog:
        """See `Reader.read`. Times are in microseconds."""
        tables, columns, name = self._tables(raw)
        counter = LineCounter(name, self.max_bad_lines)
        events = Events(counter)
        add_events(events, counter, tables, columns)
        frame = events.frame()
        log = self.items_of(raw, events.items)
        files = {name: counter.about()} | (log.files or {})
        return log._replace(events=frame, files=files, timed=self.timestamp is not None)

    def plain(self, raw: Path | None) -> PlainTable:
        """See `Reader.plain`."""
        tables, _, name = self._tables(raw)
        table, advice = tables[0], "use --data.engine PolarsEngine, which can read it, or write the events as parquet"
        form = None
        if self.timestamp is None:
            raise DataError(
                f"{name}: without times, the order of the rows counts, which an engine does not keep; {advice}."
            )
        look = LineCounter("", 1.0)
        first = next(iter(table.batches([self.timestamp], look)), None)
        if table.kind == "csv":
            if look.encoding != "utf-8" or len(table.separator.encode()) > 1 or _packed(table.file):
                raise DataError(f"{name} is no plain CSV in UTF-8 with a separator of one character; {advice}.")
            form = CSVForm(table.names, table.skip, table.separator, self._events_form.quotes)
        elif table.kind == "json" or _packed(table.file):
            raise DataError(f"{name} is neither parquet nor a plain CSV; {advice}.")
        if self.time_format is not None or (
            first is not None and time_form([first[self.timestamp]], self.time_unit, name, advice) is not None
        ):
            raise DataError(
                f"{name}: only PolarsEngine reads times in a form of their own (--data.reader.time_format)."
            )
        paths = [table.file.url or str(table.file.path.resolve()) for table in tables]
        counter = LineCounter(name, self.max_bad_lines)
        return PlainTable(
            paths, form, self.user, self.item, self.timestamp, self.rating, self.kind, self.time_unit, self.null_words, counter
        )  # fmt: skip

    def items_of(self, raw: Path | None, known: Collection[str]) -> EventLog:
        """See `Reader.items_of`."""
        no_events = pl.DataFrame()
        if self.items is None:
            return EventLog(no_events, Items((), (), 0).frame(), TICKS, self.keep_unreviewed, files={})
        parts = parquet_parts(self.events, raw)
        about = inside(raw_file(self.items, raw))
        file = inside(raw_file(self.events, raw)) if parts is None else None
        found, counter = self._read_items(about, about == file, known, self.keep_unreviewed)
        events = file.name if file is not None else self.events
        key = about.name if about.name != events else f"{about.name} (items)"
        files = {key: counter.about() | found.about(about.name, events)}
        return EventLog(no_events, found.frame(), TICKS, self.keep_unreviewed, files=files)

    def _tables(self, raw: Path | None) -> "tuple[list[Table], EventColumns, str]":
        """The files of the events, their columns, and what messages call all of them."""
        columns = EventColumns(
            self.user,
            self.item,
            self.timestamp,
            self.rating,
            self.time_unit,
            self.time_format,
            self.null_words,
            self.kind,
        )
        parts = parquet_parts(self.events, raw)
        files = [inside(raw_file(self.events, raw))] if parts is None else parts
        tables = [Table(file, self._events_form, columns.wanted) for file in files]
        for table in tables:
            table.require([self.user, self.item], _CALL_IT + _NO_HEADER.format("columns"))
            table.require(columns.wanted, f"{_CALL_IT}; for events without times, --data.reader.timestamp null")
        return tables, columns, files[0].name if parts is None else self.events

    def read_items(self, file: Path, known: Collection[str]) -> pl.DataFrame:
        """Read a file of items alone, with the columns of `items`: id, text, title and a column for each field.

        Args:
            file: the file.
            known: ids that items have so far; in a column of whole numbers, 1.0 is 1.

        Raises:
            DataError: see `Reader.read`.
        """
        return self._read_items(inside(raw_file(str(file), None)), False, known, keep_all=True)[0].frame()

    def _read_items(
        self, file: RawFile, in_events: bool, known: Collection[str], keep_all: bool
    ) -> tuple[Items, LineCounter]:
        key = self.item_id or self.item
        form = self._items_form
        if in_events:  # the items stand in the events
            form = self._events_form
        counter = LineCounter(file.name, self.max_bad_lines, encoding_option="--data.reader.item_encoding")
        required = [key, *([self.title] if self.title else []), *(self.text_fields or [])]
        table = Table(file, form, required)
        fields = self.text_fields
        if fields is None:
            fields = [name for name in table.named if name != key] if table.names else _json_fields(table, key)
        wanted = list(dict.fromkeys([key, *([self.title] if self.title else []), *fields]))
        table.require(wanted, _CALL_IT + _NO_HEADER.format("item_columns"))
        items = Items(fields, known, self.max_text, keep_all=keep_all, null_words=self.null_words)
        for line, record in table.records(counter, wanted):
            own = own_id(record[key]) if key in record else None
            own = own.strip() if own else own
            if not own or own in self.null_words:
                counter.skip(line, "no item", shown=own or None)
                continue
            items.add(own, record.get(self.title) if self.title else None, record)
        counter.close()
        nameless = len(table.names) - len(table.named)
        if nameless and self.text_fields is None:
            counter.notes[f"{nameless} column{'s' * (nameless > 1)} without a name left out"] = Count(counter.lines)
        return items, counter


def check_time_unit(unit: str) -> None:
    """Check the name of a unit.

    Raises:
        ConfigError: it is unknown.
    """
    if unit not in get_args(TimeUnit):
        raise ConfigError(f"time_unit {unit!r} must be one of {', '.join(get_args(TimeUnit))}.")


@dataclass(frozen=True)
class EventColumns:
    """The columns of events, and what stands in them.

    Attributes:
        user: the user's id.
        item: the item's id.
        timestamp: the time; None: the number of the row is the time.
        rating: the rating; None: there is none.
        time_unit: of times that are numbers.
        time_format: form of the times for strptime; None: seen from the times.
        null_words: ids that are none.
        kind: the kind of the event; None: there is none.
    """

    user: str
    item: str
    timestamp: str | None
    rating: str | None
    time_unit: TimeUnit = "auto"
    time_format: str | None = None
    null_words: Sequence[str] = ()
    kind: str | None = None

    @property
    def wanted(self) -> list[str]:
        """The columns to read."""
        named = (self.user, self.item, self.timestamp, self.rating, self.kind)
        return list(dict.fromkeys(name for name in named if name))


def add_events(events: Events, counter: LineCounter, tables: Sequence[Table], columns: EventColumns) -> None:
    """Add the rows that have a user, an item, a time and a readable rating. Count the others as malformed.

    Args:
        events: where they go.
        counter: counts the rows, and the malformed ones.
        tables: the file, or its parts.
        columns: its columns.

    Raises:
        DataError: see `LineCounter.skip` and `time_form`.
    """
    form = columns.time_format
    if form is None and columns.timestamp is not None:
        one, other = [columns.timestamp], LineCounter("", 1.0)
        first = (batch[columns.timestamp] for table in tables for batch in table.batches(one, other))
        place = f"{counter.file}, column {columns.timestamp!r}"
        advice = "say it with --data.reader.time_format, such as '%d/%m/%Y' (day first) or '%m/%d/%Y'."
        form = time_form(first, columns.time_unit, place, advice)
    for table in tables:
        before = counter.lines  # in the parts before
        for batch in table.batches(columns.wanted, counter):
            if columns.rating is not None and table.separator not in (
                "",
                ",",
            ):  # where a comma is free, 4,5 is a number
                batch = batch.with_columns(pl.col(columns.rating).str.replace(",", ".", literal=True))
            if before:
                batch = batch.with_columns(pl.col(LINE) + before)
            _add_batch(events, counter, batch, columns, form)
    if columns.timestamp is None:
        counter.notes["no times: the order of the rows is the order of the events"] = Count(counter.lines)


def _add_batch(
    events: Events, counter: LineCounter, batch: pl.DataFrame, columns: EventColumns, form: str | None
) -> None:
    user, item = (as_text(batch[name], columns.null_words) for name in (columns.user, columns.item))
    when = batch[LINE] if columns.timestamp is None else times(batch[columns.timestamp], columns.time_unit, form)
    read = {"user": user, "item": item, "time": when.cast(pl.Int64)}
    if columns.timestamp is None:
        read["time"] = read["time"] * TICKS
    rating = None if columns.rating is None else batch[columns.rating]
    odd = pl.lit(False)
    if rating is not None:
        text = rating.cast(pl.String, strict=False).str.strip_chars()
        empty = text.is_in(["", *columns.null_words]) | text.is_null()
        read["rating"] = text.cast(pl.Float32, strict=False).fill_nan(None)
        odd = ~pl.lit(empty) & pl.col("rating").is_null()
    if columns.kind is not None:
        read["kind"] = as_text(batch[columns.kind], columns.null_words).fill_null("")
    rows = pl.DataFrame({name: column.alias(name) for name, column in read.items()}).with_columns(batch[LINE])
    multiline = pl.col("user", "item").str.contains("\n", literal=True)  # a quote left open swallows lines
    bad = rows.select(bad=pl.any_horizontal(pl.col("user", "item", "time").is_null(), multiline, odd))["bad"]
    if bad.any():
        _count_bad(counter, rows.filter(bad), batch.filter(bad), columns)
        rows = rows.filter(~bad)
    more = {name: rows[name] for name in ("rating", "kind") if name in rows.columns}
    events.add_many(rows["user"], rows["item"], rows["time"], **more)


def _count_bad(counter: LineCounter, rows: pl.DataFrame, batch: pl.DataFrame, columns: EventColumns) -> None:
    for row, raw in zip(rows.iter_rows(named=True), batch.iter_rows(named=True), strict=True):
        lacks = next((name for name in ("user", "item") if row[name] is None), None)
        breaks = f"{row['user']}{row['item']}".count("\n")
        if lacks is not None:
            counter.skip(row[LINE], f"no {lacks}", shown=raw[columns.user if lacks == "user" else columns.item] or None)
        elif breaks:
            counter.skip(row[LINE], "a quote left open", breaks + 1)
            counter.lines += breaks
        elif row["time"] is None:
            counter.skip(row[LINE], "no time", shown=raw[columns.timestamp or ""] or None)
        else:
            counter.skip(row[LINE], "the rating is no number", shown=raw[columns.rating or ""])


def _packed(file: RawFile) -> bool:
    """Whether a file is packed by gzip, bzip2 or xz, or stands in an archive."""
    return bool(file.member) or any(ending in (".gz", ".bz2", ".xz") for ending in file.endings)


def _json_fields(table: Table, key: str) -> list[str]:
    """Every field of any record, except the id."""
    found = {
        name for _, record in records(table.file, LineCounter(table.file.name, 1.0), table.encoding) for name in record
    }
    return sorted(name for name in found - {key} if name.strip())
