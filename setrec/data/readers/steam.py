"""Steam reviews (McAuley Lab, UC San Diego): players' reviews and the games' descriptions, Python literals."""

from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Literal

from setrec.data.readers.base import EventLog, Reader
from setrec.data.readers.download import Source
from setrec.data.readers.gather import Events, Items, own_id
from setrec.data.readers.lines import RawFile, Tally, records
from setrec.errors import DataError
from setrec.files.raw import raw_file

Field = Literal["title", "genres", "tags", "specs", "developer", "publisher", "price"]
_FIELDS: list[Field] = ["title", "genres", "tags", "specs", "developer", "publisher"]
_REVIEWS = ("steam_reviews.json.gz", "steam_reviews.json", "steam_new.json.gz", "steam_new.json")
_GAMES = ("steam_games.json.gz", "steam_games.json")
_SERVER = "https://cseweb.ucsd.edu/~wckang/"


class SteamReviews(Reader):
    """Reviews of games; a user is a user name, an item a game by its number on Steam.

    The dates are days, so a user's reviews of one day stand by the game's id (with paper_ids by their order in the
    file). There are no ratings.

    Args:
        reviews: name of the file of reviews (username, product_id, date); null: steam_reviews.json.gz or
            steam_new.json.gz, packed or not.
        games: name of the file of games; null: steam_games.json.gz, packed or not, and where it is missing titles and
            texts are empty.
        text_fields: what an item's text is made from, in this order, as "title: ...; genres: ...": empty fields are
            left out.
        keep_unreviewed: put games that no review speaks of into the catalogue too: cold items, known by their text.
        max_text: characters of text per item that are kept.
        max_bad_lines: malformed lines per file that are skipped and reported: a whole number of them, or (with a
            decimal point) a share of the lines; more stop the run.
        download: where to fetch the files when --data.raw is not given; null: the lab's server.
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
        return [path for path in self._files(raw) if path is not None] if raw is not None else []

    def public(self, name: str) -> list[Source]:
        """See `Reader.public`."""
        if self.download is not None:
            return super().public(name)
        return [Source(_SERVER + _REVIEWS[0]), Source(_SERVER + _GAMES[0])]

    def read(self, raw: Path | None) -> EventLog:
        """See `Reader.read`. Times are the days' beginnings, in seconds."""
        reviews, games = (RawFile(path) if path is not None else None for path in self._files(raw))
        assert reviews is not None, "_files gives it or raises"
        tally = Tally(reviews.name, self.max_bad_lines)
        events = Events(tally)
        for line, record in records(reviews, tally):
            events.put(line, record.get("username"), record.get("product_id"), _day(record.get("date")))
        frame = events.frame()
        wanted = None if self.keep_unreviewed else events.items
        items = Items(self.text_fields, wanted, self.max_text, kept=("category", "brand"))
        skipped = {reviews.name: tally.skipped}
        if games is not None:
            skipped[games.name] = self._read_games(games, items)
        return EventLog(frame, items.frame(), keep_unreviewed=self.keep_unreviewed, skipped=skipped)

    def _read_games(self, file: RawFile, items: Items) -> int:
        """Read the games; returns how many lines were malformed."""
        tally = Tally(file.name, self.max_bad_lines)
        for line, record in records(file, tally):
            own = own_id(record.get("id"))
            if not own:
                tally.bad(line, "no id")
                continue
            title = record.get("title") or record.get("app_name")
            genres = record.get("genres")
            first = genres[0] if isinstance(genres, list) and genres else None
            items.put(own, title, record | {"title": title, "category": first, "brand": record.get("developer")})
        tally.close()
        return tally.skipped

    def _files(self, raw: Path | None) -> tuple[Path, Path | None]:
        """The reviews and the games."""
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
    """Seconds since 1970 of a day such as 2017-12-17; what is none comes back, to be complained about."""
    seconds = _seconds(day) if isinstance(day, str) else None
    return day if seconds is None else seconds
