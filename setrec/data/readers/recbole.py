"""RecBole's atomic files: .inter and .item, tab-separated, with the type of each column in the header."""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from setrec.data.readers.base import EventLog, Reader, SplitLog
from setrec.data.readers.download import Source
from setrec.data.readers.gather import Events, Items
from setrec.data.readers.table import EventColumns, add_events, check_time_unit
from setrec.errors import DataError
from setrec.files.columns import Table, TableForm
from setrec.files.ids import NULL_WORDS
from setrec.files.lines import LineCounter
from setrec.files.packed import RawFile
from setrec.files.ragged import Ragged, Splits
from setrec.files.times import TICKS, TimeUnit

_PARTS = ("train", "valid", "test")  # of a data set that comes split: X.train.inter, X.valid.inter, X.test.inter
_TITLES = ("title", "movie_title", "name", "app_name", "item_name")  # what RecBole's own data sets call a title


class RecBoleFiles(Reader):
    """Reads a data set in RecBole's form, from a folder or from a zip archive.

    The header names each column as "name:type", with the types token, token_seq, float and float_seq. Quotes have no meaning.

    A data set that comes split (X.train.inter, X.valid.inter and X.test.inter) keeps its splits: cleaning and split do not apply,
    and users and items are in order of their own ids.

    Args:
        dataset: X of X.inter and X.item; null: the only .inter in the raw folder, or in the zip archives inside it.
        user: name of the user's column, without its type.
        item: name of the item's column, in both files.
        timestamp: name of the time's column: numbers since 1970, fractions allowed; null: there are no times, and the order of
            the rows is the order of the events.
        rating: name of the rating's column; a file without this column has no ratings.
        title: name of the title's column in the .item; null: title, movie_title, name, app_name or item_name.
        text_fields: columns of the .item that an item's text is made from: "title: ...; genre: ..."; null: all of the types
            token and token_seq except the id.
        separator: the characters between columns.
        encoding: of the files, such as cp1252; null: seen from their first bytes.
        time_unit: of the times; auto: below 1e11 they are seconds, below 1e14 milliseconds, below 1e17 microseconds.
        null_words: ids and texts that mean that nothing is there.
        keep_unreviewed: put items without any event into the catalogue too, as cold items.
        max_text: the most characters of an item's text.
        max_bad_lines: malformed lines that a file may have: a whole number, or (with a decimal point) a share of its lines.
            They are skipped and reported; more of them stop the run.
        download: files to download where --data.raw is not given, such as a zip.
    """

    def __init__(
        self,
        dataset: str | None = None,
        user: str = "user_id",
        item: str = "item_id",
        timestamp: str | None = "timestamp",
        rating: str = "rating",
        title: str | None = None,
        text_fields: list[str] | None = None,
        separator: str = "\t",
        encoding: str | None = None,
        time_unit: TimeUnit = "auto",
        null_words: list[str] = NULL_WORDS,
        keep_unreviewed: bool = False,
        max_text: int = 2000,
        max_bad_lines: int | float = 0.01,
        download: list[Source] | None = None,
    ) -> None:
        check_time_unit(time_unit)
        self._form = TableForm(separator, encoding, quotes=False)
        self.dataset, self.user, self.item, self.timestamp = dataset, user, item, timestamp
        self.rating, self.title, self.text_fields, self.separator = rating, title, text_fields, separator
        self.encoding, self.time_unit, self.null_words = encoding, time_unit, null_words
        self.keep_unreviewed, self.max_text = keep_unreviewed, max_text
        self.max_bad_lines, self.download = max_bad_lines, download

    def sources(self, raw: Path | None) -> list[Path]:
        """See `Reader.sources`."""
        if raw is None:
            return []
        inter, about = self._files(raw)
        return list(dict.fromkeys(file.path for file in (*inter, about) if file is not None))

    def read(self, raw: Path | None) -> EventLog | SplitLog:
        """See `Reader.read`. Times are in microseconds."""
        inter, about = self._files(raw)
        files: dict[str, dict[str, Any]] = {}
        logs = [self._read_events(file, files) for file in inter]
        known = {own for log in logs for own in log["item"].cast(pl.String).unique().to_list()}
        items = Items((), known, self.max_text, keep_all=self.keep_unreviewed, null_words=self.null_words)
        if about is not None:
            files[about.name] = self._read_items(about, items) | items.about(about.name, inter[0].name)
        if len(logs) == 1:
            timed = self.timestamp is not None
            return EventLog(logs[0], items.frame(), TICKS, self.keep_unreviewed, files=files, timed=timed)
        log = _split_log(logs, items.frame(), files)
        return log if self.timestamp is not None else log._replace(times=None)

    def _read_events(self, file: RawFile, files: dict[str, dict[str, Any]]) -> pl.DataFrame:
        table = self._table(file)
        rating = self.rating if self.rating in table.names else None
        columns = EventColumns(self.user, self.item, self.timestamp, rating, self.time_unit, null_words=self.null_words)
        if "item_id_list" in table.names:
            raise DataError(f"{file.name} holds a list of items in each row (item_id_list); give one event a row.")
        table.require(
            columns.wanted,
            "name the columns with --data.reader.user, .item, .timestamp and so on; for events without times, "
            "--data.reader.timestamp null",
        )
        counter = LineCounter(file.name, self.max_bad_lines)
        events = Events(counter)
        add_events(events, counter, [table], columns)
        frame = events.frame()
        files[file.name] = counter.about()
        return frame

    def _read_items(self, file: RawFile, items: Items) -> dict[str, Any]:
        """Read the items. Returns what there is to say about the file."""
        table = self._table(file)
        title = self.title or next((name for name in _TITLES if name in table.names), None)
        texts = [name for name, kind in self._types.items() if kind.startswith("token") and name != self.item]
        items.text_fields = texts if self.text_fields is None else self.text_fields
        wanted = list(dict.fromkeys([self.item, *([title] if title else []), *items.text_fields]))
        table.require(wanted, "name the columns with --data.reader.item, .title and .text_fields")
        counter = LineCounter(file.name, self.max_bad_lines)
        for line, record in table.records(counter, wanted):
            own = record[self.item].strip()
            if not own or own in self.null_words:
                counter.skip(line, "no item", shown=own or None)
                continue
            items.add(own, record[title] if title else None, record)
        counter.close()
        return counter.about()

    def _table(self, file: RawFile) -> Table:
        """Open a file, and take the types from the names of its columns."""
        table = Table(file, self._form, ())
        columns = [name.partition(":") for name in table.names]
        if not any(kind for _, _, kind in columns):
            raise DataError(
                f"{file.name} line 1 names no types (user_id:token and so on); it is not a RecBole file: use TableFiles."
            )
        table.names = [name for name, _, _ in columns]
        self._types = {name: kind for name, _, kind in columns}
        return table

    def _files(self, raw: Path | None) -> tuple[list[RawFile], RawFile | None]:
        """Find the .inter, or the three of a data set that comes split, and the .item."""
        if raw is None:
            raise DataError("RecBoleFiles needs raw files; pass --data.raw DIR with the folder that holds them.")
        found = [RawFile(path) for path in sorted(raw.rglob("*")) if path.suffix in (".inter", ".item")]
        if not found:
            found = [file for path in sorted(raw.glob("*.zip")) for file in _members(path)]
        inter: dict[str, dict[str, RawFile]] = {}  # data set -> part ("" for the whole) -> file
        about: dict[str, RawFile] = {}
        for file in found:
            path = Path(file.member or file.path.name)
            stem, part = path.stem, ""
            if path.suffix == ".inter" and stem.rpartition(".")[2] in _PARTS:
                stem, _, part = stem.rpartition(".")
            if self.dataset not in (None, stem):
                continue
            if path.suffix == ".item":
                about[stem] = file
            else:
                if part in inter.setdefault(stem, {}):
                    raise DataError(f"{raw} holds two files {path.name}; leave one there.")
                inter[stem][part] = file
        if len(inter) != 1:
            names = ", ".join(file.name for parts in inter.values() for file in parts.values()) or "none"
            raise DataError(
                f"{raw} must hold one {self.dataset or ''}.inter, as a file or in a zip, but has {names}; name the data "
                "set with --data.reader.dataset."
            )
        ((stem, parts),) = inter.items()
        if "" in parts:  # the whole data set; what is split lies beside it
            return [parts[""]], about.get(stem)
        lacks = [part for part in _PARTS if part not in parts]
        if lacks:
            raise DataError(
                f"{raw} holds {', '.join(file.name for file in parts.values())}, but no {stem}.{lacks[0]}.inter; a data set "
                "that comes split needs train, valid and test."
            )
        return [parts[part] for part in _PARTS], about.get(stem)


