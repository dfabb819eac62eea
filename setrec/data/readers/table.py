"""Your own tables: events and items as CSV, parquet or JSON lines. You name the columns."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import polars as pl
import pyarrow.parquet as pq

from setrec.data.readers.base import EventLog, Reader
from setrec.data.readers.columns import LINE, csv_batches, header, json_batches, parquet_batches
from setrec.data.readers.download import Source
from setrec.data.readers.gather import Events, Items, own_id
from setrec.data.readers.lines import LineCounter, RawFile, opened, records
from setrec.errors import ConfigError, DataError
from setrec.files.raw import raw_file
from setrec.files.tables import TICKS, TimeUnit, as_text, times

_JSON = (".json", ".jsonl", ".ndjson")


class TableFiles(Reader):
    """Reads a file of events and, if there is one, a file of items.

    The file's name tells the form: .parquet; .jsonl, .json or .ndjson (one object a line); anything else is CSV with a
    header. CSV and JSON lines may be packed by gzip. Columns that are not named here are not read.

    Args:
        events: the file of events, one event a row: a name inside the raw folder, or a path.
        items: the file of items; null: no titles and no texts. It may be the file of events: of an item's rows, the one with
            the longest text counts.
        user: column of the user's id.
        item: column of the item's id, in both files.
        timestamp: column of the time: numbers since 1970, or ISO dates such as 2014-07-23 or 2014-07-23T10:00:00Z.
        rating: column of the rating, for cleaning.min_rating; null: none.
        item_id: column of the item's id in the file of items; null: the same name as in the events.
        title: column of the item's title; null: none.
        text_fields: columns that an item's text is made from: "title: ...; brand: ..."; null: all except the id.
        columns: names of all columns of an events CSV without header, in order; null: its first line has them.
        separator: the character between the fields of a CSV; null: a tab in .tsv and .txt, else a comma.
        time_unit: of numbers; auto: below 1e11 they are seconds, below 1e14 milliseconds, below 1e17 microseconds.
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
        timestamp: str = "timestamp",
        rating: str | None = None,
        item_id: str | None = None,
        title: str | None = "title",
        text_fields: list[str] | None = None,
        columns: list[str] | None = None,
        separator: str | None = None,
        time_unit: TimeUnit = "auto",
        keep_unreviewed: bool = False,
        max_text: int = 2000,
        max_bad_lines: int | float = 0.01,
        download: list[Source] | None = None,
    ) -> None:
        if time_unit not in get_args(TimeUnit):
            raise ConfigError(f"time_unit {time_unit!r} must be one of {', '.join(get_args(TimeUnit))}.")
        if separator is not None and len(separator) != 1:
            raise ConfigError(f"separator {separator!r} must be one character.")
        self.events, self.items, self.user, self.item, self.timestamp = events, items, user, item, timestamp
        self.rating, self.item_id, self.title, self.text_fields = rating, item_id, title, text_fields
        self.columns, self.separator, self.time_unit = columns, separator, time_unit
        self.keep_unreviewed, self.max_text, self.max_bad_lines = keep_unreviewed, max_text, max_bad_lines
        self.download = download

    def sources(self, raw: Path | None) -> list[Path]:
        """See `Reader.sources`."""
        if raw is None:
            return []
        return [raw_file(name, raw) for name in (self.events, self.items) if name is not None]

    def read(self, raw: Path | None) -> EventLog:
        """See `Reader.read`. Times are in microseconds."""
        file = RawFile(raw_file(self.events, raw))
        counter = LineCounter(file.name, self.max_bad_lines)
        events = Events(counter)
        wanted = [self.user, self.item, self.timestamp, *([self.rating] if self.rating else [])]
        for batch in self._batches(file, wanted, counter, self.columns):
            add_events(events, counter, batch, self.user, self.item, self.timestamp, self.rating, self.time_unit)
        frame = events.frame()
        skipped = {file.name: counter.skipped}
        table = Items((), (), 0).frame()
        if self.items is not None:
            table = self._read_items(RawFile(raw_file(self.items, raw)), None if self.keep_unreviewed else events.items)
            skipped |= self._skipped
        return EventLog(frame, table, TICKS, self.keep_unreviewed, skipped)

    def _batches(
        self, file: RawFile, wanted: Sequence[str], counter: LineCounter, names: list[str] | None
    ) -> Iterator[pl.DataFrame]:
        kind = _kind(file.path)
        if kind == "json":
            return json_batches(file, wanted, counter)
        header_names = names or self._names(file, kind)
        require_columns(file, wanted, header_names)
        if kind == "parquet":
            return parquet_batches(file, wanted, counter)
        return csv_batches(
            file, wanted, counter, self._separator(file.path), header_names, first_line=0 if names else 1
        )

    def _read_items(self, file: RawFile, known: dict[str, int] | None) -> pl.DataFrame:
        key, kind = self.item_id or self.item, _kind(file.path)
        counter = LineCounter(file.name, self.max_bad_lines)
        if kind == "json":
            fields = self.text_fields or _json_fields(file, key)
            items = Items(fields, known, self.max_text)
            for line, record in records(file, counter):
                own = own_id(record.get(key))
                if not own:
                    counter.skip(line, "no item")
                    continue
                items.add(own, record.get(self.title) if self.title else None, record)
        else:
            names = self._names(file, kind)
            require_columns(file, [key, *([self.title] if self.title else []), *(self.text_fields or [])], names)
            fields = [name for name in names if name != key] if self.text_fields is None else self.text_fields
            items = Items(fields, known, self.max_text)
            for batch in self._batches(file, list(dict.fromkeys([key, self.title or key, *fields])), counter, None):
                for own, record in zip(as_text(batch[key]).to_list(), batch.iter_rows(named=True), strict=True):
                    if not own:
                        counter.skip(record[LINE], "no item")
                        continue
                    items.add(own, record[self.title] if self.title else None, record)
        counter.close()
        self._skipped = {file.name: counter.skipped}
        return items.frame()

    def _names(self, file: RawFile, kind: str) -> list[str]:
        if kind == "csv":
            return header(file, self._separator(file.path))
        with opened(file) as stream:
            return list(pq.ParquetFile(stream).schema_arrow.names)

    def _separator(self, path: Path) -> str:
        return self.separator or ("\t" if {".tsv", ".txt"} & set(path.suffixes) else ",")


