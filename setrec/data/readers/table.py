"""Your own tables: events and items as CSV, parquet or JSON lines, with the columns named by you."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import polars as pl
import pyarrow.parquet as pq

from setrec.data.readers.base import EventLog, Reader
from setrec.data.readers.columns import (
    LINE,
    TICKS,
    TimeUnit,
    as_text,
    csv_batches,
    header,
    json_batches,
    parquet_batches,
    times,
)
from setrec.data.readers.download import Source
from setrec.data.readers.gather import Events, Items, own_id
from setrec.data.readers.lines import RawFile, Tally, opened, records
from setrec.errors import ConfigError, DataError
from setrec.files.raw import raw_file

_JSON = (".json", ".jsonl", ".ndjson")


class TableFiles(Reader):
    """A file of events and, where there is one, a file of items.

    The form goes by the name: .parquet; .jsonl, .json or .ndjson (one object a line); anything else is CSV with a
    header. CSV and JSON lines may be packed by gzip. Columns that are not named here are not read.

    Args:
        events: the file of events, one a row: a name inside the raw folder, or a path.
        items: the file of items; null: no titles and no texts. It may be the file of events again: an item's row with
            the longest text counts.
        user: column of the user's id.
        item: column of the item's id, in both files.
        timestamp: column of the time: a number since 1970 or an ISO date such as 2014-07-23 or 2014-07-23T10:00:00Z.
        rating: column of the rating, for cleaning.min_rating; null: none.
        item_id: column of the item's id in the file of items; null: called as in the events.
        title: column of the item's title; null: none.
        text_fields: columns that the item's text is made from, "title: ...; brand: ..."; null: all but the id.
        columns: names of the columns of an events CSV without header, in order; null: its first line has them.
        separator: between the fields of a CSV; null: a tab in .tsv and .txt, otherwise a comma.
        time_unit: of numbers; auto: below 1e11 they are seconds, below 1e14 milliseconds, below 1e17 microseconds.
        keep_unreviewed: put items that no event speaks of into the catalogue too: cold items, known by their text.
        max_text: characters of text per item that are kept.
        max_bad_lines: malformed lines per file that are skipped and reported: a whole number of them, or (with a
            decimal point) a share of the lines; more stop the run.
        download: where the files can be fetched from when --data.raw is not given.
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
        if raw is None:
            return []
        return [raw_file(name, raw) for name in (self.events, self.items) if name is not None]

    def read(self, raw: Path | None) -> EventLog:
        """See `Reader.read`. Times are in microseconds."""
        file = RawFile(raw_file(self.events, raw))
        tally = Tally(file.name, self.max_bad_lines)
        events = Events(tally)
        wanted = [self.user, self.item, self.timestamp, *([self.rating] if self.rating else [])]
        for batch in self._batches(file, wanted, tally, self.columns):
            add_events(events, tally, batch, self.user, self.item, self.timestamp, self.rating, self.time_unit)
        frame = events.frame()
        skipped = {file.name: tally.skipped}
        table = Items((), (), 0).frame()
        if self.items is not None:
            table = self._read_items(RawFile(raw_file(self.items, raw)), None if self.keep_unreviewed else events.items)
            skipped |= self._skipped
        return EventLog(frame, table, TICKS, self.keep_unreviewed, skipped)

    def _batches(
        self, file: RawFile, wanted: Sequence[str], tally: Tally, names: list[str] | None
    ) -> Iterator[pl.DataFrame]:
        kind = _kind(file.path)
        if kind == "json":
            return json_batches(file, wanted, tally)
        there = names or self._names(file, kind)
        require(file, wanted, there)
        if kind == "parquet":
            return parquet_batches(file, wanted, tally)
        return csv_batches(file, wanted, tally, self._separator(file.path), there, first_line=0 if names else 1)

    def _read_items(self, file: RawFile, known: dict[str, int] | None) -> pl.DataFrame:
        key, kind = self.item_id or self.item, _kind(file.path)
        tally = Tally(file.name, self.max_bad_lines)
        if kind == "json":
            fields = self.text_fields or _json_fields(file, key)
            items = Items(fields, known, self.max_text)
            for line, record in records(file, tally):
                own = own_id(record.get(key))
                if not own:
                    tally.bad(line, "no item")
                    continue
                items.put(own, record.get(self.title) if self.title else None, record)
        else:
            there = self._names(file, kind)
            require(file, [key, *([self.title] if self.title else []), *(self.text_fields or [])], there)
            fields = [name for name in there if name != key] if self.text_fields is None else self.text_fields
            items = Items(fields, known, self.max_text)
            for batch in self._batches(file, list(dict.fromkeys([key, self.title or key, *fields])), tally, None):
                for own, record in zip(as_text(batch[key]).to_list(), batch.iter_rows(named=True), strict=True):
                    if not own:
                        tally.bad(record[LINE], "no item")
                        continue
                    items.put(own, record[self.title] if self.title else None, record)
        tally.close()
        self._skipped = {file.name: tally.skipped}
        return items.frame()

    def _names(self, file: RawFile, kind: str) -> list[str]:
        if kind == "csv":
            return header(file, self._separator(file.path))
        with opened(file) as stream:
            return pq.ParquetFile(stream).schema_arrow.names

    def _separator(self, path: Path) -> str:
        return self.separator or ("\t" if {".tsv", ".txt"} & set(path.suffixes) else ",")


