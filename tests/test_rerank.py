"""Filters, boosts, diversity and caps against plain Python; similar, popular and latest items; changed attributes."""

import contextlib
import operator
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from setrec import Recommender
from setrec.data.catalogue import Histories
from setrec.errors import ConfigError, DataError, SETRecError
from setrec.inference import rerank
from setrec.inference.attributes import Attributes
from setrec.inference.filters import MAX_LENGTH
from setrec.inference.options import Boost
from setrec.inference.rerank import SPREAD
from tests.conftest import TrainedRun

COLOURS = ["red", "green", "blue", None]


def attributes_of(i: int) -> dict[str, Any]:
    return {
        "colour": COLOURS[i % 4],
        "price": None if i % 7 == 6 else i * 1.5,
        "in_stock": None if i % 5 == 4 else i % 3 > 0,
        "sku": f"00{i}",
    }


@pytest.fixture(scope="module", params=["tiny_run", "graph_run"])
def recommender(request: pytest.FixtureRequest) -> Recommender:
    run: TrainedRun = request.getfixturevalue(request.param)
    recommender = Recommender.load(run.checkpoint)
    ids = recommender._snapshot.catalogue.ids
    recommender.patch_items({own: attributes_of(i) for i, own in enumerate(ids)})
    return recommender


@pytest.fixture(scope="module")
def ids(recommender: Recommender) -> list[str]:
    return recommender._snapshot.catalogue.ids


@pytest.fixture(scope="module")
def histories(ids: list[str]) -> list[list[str]]:
    return [[], ids[3:9], [ids[40]], ids[:30]]


def same_answers(a: Any, b: Any) -> bool:
    return [[tuple(item) for item in one.items] for one in a] == [[tuple(item) for item in one.items] for one in b]


# ------------------------------------------------------------------------------------------------------------- filters
SIGNS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "=": operator.eq, "<>": operator.ne,
}  # fmt: skip
NUMBERS = st.integers(-5, 130).map(lambda n: n / 2)
WORDS = st.sampled_from(["red", "green", "blue", "it's", 'a "b"', ""])


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def comparison(draw: Any) -> tuple[str, Any]:
    """A condition and the same in Python, over a dict of attributes."""
    kind = draw(st.sampled_from(["number", "text", "stock", "in", "between", "null", "chain"]))
    if kind == "stock":
        return "in_stock", lambda row: bool(row["in_stock"])
    if kind == "null":
        name = draw(st.sampled_from(["colour", "price", "in_stock"]))
        turned = draw(st.booleans())
        return f"{name} is {'not ' * turned}null", lambda row: (row[name] is None) != turned
    if kind == "in":
        words, turned = draw(st.lists(WORDS, min_size=1, max_size=3)), draw(st.booleans())
        text = f"colour {'NOT ' * turned}in ({', '.join(map(quoted, words))})"
        return text, lambda row: row["colour"] is not None and (row["colour"] in words) != turned
    low, high = draw(NUMBERS), draw(NUMBERS)
    if kind == "between":
        turned = draw(st.booleans())
        text = f"price {'not ' * turned}between {low} and {high}"
        return text, lambda row: row["price"] is not None and (low <= row["price"] <= high) != turned
    if kind == "chain":
        return f"{low}<price <= {high}", lambda row: row["price"] is not None and low < row["price"] <= high
    sign = draw(st.sampled_from(sorted(SIGNS)))
    if kind == "number":
        return f"price {sign} {low}", lambda row: row["price"] is not None and SIGNS[sign](row["price"], low)
    word = draw(WORDS)
    return f"{quoted(word)} {sign} colour", lambda row: row["colour"] is not None and SIGNS[sign](word, row["colour"])


@st.composite
def conditions(draw: Any, depth: int = 3) -> tuple[str, Any]:
    kind = draw(st.sampled_from(["one", "and", "or", "not"])) if depth else "one"
    if kind == "one":
        return comparison(draw)
    a, in_a = draw(conditions(depth=depth - 1))
    if kind == "not":
        return f"not ({a})", lambda row: not in_a(row)
    b, in_b = draw(conditions(depth=depth - 1))
    if kind == "and":
        return f"({a}) AND ({b})", lambda row: in_a(row) and in_b(row)
    return f"({a}) or ({b})", lambda row: in_a(row) or in_b(row)


ROWS = [attributes_of(i) for i in range(60)]
TABLE = Attributes(pl.DataFrame([{"id": str(i), "title": f"title {i}"} | row for i, row in enumerate(ROWS)]))


