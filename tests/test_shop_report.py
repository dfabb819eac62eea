"""`setrec report --log`: figures computed by hand, and estimates of exploration against a simulation."""

import json
import random
from pathlib import Path

import pytest

from setrec.cli import main
from setrec.report.answers import propensity_estimates, wilson
from setrec.serve.exploring import explore
from setrec.shop.answers import Answer, AnswerStore
from setrec.shop.database import Database


def test_estimates_by_hand() -> None:
    """Two answers; the policy lists a and c, then d: (1/.5 + 0) + 1/.25 = 6 of weight 2 + 1/.8 + 4."""
    shown, p = [["a", "b", "c"], ["d", "e"]], [[0.5, 0.8, 0.8], [0.25, 0.9]]
    found = propensity_estimates(shown, p, [{"a", "b"}, {"d"}], [["a", "c"], ["d"]])
    assert found == pytest.approx({"ips": 6 / 2, "snips": 6 / 7.25, "support": 7.25 / 3})
    assert propensity_estimates([], [], [], []) == {"ips": 0, "snips": 0, "support": 0}


def test_estimates_of_a_simulation() -> None:
    """Items are taken with known chances: the estimates for another list come near what it would get."""
    chance = random.Random(3)
    taking = dict(zip("abcdefgh", (0.05, 0.3, 0.1, 0.2, 0.5, 0.02, 0.4, 0.1), strict=True))
    shown, ps, taken = [], [], []
    for _ in range(40_000):
        items, p = explore("abcdefgh", 4, 0.5, chance)
        shown.append(items)
        ps.append(p)
        taken.append({item for item in items if chance.random() < taking[item]})
    for policy in ("abcd", "begh", "efgh"):
        true = sum(taking[item] for item in policy)
        found = propensity_estimates(shown, ps, taken, [list(policy)] * len(shown))
        assert found["ips"] == pytest.approx(true, rel=0.05)
        assert found["snips"] == pytest.approx(true / 4, rel=0.05)
        assert found["support"] == pytest.approx(1, abs=0.03)


def test_propensities_are_frequencies() -> None:
    chance, counts, said = random.Random(5), dict.fromkeys("abcdef", 0), {}
    for _ in range(60_000):
        items, p = explore("abcdef", 3, 0.6, chance)
        for item, one in zip(items, p, strict=True):
            counts[item] += 1
            said[item] = one
    for item, one in said.items():
        assert counts[item] / 60_000 == pytest.approx(one, abs=0.01)
    assert explore("abc", 3, 1.0, chance) == (["a", "b", "c"], [1.0] * 3)
    assert explore("", 3, 1.0, chance) == ([], [])


def test_the_report_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = Database(tmp_path / "shop.db")
    store = AnswerStore(database)
    day = 86_400_000_000
    store.add(
        [
            Answer("1", "main", None, day, 0, "m#1", 2, 10, ["a", "b"], [1, 0]),
            Answer("2", "main", None, 2 * day, 0, "m#1", 2, 10, ["a", "c"], [1, 0]),
            Answer("3", "challenger", None, day, 0, "n#2", 2, 10, ["d", "e"], [1, 0], [0.9, 0.1]),
            Answer("3", "shadow", None, day, 0, "s#3", 2, 10, ["e", "f"], [1, 0]),
        ]
    )
    for answer, item in (("1", "b"), ("1", "z"), ("3", "e"), ("lost", "a")):
        store.feedback(answer, item, "click", day)
    database.close()
    main(["report", "--log", str(tmp_path / "shop.db"), "--output", str(tmp_path / "report")])
    said = capsys.readouterr().out
    assert "m#1" in said
    assert "1 answers that feedback names are not in the log" in said
    content = json.loads((tmp_path / "report/answers.json").read_text())
    groups = {row["variant"]: row for row in content["groups"]}
    assert (groups["main"]["hit_rate"], groups["main"]["reciprocal_rank"], groups["main"]["coverage"]) == (
        0.5,
        0.25,
        0.3,
    )
    assert (groups["shadow"]["hit_rate"], groups["shadow"]["reciprocal_rank"]) == (1, 1)
    days = [(row["day"], row["variant"], row["answers"], row["taken"]) for row in content["days"]]
    assert sorted(days) == [
        ("1970-01-02", "challenger", 1, 1),
        ("1970-01-02", "main", 1, 1),
        ("1970-01-03", "main", 1, 0),
    ]
    shadow = next(row for row in content["exploration"] if row["policy"] == "shadow")
    assert shadow["ips"] == pytest.approx(10)
    with pytest.raises(SystemExit):
        main(["report", "--log", str(tmp_path / "nothing.db")])
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report"])
    assert "--log DATABASE" in capsys.readouterr().err


def test_wilson_by_hand() -> None:
    assert wilson(1, 2) == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert wilson(0, 0) == (0, 1)
