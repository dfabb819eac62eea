"""Cleaning of events."""

import polars as pl
import pytest

from setrec.data import Cleaning
from setrec.errors import DataError
from tests.raw_data import random_events


def naive_core(events: list[tuple], k: int) -> list[tuple]:
    while True:
        users, items = [e[0] for e in events], [e[1] for e in events]
        kept = [e for e in events if users.count(e[0]) >= k and items.count(e[1]) >= k]
        if kept == events:
            return events
        events = kept


def test_k_core():
    events = [e for e in random_events(4, n=400) if int(e[0][1:]) % 5 or e[2] % 3]
    frame = pl.DataFrame(events, schema=["user", "item", "time"], orient="row").with_row_index("row")
    expected = naive_core(events, 7)
    assert 0 < len(expected) < len(naive_core(events, 5))
    assert Cleaning(k_core=7).apply(frame).drop("row").rows() == expected


def test_cleaning_options():
    events = [("u", "a", 1, 5.0), ("u", "a", 1, 1.0), ("u", "b", 2, 2.0), ("u", "c", 3, 4.0), ("v", "a", 1, 4.0)]
    frame = pl.DataFrame(events, schema=["user", "item", "time", "rating"], orient="row").with_row_index("row")

    def rows(**options) -> list[int]:
        return Cleaning(**{"k_core": 0} | options).apply(frame)["row"].to_list()

    assert rows() == [0, 2, 3, 4]
    assert rows(drop_duplicates=False) == [0, 1, 2, 3, 4]
    assert rows(min_rating=4.0) == [0, 3, 4]
    assert rows(max_user_events=2) == [2, 3, 4]
    with pytest.raises(DataError, match="cleaning leaves none of 5 events"):
        rows(k_core=5)
    with pytest.raises(DataError, match="the events have no rating"):
        Cleaning(min_rating=3).apply(frame.drop("rating"))