@given(conditions())
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_a_filter_admits_what_python_admits(condition: tuple[str, Any]) -> None:
    text, predicate = condition
    assert TABLE.mask(text).tolist() == [predicate(row) for row in ROWS]


def test_and_binds_closer_than_or_and_not_closest() -> None:
    for text, predicate in [
        ("in_stock or price < 9 and colour = 'red'",
         lambda r: r["in_stock"] or ((99 if r["price"] is None else r["price"]) < 9 and r["colour"] == "red")),
        ("not in_stock and colour = 'red'", lambda r: not r["in_stock"] and r["colour"] == "red"),
        ("title like 'TITLE _'", lambda r: r in ROWS[:10]),
        ("title not like '%1%'", lambda r: "1" not in str(ROWS.index(r))),
        ("`sku` == '007'", lambda r: r["sku"] == "007"),
        ("in_stock == true and id in ['1', '2']", lambda r: r in ROWS[1:3] and r["in_stock"]),
    ]:  # fmt: skip
        assert TABLE.mask(text).tolist() == [bool(predicate(row)) for row in ROWS], text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("brand == 'x'", r"character 1, 'brand': the catalogue has no such column; it has id \(text\), .*price \(number\)"),
        ("price == 'x'", "character 10, .*'price' holds numbers, which this is not"),
        ("colour < 5", "character 10, '5': 'colour' holds texts"),
        ("price", "holds numbers, so it must be compared"),
        ("in_stock < true", "only equal or not"),
        ("1 == 1", "one side must be a column"),
        ("true", "it is no condition"),
        ("", "its end: a column or a value must stand here"),
        ("price < 5 price", "'and' or 'or' is missing before this"),
        ("price < 5)", "this is not expected"),
        ("(price < 5", r"'\)' is missing"),
        ("price in 5", "a list such as"),
        ("price like '5'", "'like' compares a column of text"),
        ("price < 1e999", "too large"),
        ("price < 5; drop table items", "';.*this is not understood"),
        ("read_csv('/etc/passwd') == 1", "'read_csv': the catalogue has no such column"),
        ("price.map(1)", "not understood|missing"),
        ("(" * 26 + "in_stock" + ")" * 26, "more than 25"),
        ("not " * 26 + "in_stock", "more than 25"),
        ("x" * (MAX_LENGTH + 1), "2,001 characters"),
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TABLE.mask(text)


PIECES = st.sampled_from(
    ["price", "colour", "in_stock", "and", "or", "not", "in", "(", ")", "[", ",", "==", "<", "5", "'red'", "is", "null", "like",
     "between", "`", '"', "\\", "%", ";", "lambda", "__import__", "\x00", "é", "1e5", "-", "true", "."]
)  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=14).map(" ".join), st.lists(PIECES).map("".join)))
@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
def test_any_text_is_a_filter_or_a_sentence(text: str) -> None:
    with contextlib.suppress(ConfigError):  # any other exception fails
        assert TABLE.mask(text).shape == (60,)


def test_texts_of_files_have_kinds() -> None:
    table = pl.DataFrame(
        {"id": ["1", "2"], "title": ["1", "2"], "price": ["9.50", ""], "sale": ["Yes", "no"], "zip": ["01", "2"],
         "n": ["1", "x"], "year": [1998, None], "tags": [["a"], []], "nan": [float("nan"), 1.0]}
    )  # fmt: skip
    found = Attributes(table)
    kinds = {"price": "number", "sale": "yes/no", "zip": "text", "n": "text", "year": "number", "nan": "number"}
    assert found.columns == kinds
    assert found.kinds["id"] == found.kinds["title"] == "text"
    assert found.of(0) == {"price": 9.5, "sale": True, "zip": "01", "n": "1", "year": 1998, "nan": None}
    assert found.mask("not (price < 10)").tolist() == [False, True]  # missing: the comparison is false


@pytest.mark.parametrize("condition", ["price < 40 and in_stock", "colour = 'red' or colour is null", "price < -1"])
def test_a_filtered_answer_is_that_of_the_admitted_candidates(
    recommender: Recommender, ids: list[str], histories: list[list[str]], condition: str
) -> None:
    mask = recommender._snapshot.attributes.mask(condition).tolist()
    admitted = [own for own, admit in zip(ids, mask, strict=True) if admit]
    for more in ({}, {"explain": True}, {"diversity": 0.4}, {"caps": {"colour": 2}}):
        filtered = recommender.recommend(histories, filter=condition, **more)  # type: ignore[arg-type]
        assert same_answers(filtered, recommender.recommend(histories, candidates=admitted, **more))  # type: ignore[arg-type]
    half = recommender.recommend(histories, filter=condition, candidates=ids[::2], k=99)
    assert all(item.id in set(admitted) & set(ids[::2]) for one in half for item in one.items)


