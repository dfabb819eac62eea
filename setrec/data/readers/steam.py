"""Steam reviews (McAuley Lab, UC San Diego): players' reviews and the games' descriptions, as Python literals."""

from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from setrec.data.readers.base import EventLog, Reader
from setrec.data.readers.download import Source
from setrec.data.readers.gather import Events, Items
from setrec.errors import DataError
from setrec.files.ids import own_id
from setrec.files.lines import LineCounter, records
from setrec.files.packed import RawFile
from setrec.files.raw import raw_file

Field = Literal["title", "genres", "tags", "specs", "developer", "publisher", "price"]
_FIELDS: list[Field] = ["title", "genres", "tags", "specs", "developer", "publisher"]
_REVIEWS = ("steam_reviews.json.gz", "steam_reviews.json", "steam_new.json.gz", "steam_new.json")
_GAMES = ("steam_games.json.gz", "steam_games.json")
_SERVER = "https://cseweb.ucsd.edu/~wckang/"


class SteamReviews(Reader):
    """Reads reviews of games. A user's own id is the user name, an item's is the game's number on Steam.

    The dates are days, so a user's reviews of one day come in an order by chance (with paper_ids, in the order of the file).
    There are no ratings.

    Args:
        reviews: name of the file of reviews (username, product_id, date); null: steam_reviews.json.gz or
            steam_new.json.gz, packed or not.
        games: name of the file of games; null: steam_games.json.gz, packed or not. Without one, titles and texts are empty.
        text_fields: fields that an item's text is made from, in this order: "title: ...; genres: ...". Empty fields are left
            out.
        keep_unreviewed: put games without any review into the catalogue too, as cold items.
        max_text: the most characters of an item's text.
        max_bad_lines: malformed lines that a file may have: a whole number, or (with a decimal point) a share of its lines.
            They are skipped and reported; more of them stop the run.
        download: files to download where --data.raw is not given; null: those of the lab's server.
    """

    def __init__(
        self,
        reviews: str | None = None,
        games: str | None = None,
        text_fields: list[Field] = _FIELDS,
        keep_unreviewed: bool = False,
        max_text: int = 2000,
        max_bad_lines: int | float = 0.01,
        download: list[Source] | None = None,
    ) -> None:
        self.reviews, self.games, self.text_fields = reviews, games, text_fields
        self.keep_unreviewed, self.max_text, self.max_bad_lines = keep_unreviewed, max_text, max_bad_lines
        self.download = download

    def sources(self, raw: Path | None) -> list[Path]:
        """See `Reader.sources`."""
        return [path for path in self._files(raw) if path is not None] if raw is not None else []

    def public(self, name: str) -> list[Source]:
        """See `Reader.public`."""
        if self.download is not None:
            return super().public(name)
        return [Source(_SERVER + _REVIEWS[0]), Source(_SERVER + _GAMES[0])]

    def read(self, raw: Path | None) -> EventLog:
        """See `Reader.read`. Times are in seconds: the beginnings of the days."""
        reviews, games = (RawFile(path) if path is not None else None for path in self._files(raw))
        assert reviews is not None, "_files gives it or raises"
        counter = LineCounter(reviews.name, self.max_bad_lines)
        events = Events(counter)
        for line, record in records(reviews, counter):
            events.add(line, record.get("username"), record.get("product_id"), _day(record.get("date")))
        frame = events.frame()
        items = Items(
            self.text_fields, events.items, self.max_text, ("category", "brand"), keep_all=self.keep_unreviewed
        )
        files = {reviews.name: counter.about()}
        if games is not None:
            files[games.name] = self._read_games(games, items) | items.about(games.name, reviews.name)
        return EventLog(frame, items.frame(), keep_unreviewed=self.keep_unreviewed, files=files)

    def _read_games(self, file: RawFile, items: Items) -> dict[str, Any]:
        """Read the games. Returns what there is to say about the file."""
        counter = LineCounter(file.name, self.max_bad_lines)
        for line, record in records(file, counter):
            own = own_id(record.get("id"))
            if not own:
                counter.skip(line, "no id")
                continue
            title = record.get("title") or record.get("app_name")
            genres = record.get("genres")
            first = genres[0] if isinstance(genres, list) and genres else None
            items.add(own, title, record | {"title": title, "category": first, "brand": record.get("developer")})
        counter.close()
        return counter.about()

    def _files(self, raw: Path | None) -> tuple[Path, Path | None]:
        """Find the files of the reviews and of the games."""
        if raw is None:
            raise DataError("SteamReviews needs raw files; pass --data.raw DIR with the folder that holds them.")
        games = [raw / name for name in ([self.games] if self.games else _GAMES) if (raw / name).is_file()]
        if self.games:
            games = [raw_file(self.games, raw)]
        if self.reviews:
            return raw_file(self.reviews, raw), games[0] if games else None
        there = [raw / name for name in _REVIEWS if (raw / name).is_file()]
        if not there:
            raise DataError(f"{raw} holds no {_REVIEWS[0]} or {_REVIEWS[2]}; name it with --data.reader.reviews FILE.")
        return there[0], games[0] if games else None


@lru_cache(maxsize=1 << 14)
def _seconds(day: str) -> int | None:
    try:
        return (date.fromisoformat(day) - date(1970, 1, 1)).days * 86_400
    except ValueError:
        return None


def _day(day: object) -> object:
    """Seconds since 1970 of a day such as 2017-12-17. Anything else comes back as it is, for the message about the line."""
    seconds = _seconds(day) if isinstance(day, str) else None
    return day if seconds is None else seconds
