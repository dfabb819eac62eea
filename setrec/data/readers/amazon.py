"""Amazon reviews of 2014, 2018 and 2023 (McAuley Lab, UC San Diego): reviews and metadata, one record a line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from setrec.data.readers.base import EventLog, Reader
from setrec.data.readers.download import Source
from setrec.data.readers.gather import Events, Items
from setrec.data.readers.table import EventColumns, add_events
from setrec.errors import ConfigError, DataError
from setrec.files.columns import Table, TableForm
from setrec.files.ids import own_id
from setrec.files.lines import LineCounter, records
from setrec.files.packed import RawFile
from setrec.files.raw import raw_file

Field = Literal["title", "description", "categories", "brand", "price", "features"]
_TDCB: list[Field] = ["title", "description", "categories", "brand"]
_ENDINGS = (".json", ".jsonl", ".csv")


class _Keys(NamedTuple):
    """The names of an edition's fields."""

    user: str
    item: str
    time: str
    rating: str
    ticks: int  # of its times, in a second


_OLD = _Keys("reviewerID", "asin", "unixReviewTime", "overall", 1)
_NEW = _Keys("user_id", "parent_asin", "timestamp", "rating", 1000)
_SERVER = "https://mcauleylab.ucsd.edu/public_datasets/data"
_PUBLIC = {  # edition -> reviews, metadata
    2014: ("https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/", "reviews_{}_5.json.gz", "", ""),
    2018: (f"{_SERVER}/amazon_v2/", "{}_5.json.gz", "categoryFilesSmall/", "metaFiles2/"),
    2023: (f"{_SERVER}/amazon_2023/raw/", "{}.jsonl.gz", "review_categories/", "meta_categories/"),
}


