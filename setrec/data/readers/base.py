"""What a reader of raw files returns: a log of events, or a data set that comes with its splits."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import polars as pl

from setrec.data.readers.download import Source
from setrec.files.lines import LineCounter
from setrec.files.ragged import Ragged, Splits
from setrec.files.times import TimeUnit


class EventLog(NamedTuple):
    """Events in the order of the raw file. They are not yet cleaned or split, and have no item and user numbers."""

    events: (
        pl.DataFrame
    )  # user str or categorical, item likewise, time int64 (ticks), optionally rating float, kind likewise
    items: pl.DataFrame  # id str (each once), title str, text str, further columns are kept
    ticks: int = 1  # of `time` in a second; events are put in order by ticks, and split by whole seconds
    keep_unreviewed: bool = False  # items without any raw event enter the catalogue too
    skipped: dict[str, int] | None = None  # malformed lines of each raw file, for the manifest
    files: dict[str, dict[str, Any]] | None = None  # what else there is to say about each file, see `LineCounter.about`
    timed: bool = True  # False: `time` is the place in the file, and nothing to keep


class CSVForm(NamedTuple):
    """How a CSV is written; it is UTF-8."""

    columns: list[str]  # all of them, in order
    skip: int  # lines before the first row
    separator: str
    quotes: bool


class PlainTable(NamedTuple):
    """Events in files that an engine (engines.py) can read itself."""

    paths: list[str]  # of this machine, or fsspec URLs
    csv: CSVForm | None  # None: parquet
    user: str  # columns
    item: str
    time: str
    rating: str | None
    kind: str | None
    time_unit: TimeUnit
    null_words: Sequence[str]
    counter: LineCounter  # of the rows, and of those that lack something


class SplitLog(NamedTuple):
    """A data set that comes with its splits and with item ids 0..N-1."""

    user_ids: list[str]
    items: pl.DataFrame  # row i is item id i: id str, title str, text str, further columns are kept
    train: Ragged
    validation: Ragged
    test: Ragged
    files: dict[str, dict[str, Any]] | None = None  # as in `EventLog`
    times: Splits | None = None  # int64 microseconds since 1970, UTC, `UNKNOWN` where not known; None: there are none
    kinds: Splits | None = None  # uint8, places in `kind_names`; None: the raw data has no kinds
    kind_names: tuple[str, ...] = ()  # "" where an event has none


class Reader(ABC):
    """A source of raw data. A subclass keeps every constructor argument in an attribute of the same name."""

    download: list[Source] | None = (
        None  # where the raw files can be fetched from; most subclasses take it as an argument
    )

    needs_raw: bool = True  # False: it makes its own data, or its files are named by URLs: --data.raw is not needed
    gives_splits: ClassVar[bool] = False  # True: `read` returns a SplitLog, and cleaning and split do not apply

    @abstractmethod
    def read(self, raw: Path | None) -> EventLog | SplitLog:
        """Read everything.

        Args:
            raw: the folder of raw files; None for a reader that needs none.

        Raises:
            DataError: a file is missing or wrong; the message names it and the place.
        """

    def plain(self, raw: Path | None) -> PlainTable | None:
        """Say where the events lie, for an engine that reads them itself; None: only `read` can read them.

        Args:
            raw: the folder of raw files.

        Raises:
            DataError: a file is missing, or only `read` understands an option of this reader.
        """
        return None

    def items_of(self, raw: Path | None, known: Collection[str]) -> EventLog:
        """Read the items of the events that `plain` told of: an `EventLog` without events.

        Args:
            raw: the folder of raw files.
            known: the own ids of the items in the events.
        """
        raise NotImplementedError

    def sources(self, raw: Path | None) -> list[Path]:
        """List the raw files that `read` would use. The data is prepared again when one of them changes.

        Args:
            raw: the folder of raw files.
        """
        return []

    def public(self, name: str) -> list[Source]:
        """List what `prepare` downloads where no raw folder is given.

        Args:
            name: the data set's name (--data.name).
        """
        return [source if isinstance(source, Source) else Source(**source) for source in self.download or []]