# ---------------------------------------------------------------------------------------------------------- re-ranking
def reference(
    recommender: Recommender, history: list[str], k: int, diversity: float, caps: dict[str, int], boosts: list[Boost]
) -> list[tuple[str, float]]:
    """The list as the documentation says it is made, over the whole catalogue."""
    snapshot = recommender._snapshot
    (plain,) = recommender.recommend([history], k=1000)
    score = {item.id: item.score for item in plain.items}
    ordered = sorted(score.values(), reverse=True)
    spread = ordered[0] - ordered[min(SPREAD, len(ordered)) - 1]
    for boost in boosts:
        for own in score:
            if snapshot.attributes.mask(boost.filter)[snapshot.row[own]]:
                score[own] += boost.add * spread
    text = torch.nn.functional.normalize(snapshot.restored.model.text.float(), dim=1).numpy()
    column = {name: snapshot.attributes.table[name].to_list() for name in caps}
    taken: list[tuple[str, float]] = []
    left = sorted(score, key=lambda own: snapshot.row[own])
    while left and len(taken) < k:
        best, value = None, -np.inf
        for own in left:
            row = snapshot.row[own]
            near = max([0.0, *(float(text[row] @ text[snapshot.row[other]]) for other, _ in taken)])
            full = any(
                column[name][row] is not None
                and sum(column[name][snapshot.row[other]] == column[name][row] for other, _ in taken) >= most
                for name, most in caps.items()
            )
            mine = score[own] - diversity * spread * near
            if not full and mine > value:
                best, value = own, mine
        if best is None:
            break
        taken.append((best, value))
        left.remove(best)
    return taken