class AmazonReviews(Reader):
    """Reads the reviews of one category, and the products' metadata for titles and texts.

    Reads reviews_X_5.json and meta_X.json of 2014 (metadata as Python literals), X_5.json and meta_X.json of 2018, X.jsonl
    and meta_X.jsonl of 2023 (items are parent_asin) or its X.csv with ratings only; each packed by gzip or not. A product's own
    id is its ASIN. The paper's Toys: edition 2014, category Toys_and_Games, paper_ids true.

    Args:
        edition: 2014, 2018 or 2023; null: seen from the first review.
        category: as in the file names, such as Toys_and_Games. Needed to download, and where a folder holds several.
        reviews: name of the file of reviews; null: found by its name.
        metadata: name of the file of metadata; null: found by its name. Without one, titles and texts are empty.
        text_fields: fields that an item's text is made from, in this order: "title: ...; description: ...". Empty fields are
            left out (paper: title, description, categories, brand).
        keep_unreviewed: put products without any review into the catalogue too, as cold items.
        max_text: the most characters of an item's text.
        max_bad_lines: malformed lines that a file may have: a whole number, or (with a decimal point) a share of its lines.
            They are skipped and reported; more of them stop the run.
        download: files to download where --data.raw is not given; null: those of the category, from the lab's server.
    """

    def __init__(
        self,
        edition: Literal[2014, 2018, 2023] | None = None,
        category: str | None = None,
        reviews: str | None = None,
        metadata: str | None = None,
        text_fields: list[Field] = _TDCB,
        keep_unreviewed: bool = False,
        max_text: int = 2000,
        max_bad_lines: int | float = 0.01,
        download: list[Source] | None = None,
    ) -> None:
        self.edition, self.category, self.reviews, self.metadata = edition, category, reviews, metadata
        self.text_fields, self.keep_unreviewed, self.max_text = text_fields, keep_unreviewed, max_text
        self.max_bad_lines, self.download = max_bad_lines, download

    def sources(self, raw: Path | None) -> list[Path]:
        """See `Reader.sources`."""
        return [path for path in self._files(raw) if path is not None] if raw is not None else []

    def public(self, name: str) -> list[Source]:
        """See `Reader.public`.

        Raises:
            ConfigError: no category is named.
        """
        if self.download is not None:
            return super().public(name)
        if self.category is None:
            raise ConfigError(
                "no raw files are given; pass --data.raw DIR, or name what to download with --data.reader.category "
                "(such as Toys_and_Games) and --data.reader.edition (default: 2014)."
            )
        server, reviews, in_reviews, in_metadata = _PUBLIC[self.edition or 2014]
        reviews = reviews.format(self.category)
        metadata = f"meta_{self.category}.json{'l' if self.edition == 2023 else ''}.gz"
        return [Source(server + in_reviews + reviews), Source(server + in_metadata + metadata)]

    def read(self, raw: Path | None) -> EventLog:
        """See `Reader.read`. Times are in seconds, those of 2023 in milliseconds."""
        reviews, metadata = (RawFile(path) if path is not None else None for path in self._files(raw))
        assert reviews is not None, "_files gives it or raises"
        counter = LineCounter(reviews.name, self.max_bad_lines)
        events = Events(counter)
        keys = self._read_reviews(reviews, events, counter)
        frame = events.frame()
        items = Items(
            self.text_fields, events.items, self.max_text, ("category", "brand"), keep_all=self.keep_unreviewed
        )
        files = {reviews.name: counter.about()}
        if metadata is not None:
            files[metadata.name] = self._read_metadata(metadata, items) | items.about(metadata.name, reviews.name)
        return EventLog(frame, items.frame(), keys.ticks, self.keep_unreviewed, files=files)

    def _read_reviews(self, file: RawFile, events: Events, counter: LineCounter) -> _Keys:
        keys = {2014: _OLD, 2018: _OLD, 2023: _NEW}.get(self.edition or 0)
        if ".csv" in file.path.suffixes:
            table = Table(file, TableForm(","), _NEW[:4])
            table.require(_NEW[:4], "it is no file of ratings of 2023")
            add_events(events, counter, [table], EventColumns(*_NEW[:4], time_unit="us"))  # times as they are
            return _NEW
        for line, record in records(file, counter):
            if keys is None:
                keys = _NEW if _NEW.item in record or _NEW.user in record else _OLD
            events.add(
                line, record.get(keys.user), record.get(keys.item), record.get(keys.time), record.get(keys.rating)
            )
        return keys or _OLD

    def _read_metadata(self, file: RawFile, items: Items) -> dict[str, Any]:
        """Read the products. Returns what there is to say about the file."""
        counter = LineCounter(file.name, self.max_bad_lines)
        for line, record in records(file, counter):
            own = own_id(record.get(_NEW.item) or record.get(_OLD.item))
            if not own:
                counter.skip(line, "no asin")
                continue
            items.add(own, record.get("title"), product(record))
        counter.close()
        return counter.about()

    def _files(self, raw: Path | None) -> tuple[Path, Path | None]:
        """Find the files of the reviews and of the metadata."""
        if raw is None:
            raise DataError("AmazonReviews needs raw files; pass --data.raw DIR with the folder that holds them.")
        found = sorted(path for path in raw.iterdir() if path.name.removesuffix(".gz").endswith(_ENDINGS))
        if self.category is not None:
            found = [path for path in found if _category(path.name) == self.category.lower()]
        about = [path for path in found if path.name.startswith("meta_")]
        reviews = (
            raw_file(self.reviews, raw) if self.reviews else _only([p for p in found if p not in about], raw, "reviews")
        )
        if reviews is None:
            raise DataError(
                f"{raw} holds no file of reviews (X.json, X.jsonl or X.csv, .gz or not"
                f"{f', of {self.category}' if self.category else ''}); name it with --data.reader.reviews FILE."
            )
        return reviews, raw_file(self.metadata, raw) if self.metadata else _only(about, raw, "metadata")


def product(record: Mapping[str, object]) -> dict[str, object]:
    """Return a product's fields under the names of `Field`, whatever its edition calls them."""
    categories = record.get("categories") or record.get("category")
    return {
        "title": record.get("title"),
        "description": record.get("description"),
        "categories": categories,
        "brand": record.get("brand") or record.get("store"),
        "price": record.get("price"),
        "features": record.get("features") or record.get("feature"),
        "category": record.get("main_category") or record.get("main_cat") or _deepest(categories),
    }


def _deepest(categories: object) -> object:
    """The last category of the first path: 2014 has lists of paths."""
    while isinstance(categories, list):
        categories = (categories[0] if isinstance(categories[0], list) else categories[-1]) if categories else None
    return categories


def _category(name: str) -> str:
    """The category in a file's name: reviews_Toys_and_Games_5.json.gz -> toys_and_games."""
    stem = name.split(".")[0].removeprefix("reviews_").removeprefix("meta_").removeprefix("ratings_")
    return stem.removesuffix("_5").lower()


def _only(paths: list[Path], raw: Path, what: str) -> Path | None:
    """Return the one path, None if there is none.

    Raises:
        DataError: there are several.
    """
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths[:5])
        raise DataError(
            f"{raw} holds several files that may be the {what} ({names}); name one with --data.reader.{what} FILE or "
            "the category with --data.reader.category."
        )
    return paths[0] if paths else None
