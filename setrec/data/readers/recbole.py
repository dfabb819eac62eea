"""RecBole's atomic files: .inter and .item, tab-separated, with the type of each column in the header."""

import zipfile
from pathlib import Path
from typing import get_args

from setrec.data.readers.base import EventLog, Reader
from setrec.data.readers.columns import LINE, csv_batches, header
from setrec.data.readers.download import Source
from setrec.data.readers.gather import Events, Items
from setrec.data.readers.lines import LineCounter, RawFile
from setrec.data.readers.table import add_events, require_columns
from setrec.errors import ConfigError, DataError
from setrec.files.tables import TICKS, TimeUnit

_TITLES = ("title", "movie_title", "name", "app_name", "item_name")  # what RecBole's own data sets call a title


class RecBoleFiles(Reader):
    """Reads a data set in RecBole's form, from a folder or from a zip archive.

    The header names each column as "name:type", with the types token, token_seq, float and float_seq. Quotes have no meaning.

    Args:
        dataset: X of X.inter and X.item; null: the only .inter in the raw folder, or in the zip archives inside it.
        user: name of the user's column, without its type.
        item: name of the item's column, in both files.
        timestamp: name of the time's column: numbers since 1970, fractions allowed.
        rating: name of the rating's column; a file without this column has no ratings.
        title: name of the title's column in the .item; null: title, movie_title, name, app_name or item_name.
        text_fields: columns of the .item that an item's text is made from: "title: ...; genre: ..."; null: all of the types
            token and token_seq except the id.
        separator: the character between columns.
        time_unit: of the times; auto: below 1e11 they are seconds, below 1e14 milliseconds, below 1e17 microseconds.
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
        timestamp: str = "timestamp",
        rating: str = "rating",
        title: str | None = None,
        text_fields: list[str] | None = None,
        separator: str = "\t",
        time_unit: TimeUnit = "auto",
        keep_unreviewed: bool = False,
        max_text: int = 2000,
        max_bad_lines: int | float = 0.01,
        download: list[Source] | None = None,
    ) -> None:
        if len(separator) != 1 or time_unit not in get_args(TimeUnit):
            raise ConfigError(f"separator {separator!r} must be one character, time_unit {time_unit!r} a known unit.")
        self.dataset, self.user, self.item, self.timestamp = dataset, user, item, timestamp
        self.rating, self.title, self.text_fields, self.separator = rating, title, text_fields, separator
        self.time_unit, self.keep_unreviewed, self.max_text = time_unit, keep_unreviewed, max_text
        self.max_bad_lines, self.download = max_bad_lines, download

    def sources(self, raw: Path | None) -> list[Path]:
        """See `Reader.sources`."""
        return list(dict.fromkeys(file.path for file in self._files(raw) if file is not None)) if raw else []

    def read(self, raw: Path | None) -> EventLog:
        """See `Reader.read`. Times are in microseconds."""
        inter, about = self._files(raw)
        names = list(self._types(inter))
        rating = self.rating if self.rating in names else None
        wanted = [self.user, self.item, self.timestamp, *([rating] if rating else [])]
        require_columns(inter, wanted, names)
        counter = LineCounter(inter.name, self.max_bad_lines)
        events = Events(counter)
        for batch in csv_batches(inter, wanted, counter, self.separator, names, quotes=False):
            add_events(events, counter, batch, self.user, self.item, self.timestamp, rating, self.time_unit)
        frame = events.frame()
        skipped = {inter.name: counter.skipped}
        items = Items((), None if self.keep_unreviewed else events.items, self.max_text)
        if about is not None:
            skipped[about.name] = self._read_items(about, items)
        return EventLog(frame, items.frame(), TICKS, self.keep_unreviewed, skipped)

    def _read_items(self, file: RawFile, items: Items) -> int:
        """Read the items. Returns the number of malformed lines."""
        types = self._types(file)
        title = self.title or next((name for name in _TITLES if name in types), None)
        texts = [name for name, kind in types.items() if kind.startswith("token") and name != self.item]
        items.text_fields = texts if self.text_fields is None else self.text_fields
        wanted = list(dict.fromkeys([self.item, *([title] if title else []), *items.text_fields]))
        require_columns(file, wanted, list(types))
        counter = LineCounter(file.name, self.max_bad_lines)
        for batch in csv_batches(file, wanted, counter, self.separator, list(types), quotes=False):
            for record in batch.iter_rows(named=True):
                if not record[self.item]:
                    counter.skip(record[LINE], "no item")
                    continue
                items.add(record[self.item], record[title] if title else None, record)
        counter.close()
        return counter.skipped

    def _types(self, file: RawFile) -> dict[str, str]:
        """The type of each column, in order."""
        columns = [name.partition(":") for name in header(file, self.separator, quotes=False)]
        if not any(kind for _, _, kind in columns):
            raise DataError(
                f"{file.name} line 1 names no types (user_id:token and so on); it is not a RecBole file: use TableFiles."
            )
        return {name: kind for name, _, kind in columns}

    def _files(self, raw: Path | None) -> tuple[RawFile, RawFile | None]:
        """Find the .inter and the .item."""
        if raw is None:
            raise DataError("RecBoleFiles needs raw files; pass --data.raw DIR with the folder that holds them.")
        found = [RawFile(path) for path in sorted(raw.rglob("*")) if path.suffix in (".inter", ".item")]
        if not found:
            found = [file for path in sorted(raw.glob("*.zip")) for file in _members(path)]
        named: dict[str, list[RawFile]] = {".inter": [], ".item": []}
        for file in found:
            inside = Path(file.member or file.path.name)
            if self.dataset in (None, inside.stem):
                named[inside.suffix].append(file)
        if len(named[".inter"]) != 1:
            names = ", ".join(file.name for file in named[".inter"][:5]) or "none"
            raise DataError(
                f"{raw} must hold one {self.dataset or ''}.inter, as a file or in a zip, but has {names}; name the data "
                "set with --data.reader.dataset."
            )
        inter = named[".inter"][0]
        stem = Path(inter.member or inter.path.name).stem
        about = [file for file in named[".item"] if Path(file.member or file.path.name).stem == stem]
        return inter, about[0] if about else None


def _members(path: Path) -> list[RawFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name} is no zip archive that can be read ({error}); download it again.") from None
    return [RawFile(path, name) for name in names if Path(name).suffix in (".inter", ".item")]