RULES = [
    {"diversity": 0.0, "caps": {"colour": 2}, "boosts": []},
    {"diversity": 0.7, "caps": {}, "boosts": []},
    {"diversity": 1.0, "caps": {"colour": 3, "in_stock": 5}, "boosts": [Boost("price < 30", 0.5), Boost("in_stock", -0.3)]},
    {"diversity": 0.0, "caps": {}, "boosts": [Boost("colour = 'red'", 100.0)]},
    {"diversity": 0.2, "caps": {"price": 1}, "boosts": [Boost("price < -1", 1.0)]},
]  # fmt: skip


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("shortlist", [SPREAD, 5])  # 5: it must grow
def test_the_list_is_the_best_under_the_greedy_rule(
    recommender: Recommender,
    histories: list[list[str]],
    rules: dict[str, Any],
    shortlist: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if shortlist < SPREAD and (rules["diversity"] or rules["boosts"]):
        pytest.skip("a short shortlist means other lists by diversity, and another spread")
    monkeypatch.setattr(rerank, "SHORTLIST", shortlist)
    answers = recommender.recommend(histories, k=7, **rules)
    for history, answer in zip(histories, answers, strict=True):
        expected = reference(recommender, history, 7, **rules)
        assert [item.id for item in answer.items] == [own for own, _ in expected]
        assert [item.score for item in answer.items] == pytest.approx(
            [value for _, value in expected], abs=1e-4, rel=1e-6
        )
        if not rules["diversity"]:
            assert [item.score for item in answer.items] == sorted((item.score for item in answer.items), reverse=True)


@given(
    diversity=st.sampled_from([0.0, 0.3, 1.0]),
    most=st.integers(1, 4),
    adds=st.lists(st.floats(-2, 2), max_size=3),
    k=st.integers(1, 80),
    first=st.integers(0, 60),
)
@settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
def test_caps_hold_parts_sum_and_shorter_lists_are_beginnings(
    recommender: Recommender, ids: list[str], diversity: float, most: int, adds: list[float], k: int, first: int
) -> None:
    filters = ["in_stock", "price < 60", "colour = 'blue'"]
    boosts = [Boost(condition, add) for condition, add in zip(filters, adds, strict=False)]
    how: dict[str, Any] = {"diversity": diversity, "caps": {"colour": most}, "boosts": boosts, "explain": True}
    (answer,) = recommender.recommend([ids[first : first + 5]], k=k, **how)
    colours = Counter(recommender.item(item.id).attributes["colour"] for item in answer.items)
    del colours[None]  # type: ignore[arg-type]
    assert max(colours.values(), default=0) <= most
    for item in answer.items:
        assert item.why is not None
        assert sum(item.why.parts.values()) == pytest.approx(item.score, abs=2e-4)
        assert [name for name in item.why.parts if name.startswith("boost")] == [
            f"boost: {one.filter}" for one in boosts
        ]
        assert ("diversity" in item.why.parts) == bool(diversity)
    (shorter,) = recommender.recommend([ids[first : first + 5]], k=max(1, k // 2), **how)
    assert [item.id for item in shorter.items] == [item.id for item in answer.items][: max(1, k // 2)]


def test_the_explanation_names_what_a_cap_left_out_and_what_is_alike(recommender: Recommender, ids: list[str]) -> None:
    (plain,) = recommender.recommend([ids[:3]], k=80)
    (capped,) = recommender.recommend([ids[:3]], k=80, caps={"colour": 1}, explain=True)
    got = {item.id for item in capped.items}
    told = [name for item in capped.items if item.why for name, column in item.why.left_out if column == "colour"]
    best = [item.id for item in plain.items]
    last = best.index(capped.items[-1].id)
    assert told
    assert set(told) <= set(best[:last]) - got
    (diverse,) = recommender.recommend([ids[:3]], k=10, diversity=0.5, explain=True)
    for place, item in enumerate(diverse.items):
        assert item.why is not None
        penalty = item.why.parts["diversity"]
        assert penalty <= 0
        if item.why.like is not None:
            assert item.why.like[0] in [one.id for one in diverse.items[:place]]
        assert (penalty < 0) == (item.why.like is not None)


def test_without_rules_nothing_changes(recommender: Recommender, histories: list[list[str]]) -> None:
    plain = recommender.recommend(histories, explain=True)
    none = recommender.recommend(histories, explain=True, diversity=0.0, caps={}, boosts=[], filter=None)
    assert same_answers(plain, none)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"diversity": 1.1}, "diversity is 1.1"),
        ({"diversity": float("nan")}, "diversity is nan"),
        ({"caps": {"colour": 0}}, "'colour' has 0"),
        ({"caps": {"color": 1}}, "no column 'color'; it has id, title"),
        ({"boosts": [Boost("in_stock", 1), Boost("in_stock", 2)]}, "each filter once"),
        ({"boosts": [Boost("instock", 1)]}, "no such column"),
    ],
)
def test_wrong_rules_are_refused(recommender: Recommender, how: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recommender.recommend([[]], **how)
    with pytest.raises(ConfigError, match="add is"):
        Boost("x", float("inf"))


# ----------------------------------------------------------------------------------------- similar, popular, latest, item
def test_similar_by_slots_is_the_cosine_of_the_tokens(recommender: Recommender, ids: list[str]) -> None:
    snapshot = recommender._snapshot
    model, index = snapshot.restored.model, snapshot.restored.scorer.index
    with torch.no_grad():
        zero = model.tokens([codes[:1] * 0 for codes in index.codes])  # (1, K, D): the constants
        tokens = (model.tokens(index.codes) - zero).flatten(1)  # (N, K * D)
        expected = torch.nn.functional.cosine_similarity(tokens[5:6], tokens)  # (N,)
    found = recommender.similar(ids[5], "slots", k=1000)
    assert {one.id for one in found} == set(ids) - {ids[5]}
    for one in found:
        assert one.similarity == pytest.approx(float(expected[snapshot.row[one.id]]), abs=1e-4)
    assert [one.similarity for one in found] == sorted((one.similarity for one in found), reverse=True)


def test_similar_by_text_cf_and_co_occurrence(recommender: Recommender, ids: list[str]) -> None:
    snapshot = recommender._snapshot
    for by, table in (("text", snapshot.restored.model.text), ("cf", snapshot.restored.scorer.index.cf)):
        cosine = torch.nn.functional.cosine_similarity(table[7:8].float(), table.float()).tolist()
        found = recommender.similar(ids[7], by, k=5, filter="in_stock")
        there = [
            i for i in range(len(ids)) if i != 7 and recommender.item(ids[i]).attributes["in_stock"] and table[i].any()
        ]
        expected = sorted(there, key=lambda i: -cosine[i])[:5]
        assert [one.similarity for one in found] == pytest.approx([cosine[i] for i in expected], abs=1e-5)
        assert all(recommender.item(one.id).attributes["in_stock"] for one in found)
    graphs = snapshot.restored.scorer.graphs
    if graphs is None:
        with pytest.raises(ConfigError, match="counts no co-occurrence"):
            recommender.similar(ids[7], "co_occurrence")
    else:
        found = recommender.similar(ids[7], "co_occurrence", k=3)
        weights = sorted((w for w in graphs.cooccurrence.weight[7].tolist() if w > 0), reverse=True)[:3]
        assert [one.similarity for one in found] == pytest.approx(weights)
    with pytest.raises(DataError, match="'nope' is not in the catalogue"):
        recommender.similar("nope")
    with pytest.raises(ConfigError, match="by is 'taste'"):
        recommender.similar(ids[0], "taste")


def test_popular_and_latest(recommender: Recommender, ids: list[str]) -> None:
    events = [recommender.item(one.id).events for one in recommender.popular(limit=1000)]
    assert events == sorted(events, reverse=True)
    assert len(events) == len(ids)
    lately = {ids[9]: 3.0, "gone": 9.0, ids[2]: 5.0}
    assert [one.id for one in recommender.popular(3, counts=lately)][:2] == [ids[2], ids[9]]
    assert [one.id for one in recommender.latest(3)] == ids[:-4:-1]
    blue = [one.id for one in recommender.latest(100, filter="colour = 'blue'")]
    assert blue == [own for i, own in enumerate(ids) if i % 4 == 2][::-1]
    assert [one.id for one in recommender.search("", 2, filter="colour = 'blue'")] == [
        one.id for one in recommender.popular(2, filter="colour = 'blue'")
    ]


# ------------------------------------------------------------------------------------------------------------- patching
def test_patches_change_attributes_only_and_are_kept(tiny_run: TrainedRun, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    path = Path(shutil.copy(tiny_run.checkpoint, folder / "model.ckpt"))
    recommender = Recommender.load(path, data=tiny_run.data)
    ids = recommender._snapshot.catalogue.ids
    histories = [Histories.load(tiny_run.data).train.row(0).tolist() and [ids[0], ids[1]]]
    before = recommender.recommend(histories)
    fingerprint = recommender.info()["fingerprint"]
    recommender.patch_items({ids[0]: {"price": 5, "in_stock": True, "title": "a new title"}, ids[1]: {"price": "7.5"}})
    recommender.patch_items({ids[0]: {"price": 6.5}})
    assert [[(i.id, i.score) for i in one.items] for one in recommender.recommend(histories)] == [
        [(i.id, i.score) for i in one.items] for one in before
    ]
    assert recommender.info()["fingerprint"] == fingerprint
    recommender.add_items([{"id": "N1", "title": "new", "text": "red train", "price": "3", "in_stock": "no"}])
    recommender.patch_items({"N1": {"in_stock": True, "price": None}})
    assert recommender.item("N1").attributes["in_stock"] is True
    assert recommender.item("N1").attributes["price"] is None
    saved = recommender.save()
    again = Recommender.load(saved, data=tiny_run.data)
    recommender.save_pretrained(tmp_path / "published", data_license="mit")
    for one in (again, Recommender.load(tmp_path / "published")):
        assert one.item(ids[0]).attributes["price"] == 6.5
        assert one.item(ids[0]).title == "a new title"
        assert one.search("a new title")[0].id == ids[0]
        assert one.item("N1").attributes["price"] is None
        assert one.item("N1").attributes["in_stock"] is True
        assert [item.id for item in one.recommend([[]], filter="in_stock", k=99)[0].items]
    again.remove_items(["N1", ids[1]])
    assert set(again._snapshot.changes.patched) == {ids[0]}


@pytest.mark.parametrize(
    ("own", "fields", "says"),
    [
        ("nope", {"price": 1}, "'nope' is not in the catalogue"),
        (0, {"text": "x"}, "remove the item and add it again"),
        (0, {"vector": [1.0]}, "remove the item and add it again"),
        (0, {"count": 5}, "'count' is no attribute"),
        (0, {"a`b": 5}, "no attribute"),
        (0, {"title": " "}, "title must be a text"),
        (0, {"price": "cheap"}, "the column holds number values, and 'cheap' is not a number"),
        (0, {"price": True}, "not a number"),
        (0, {"price": float("nan")}, "a finite number"),
        (0, {"new": 10**400}, "a finite number"),
        (0, {"in_stock": "maybe"}, "yes or no"),
        (0, {"tags": ["a"]}, "give a text, a finite number"),
    ],
)
def test_wrong_patches_change_nothing(
    recommender: Recommender, ids: list[str], own: Any, fields: Any, says: str
) -> None:
    snapshot = recommender._snapshot
    with pytest.raises(DataError, match=says):
        recommender.patch_items({ids[1]: {"price": 1}, (own or ids[0]): fields})
    assert recommender._snapshot is snapshot


def test_added_items_must_fit_the_columns(recommender: Recommender) -> None:
    with pytest.raises(SETRecError, match="'cheap' is not a number"):
        recommender.add_items([{"id": "N", "title": "t", "price": "cheap"}])