def add_events(
    events: Events,
    tally: Tally,
    batch: pl.DataFrame,
    user: str,
    item: str,
    timestamp: str,
    rating: str | None,
    unit: TimeUnit,
) -> None:
    """Put the rows of a batch that have a user, an item, a time and a readable rating; count the others.

    Raises:
        DataError: see `Tally.bad`.
    """
    columns = {"user": as_text(batch[user]), "item": as_text(batch[item]), "time": times(batch[timestamp], unit)}
    if rating is not None:
        stars = batch[rating]
        columns["rating"] = stars.cast(pl.Float32, strict=False).fill_nan(None)
        given = stars.is_not_null() & (stars.cast(pl.String) != "")
        columns["odd"] = given & columns["rating"].is_null()
    rows = pl.DataFrame(columns).with_columns(batch[LINE])
    torn = pl.col("user", "item").str.contains("\n", literal=True)  # a quote left open swallows lines
    bad = pl.any_horizontal(pl.col("user", "item", "time").is_null(), torn, *([pl.col("odd")] if rating else []))
    if rows.select(bad.any()).item():
        whens = batch[timestamp].filter(rows.select(bad=bad)["bad"])
        for row, when in zip(rows.filter(bad).iter_rows(named=True), whens, strict=True):
            lacks = next((f"no {name}" for name in ("user", "item") if row[name] is None), None)
            shown = f"time {str(when)[:30]!r}" if row["time"] is None else "the rating is no number"
            breaks = f"{row['user']}{row['item']}".count("\n")
            tally.bad(row[LINE], lacks or ("a quote left open" if breaks else shown), breaks + 1)
            tally.lines += breaks
    rows = rows.filter(~bad)
    events.add(rows["user"], rows["item"], rows["time"], rows["rating"] if rating else None)


def require(file: RawFile, wanted: Sequence[str], there: Sequence[str]) -> None:
    """Check that the columns are there, each once.

    Raises:
        DataError: one is missing or there twice; the message lists those that are there.
    """
    for name in wanted:
        if there.count(name) != 1:
            state = "no column" if name not in there else "two columns called"
            raise DataError(
                f"{file.name} has {state} {name!r} (it has {', '.join(there)[:300]}); name the columns with "
                "--data.reader.user, .item, .timestamp, .title and so on."
            )


def _json_fields(file: RawFile, key: str) -> list[str]:
    """Every field that any of the records has, but the id."""
    names = {name for _, record in records(file, Tally(file.name, 1.0)) for name in record}
    return sorted(names - {key})


def _kind(path: Path) -> str:
    endings = path.suffixes[-2:]
    if ".parquet" in endings:
        return "parquet"
    return "json" if any(ending in _JSON for ending in endings) else "csv"