def add_events(
    events: Events,
    counter: LineCounter,
    batch: pl.DataFrame,
    user: str,
    item: str,
    timestamp: str,
    rating: str | None,
    unit: TimeUnit,
) -> None:
    """Add the rows of a batch that have a user, an item, a time and a readable rating. Count the others as malformed.

    Args:
        events: where they go.
        counter: counts the malformed rows.
        batch: some rows, with the column `LINE`.
        user: column of the user's id.
        item: column of the item's id.
        timestamp: column of the time.
        rating: column of the rating; None: there is none.
        unit: of times that are numbers.

    Raises:
        DataError: see `LineCounter.skip`.
    """
    columns = {"user": as_text(batch[user]), "item": as_text(batch[item]), "time": times(batch[timestamp], unit)}
    if rating is not None:
        stars = batch[rating]
        columns["rating"] = stars.cast(pl.Float32, strict=False).fill_nan(None)
        given = stars.is_not_null() & (stars.cast(pl.String) != "")
        columns["odd"] = given & columns["rating"].is_null()
    rows = pl.DataFrame(columns).with_columns(batch[LINE])
    multiline = pl.col("user", "item").str.contains("\n", literal=True)  # a quote left open swallows lines
    bad = pl.any_horizontal(pl.col("user", "item", "time").is_null(), multiline, *([pl.col("odd")] if rating else []))
    if rows.select(bad.any()).item():
        whens = batch[timestamp].filter(rows.select(bad=bad)["bad"])
        for row, when in zip(rows.filter(bad).iter_rows(named=True), whens, strict=True):
            lacks = next((f"no {name}" for name in ("user", "item") if row[name] is None), None)
            shown = f"time {str(when)[:30]!r}" if row["time"] is None else "the rating is not a number"
            breaks = f"{row['user']}{row['item']}".count("\n")
            counter.skip(row[LINE], lacks or ("a quote left open" if breaks else shown), breaks + 1)
            counter.lines += breaks
    rows = rows.filter(~bad)
    events.add_many(rows["user"], rows["item"], rows["time"], rows["rating"] if rating else None)


def require_columns(file: RawFile, wanted: Sequence[str], names: Sequence[str]) -> None:
    """Check that the file has every wanted column, once.

    Raises:
        DataError: a column is missing or there twice. The message lists the columns of the file.
    """
    for name in wanted:
        if names.count(name) != 1:
            state = "no column" if name not in names else "two columns called"
            raise DataError(
                f"{file.name} has {state} {name!r} (it has {', '.join(names)[:300]}); name the columns with "
                "--data.reader.user, .item, .timestamp, .title and so on."
            )


def _json_fields(file: RawFile, key: str) -> list[str]:
    """Every field of any record, except the id."""
    names = {name for _, record in records(file, LineCounter(file.name, 1.0)) for name in record}
    return sorted(names - {key})


def _kind(path: Path) -> str:
    endings = path.suffixes[-2:]
    if ".parquet" in endings:
        return "parquet"
    return "json" if any(ending in _JSON for ending in endings) else "csv"
