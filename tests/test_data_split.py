"""Splits and ids of events, against the paper's recipe."""

import math
import random

import pytest

from setrec.data import LeaveOneOut, Ragged, TimestampSplit, catalogue
from setrec.errors import DataError
from tests.raw_data import Fixed, as_dicts, random_events, run


def papers_recipe(events: list[tuple]) -> tuple[list[str], list[dict[int, list[int]]], list[str]]:
    """The paper's recipe once more, in plain Python. Returns users, the three dicts, the items' own ids in order."""
    times = sorted(time for _, _, time in events)
    test_num = int(0.17 * len(times))
    test_from, validation_from = times[-test_num], times[-math.ceil(1.8 * test_num)]
    of_user: dict[str, list[tuple]] = {}
    for event in events:
        of_user.setdefault(event[0], []).append(event)
    of_user = {user: sorted(rows, key=lambda e: e[2]) for user, rows in of_user.items()}
    of_user = {user: rows for user, rows in of_user.items() if sum(e[2] < validation_from for e in rows) >= 2}
    own_ids = sorted({item for rows in of_user.values() for _, item, _ in rows})
    random.seed(2023)
    random.shuffle(own_ids)
    number = {own: i for i, own in enumerate(own_ids)}
    dicts: list[dict[int, list[int]]] = [{}, {}, {}]
    for u, rows in enumerate(of_user.values()):
        for part in range(3):
            dicts[part][u] = [number[i] for _, i, t in rows if (t >= validation_from) + (t >= test_from) == part]
    return list(of_user), dicts, own_ids


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_papers_recipe(tmp_path, seed):
    events = random_events(seed)
    users, dicts, own_ids = papers_recipe(events)
    assert 5 < len(users) <= 40
    assert all(any(rows.values()) for rows in dicts)
    items, histories = run(tmp_path, Fixed(events), paper_ids=True)
    assert items.ids == own_ids
    assert histories.ids == users
    for split, expected in zip((histories.train, histories.validation, histories.test), dicts, strict=True):
        assert [split.row(u).tolist() for u in range(len(split))] == [expected[u] for u in range(len(users))]


def test_the_papers_recipe_by_hand(tmp_path):
    """12 events at times 1..12: test_num = int(2.04) = 2, so test from 11; ceil(3.6) = 4, so validation from 9."""
    events = [
        ("anna", "c", 1), ("ben", "a", 2), ("anna", "a", 3), ("cara", "d", 4), ("ben", "b", 5), ("anna", "b", 6),
        ("ben", "c", 7), ("anna", "e", 8), ("cara", "a", 9), ("anna", "f", 10), ("ben", "e", 11), ("cara", "g", 12),
    ]  # fmt: skip
    # cara has one training item and goes, with her the items d and g; sorted: a b c e f
    order = ["a", "b", "c", "e", "f"]
    random.Random(2023).shuffle(order)
    items, histories = run(tmp_path, Fixed(events), paper_ids=True)
    assert items.ids == order
    assert histories.ids == ["anna", "ben"]
    own = [{user: [items.ids[i] for i in row] for user, row in split.items()} for split in as_dicts(histories)]
    assert own == [
        {"anna": ["c", "a", "b", "e"], "ben": ["a", "b", "c"]},
        {"anna": ["f"], "ben": []},
        {"anna": [], "ben": ["e"]},
    ]
    assert items.count[items.ids.index("a")] == 2
    assert not items.warm[items.ids.index("f")]
    assert items.titles[items.ids.index("f")] == "title f"


def test_row_order_changes_nothing_without_paper_ids(tmp_path):
    events = random_events(3)
    first = run(tmp_path, Fixed(events), name="first")
    random.Random(0).shuffle(events)
    second = run(tmp_path, Fixed(events), name="second")
    assert first[0].ids == second[0].ids == sorted(first[0].ids)
    assert as_dicts(first[1]) == as_dicts(second[1])
    files = [read["files"] for name in ("first", "second") if (read := catalogue.read_manifest(tmp_path / name))]
    assert files[0] == files[1]  # byte for byte


def test_same_events_same_content_with_either_ids(tmp_path):
    events = [(f"u{i % 7}", f"i{i * 5 % 11}", i) for i in range(70)]  # no ties
    content = []
    for paper_ids in (True, False):
        items, histories = run(tmp_path, Fixed(events), paper_ids=paper_ids, name=str(paper_ids))
        content.append([{u: [items.ids[i] for i in r] for u, r in split.items()} for split in as_dicts(histories)])
    assert content[0] == content[1]


def test_timestamp_split(tmp_path):
    events = [("u", f"i{t}", t) for t in range(10)]
    items, histories = run(tmp_path, Fixed(events), split=TimestampSplit(4, 7))
    own = [[items.ids[i] for i in split["u"]] for split in as_dicts(histories)]
    assert own == [["i0", "i1", "i2", "i3"], ["i4", "i5", "i6"], ["i7", "i8", "i9"]]
    with pytest.raises(DataError, match="swap them"):
        run(tmp_path, Fixed(events), split=TimestampSplit(7, 4), name="y")


def test_leave_one_out(tmp_path):
    events = [("u", "a", 5), ("u", "b", 5), ("u", "c", 1), ("u", "d", 9), ("v", "a", 1), ("v", "b", 2), ("v", "c", 3)]
    items, histories = run(tmp_path, Fixed(events), split=LeaveOneOut())
    assert histories.ids == ["u"]  # v would have one training item
    own = [[items.ids[i] for i in split["u"]] for split in as_dicts(histories)]
    assert own == [["c", "a"], ["b"], ["d"]]  # the tie at time 5 goes by chance (test_ties.py)


def test_too_few_events_for_the_ratio(tmp_path):
    with pytest.raises(DataError, match="4 events are too few"):
        run(tmp_path, Fixed([("u", "a", t) for t in range(4)]))


def test_a_ragged_row_of_unequal_users(tmp_path):
    """Users without validation or test items come back as empty rows."""
    histories = run(tmp_path, Fixed(random_events(5)))[1]
    assert (histories.validation.lengths == 0).any() or (histories.test.lengths == 0).any()
    assert isinstance(histories.train, Ragged)
    assert len(histories.train) == len(histories.validation) == len(histories.test) == len(histories.ids)
