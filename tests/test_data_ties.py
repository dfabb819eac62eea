"""Events of a user at the same time: their order says nothing about the items, and never changes."""

from collections import Counter

import numpy as np
import polars as pl
import pytest

from setrec.data import LeaveOneOut
from setrec.data.catalogue import read_manifest
from setrec.data.ties import share_of_ties, tie_keys
from tests.raw_data import Fixed, run

DAY = 86_400


def baskets(seed: int = 0, users: int = 300, items: int = 60) -> list[tuple]:
    """Three days, five items a day, without any signal."""
    rng = np.random.default_rng(seed)
    return [
        (f"c{user:04d}", f"{item:04d}", (17_000 + day) * DAY)
        for user in range(users)
        for day in range(3)
        for item in rng.choice(items, 5, replace=False)
    ]


@pytest.mark.parametrize("order", ["as it is", "by item", "by item, backwards"])
def test_the_last_of_a_basket_is_any_of_it(tmp_path, order):
    events = baskets()
    if order != "as it is":
        events.sort(key=lambda event: event[1], reverse="backwards" in order)
    items, histories = run(tmp_path, Fixed(events), split=LeaveOneOut())
    last = Counter(histories.test.items.tolist())
    assert len(histories.test) == 300
    by_id = [sum(last[item] for item in range(start, start + 12)) / 300 for start in range(0, 60, 12)]
    assert by_id == pytest.approx([0.2] * 5, abs=0.07)  # of the 12 highest ids it was .65
    assert max(last.values()) <= 14  # 5 are expected: no item is always the last one
    assert items.ids == sorted(items.ids)


def test_ties_are_counted_and_said(tmp_path, capsys):
    events = [*baskets(users=20), *((f"v{user}", f"{n:04d}", 17_000 * DAY + n) for user in range(20) for n in range(5))]
    events += events[:7]  # the same item at the same time is no tie
    run(tmp_path, Fixed(events), split=LeaveOneOut())
    assert "75.0% of the events tied with another of the user (in an order by chance)" in capsys.readouterr().err
    manifest = read_manifest(tmp_path / "x")
    assert manifest is not None
    assert manifest["report"]["times"]["tied"] == 0.75
    run(tmp_path, Fixed(events), split=LeaveOneOut(), paper_ids=True, name="y")
    assert "(in the order of the file)" in capsys.readouterr().err


def test_the_keys_never_change():
    events = pl.DataFrame({"user": [0, 0, 1], "item": [0, 1, 0], "time": [5, 5, -1]})
    keys = tie_keys(["u", "日本"], ["a", "é"], events).tolist()
    assert keys == tie_keys(["u", "日本"], ["a", "é"], events.with_columns(pl.col("time") * 1000), 1000).tolist()
    assert keys == KEYS
    assert share_of_ties(events) == pytest.approx(2 / 3)


KEYS = [7277044152416214985, 1747569208798359941, 8132062608081352191]