def _split_log(logs: list[pl.DataFrame], items: pl.DataFrame, files: dict[str, dict[str, Any]]) -> SplitLog:
    """Number users and items by their own ids. A user's events of a part are in order of time, and of the file."""

    def numbers(column: str, more: Iterable[str] = ()) -> dict[str, int]:
        used = {own for log in logs for own in log[column].cast(pl.String).unique().to_list()}
        return {own: number for number, own in enumerate(sorted(used | set(more)))}

    users, ids = numbers("user"), numbers("item", items["id"])
    parts, times = [], []
    for log in logs:
        events = log.select(
            pl.col("user").cast(pl.String).replace_strict(users, return_dtype=pl.Int64),
            pl.col("item").cast(pl.String).replace_strict(ids, return_dtype=pl.Int64),
            "time",
        ).sort("user", "time", maintain_order=True)
        lengths = np.bincount(events["user"].to_numpy(), minlength=len(users))  # (users,)
        parts.append(Ragged.from_lengths(lengths, events["item"].to_numpy()))
        times.append(Ragged(parts[-1].offsets, events["time"].to_numpy()))
    table = pl.DataFrame({"id": list(ids)}, {"id": pl.String}).join(items, "id", how="left", maintain_order="left")
    table = table.with_columns(pl.col("title", "text").fill_null(""))
    train, validation, test = parts
    return SplitLog(list(users), table, train, validation, test, files, Splits(*times))


def _members(path: Path) -> list[RawFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name} is no zip archive that can be read ({error}); download it again.") from None
    return [RawFile(path, name) for name in names if Path(name).suffix in (".inter", ".item")]
