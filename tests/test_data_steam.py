"""Steam reviews."""

import pytest

from setrec.data import SteamReviews
from setrec.errors import DataError
from tests.raw_data import events_of, items_of, literal, skipped, write


def test_steam(tmp_path):
    reviews = [
        {
            "username": "Chaos Syren",
            "hours": 0.1,
            "product_id": "725280",
            "date": "2017-12-17",
            "text": "\ud83d",
            "n": 1,
        },
        {"username": "₮", "product_id": "328100", "date": "1970-01-01"},
        {"username": "x", "product_id": "328100", "date": "yesterday"},
    ]
    write(tmp_path / "steam_reviews.json.gz", "".join("{u" + f"{row!r}"[1:] + "\n" for row in reviews))
    games = [
        {
            "id": "328100",
            "app_name": "Rocket",
            "genres": ["Action", "Indie"],
            "tags": ["Space"],
            "developer": "D&amp;D",
        },
        {"title": "no id"},
    ]
    write(tmp_path / "steam_games.json.gz", literal(games))
    log = SteamReviews(max_bad_lines=1).read(tmp_path)
    assert events_of(log) == [("Chaos Syren", "725280", 1513468800), ("₮", "328100", 0)]
    assert skipped(log) == {"steam_reviews.json.gz": 1, "steam_games.json.gz": 1}
    row = items_of(log)["328100"]
    assert row["text"] == "title: Rocket; genres: Action, Indie; tags: Space; developer: D&D"
    assert (row["title"], row["category"], row["brand"]) == ("Rocket", "Action", "D&D")
    (tmp_path / "steam_reviews.json.gz").rename(tmp_path / "steam_new.json.gz")
    assert events_of(SteamReviews(max_bad_lines=1).read(tmp_path)) == events_of(log)
    (tmp_path / "steam_new.json.gz").unlink()
    with pytest.raises(DataError, match="holds no steam_reviews"):
        SteamReviews().read(tmp_path)
