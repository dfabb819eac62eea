"""Amazon reviews of every edition, up to the official dicts."""

import gzip
import json
import math
import random
from pathlib import Path

import pytest

from setrec.data import AmazonReviews, SETRecDataModule
from setrec.errors import DataError
from tests.raw_data import events_of, items_of, jsonl, literal, skipped, write

REVIEWS_2014 = [
    {"reviewerID": "A1", "asin": "0001", "overall": 5.0, "unixReviewTime": 1390953600, "reviewText": 'so "good"'},
    {"reviewerID": "A2", "asin": "B00X", "overall": 1.0, "unixReviewTime": 964742400},
    {"reviewerID": "A1", "asin": "B00X", "overall": 3.0, "unixReviewTime": 1390953600},
]


META_2014 = [
    {
        "asin": "0001", "title": "Board &amp; Pieces", "price": 9.5, "brand": "It's",
        "categories": [["Toys & Games", "Games"], ["Toys & Games", "Board Games"]],
        "description": "<p>A board.<br>With\tpieces</p> 2 < 3",
    },
    {"asin": "NEVER", "title": "nobody bought it"},
]  # fmt: skip


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_amazon_2014(tmp_path, packed):
    write(tmp_path / f"reviews_Toys_and_Games_5.json{packed}", jsonl(REVIEWS_2014))
    write(tmp_path / f"meta_Toys_and_Games.json{packed}", literal(META_2014))
    log = AmazonReviews().read(tmp_path)
    assert events_of(log) == [
        ("A1", "0001", 1390953600, 5),
        ("A2", "B00X", 964742400, 1),
        ("A1", "B00X", 1390953600, 3),
    ]
    assert log.ticks == 1
    items = items_of(log)
    assert set(items) == {"0001"}  # B00X has no metadata, nobody reviewed NEVER
    assert items["0001"]["title"] == "Board & Pieces"
    assert items["0001"]["text"] == (
        "title: Board & Pieces; description: A board. With pieces 2 < 3; categories: Toys & Games, Games, Board Games; "
        "brand: It's"
    )
    assert items["0001"]["category"] == "Games"
    assert items["0001"]["brand"] == "It's"
    kept = AmazonReviews(keep_unreviewed=True, text_fields=["brand", "title", "price"]).read(tmp_path)
    assert set(items_of(kept)) == {"0001", "NEVER"}
    assert items_of(kept)["0001"]["text"] == "brand: It's; title: Board & Pieces; price: 9.5"
    assert items_of(AmazonReviews(max_text=12).read(tmp_path))["0001"]["text"] == "title: Board"


def test_amazon_2018(tmp_path):
    write(tmp_path / "Toys_and_Games_5.json.gz", jsonl([row | {"vote": "1,2", "style": {}} for row in REVIEWS_2014]))
    meta = [
        {"asin": "0001", "title": "T", "brand": "B", "price": "$12.99", "category": ["Toys", "Games"],
         "description": ["one", "", "two"], "feature": ["small"], "main_cat": "Toys & Games"},
        {"asin": "0001", "title": "T", "brand": "B", "category": [], "description": []},  # they do repeat
    ]  # fmt: skip
    write(tmp_path / "meta_Toys_and_Games.json.gz", jsonl(meta))
    log = AmazonReviews(text_fields=["title", "description", "categories", "brand", "price", "features"]).read(tmp_path)
    assert len(events_of(log)) == 3
    row = items_of(log)["0001"]
    text = "title: T; description: one, two; categories: Toys, Games; brand: B; price: $12.99; features: small"
    assert row["text"] == text
    assert row["category"] == "Toys & Games"


REVIEWS_2023 = [
    {"user_id": "AE", "parent_asin": "P1", "asin": "C1", "rating": 5.0, "timestamp": 1588687728923, "title": "x"},
    {"user_id": "AF", "parent_asin": "P2", "asin": "C2", "rating": 2.0, "timestamp": 1588687728001, "images": []},
]


def test_amazon_2023(tmp_path):
    write(tmp_path / "Toys_and_Games.jsonl.gz", jsonl(REVIEWS_2023))
    meta = {"parent_asin": "P1", "title": "T", "store": "S", "categories": ["a", "b"], "features": ["f"],
            "description": ["d"], "main_category": "Toys & Games", "price": None, "details": {"x": 1}}  # fmt: skip
    write(tmp_path / "meta_Toys_and_Games.jsonl.gz", jsonl([meta]))
    log = AmazonReviews().read(tmp_path)
    assert events_of(log) == [("AE", "P1", 1588687728923, 5), ("AF", "P2", 1588687728001, 2)]
    assert log.ticks == 1000
    assert items_of(log)["P1"]["text"] == "title: T; description: d; categories: a, b; brand: S"
    assert items_of(log)["P1"]["category"] == "Toys & Games"


def test_amazon_2023_ratings_only(tmp_path):
    write(
        tmp_path / "Toys_and_Games.csv.gz",
        "user_id,parent_asin,rating,timestamp,history\nAE,P1,5.0,1588687728923,\nAF,P2,2.0,1588687728001,P1 P3\n",
    )
    write(tmp_path / "x" / "Toys_and_Games.jsonl", jsonl(REVIEWS_2023))
    from_csv, from_json = AmazonReviews().read(tmp_path), AmazonReviews().read(tmp_path / "x")
    assert events_of(from_csv) == events_of(from_json)
    assert from_csv.ticks == from_json.ticks


def test_amazon_files_are_named_or_found(tmp_path):
    with pytest.raises(DataError, match="holds no file of reviews"):
        AmazonReviews().read(tmp_path)
    for category in ("Toys_and_Games", "Beauty"):
        write(tmp_path / f"reviews_{category}_5.json", jsonl(REVIEWS_2014))
    write(tmp_path / "meta_Beauty.json", literal([{"asin": "0001", "title": "soap"}]))
    with pytest.raises(DataError, match=r"several files that may be the reviews \(reviews_Beauty_5.json, reviews_Toys"):
        AmazonReviews().read(tmp_path)
    assert items_of(AmazonReviews(category="Beauty").read(tmp_path))["0001"]["title"] == "soap"
    assert items_of(AmazonReviews(category="Toys_and_Games").read(tmp_path)) == {}  # no metadata, no texts
    named = AmazonReviews(reviews="reviews_Toys_and_Games_5.json", metadata="meta_Beauty.json")
    assert [path.name for path in named.sources(tmp_path)] == ["reviews_Toys_and_Games_5.json", "meta_Beauty.json"]


def test_a_wrong_edition_stops_at_the_end_with_every_line_malformed(tmp_path):
    write(tmp_path / "Toys.jsonl", jsonl(REVIEWS_2014))
    with pytest.raises(DataError, match=r"3 malformed lines.*line 1 \(no user\)"):
        AmazonReviews(edition=2023).read(tmp_path)


def test_no_literal_is_ever_executed(tmp_path):
    write(tmp_path / "reviews_X_5.json", jsonl(REVIEWS_2014))
    trap = tmp_path / "trap"
    write(tmp_path / "meta_X.json", f"{{'asin': open({str(trap)!r}, 'w')}}\n__import__('os').mkdir({str(trap)!r})\n")
    log = AmazonReviews(max_bad_lines=2).read(tmp_path)
    assert skipped(log) == {"reviews_X_5.json": 0, "meta_X.json": 2}
    assert not trap.exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    """200 MB of review texts pass through; what stays are the events."""
    import tracemalloc

    row = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1, "reviewText": "x" * 100_000}
    with gzip.open(tmp_path / "reviews_X_5.json.gz", "wb", compresslevel=1) as file:
        for _ in range(2000):
            file.write(json.dumps(row).encode() + b"\n")
    tracemalloc.start()
    assert len(AmazonReviews().read(tmp_path).events) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def papers_dicts(path: Path) -> tuple[list[dict[int, list[int]]], list[str], list[str]]:
    """The official dicts from raw reviews, in plain Python, without the pipeline."""
    with gzip.open(path, "rt") as file:
        reviews = [json.loads(line) for line in file]
    t = sorted(review["unixReviewTime"] for review in reviews)
    test_num = int(0.17 * len(t))
    test_from, validation_from = t[-test_num], t[-math.ceil(1.8 * test_num)]
    histories: dict[str, list[tuple[int, str]]] = {}
    for review in reviews:
        histories.setdefault(review["reviewerID"], []).append((review["unixReviewTime"], review["asin"]))
    for history in histories.values():
        history.sort(key=lambda event: event[0])  # stable: ties stay in file order
    users = [user for user, history in histories.items() if sum(when < validation_from for when, _ in history) >= 2]
    asins = sorted({asin for user in users for _, asin in histories[user]})
    random.seed(2023)
    random.shuffle(asins)
    number = {asin: i for i, asin in enumerate(asins)}
    dicts: list[dict[int, list[int]]] = [{}, {}, {}]
    for u, user in enumerate(users):
        dicts[0][u] = [number[asin] for when, asin in histories[user] if when < validation_from]
        dicts[1][u] = [number[asin] for when, asin in histories[user] if validation_from <= when < test_from]
        dicts[2][u] = [number[asin] for when, asin in histories[user] if when >= test_from]
    return dicts, users, asins


@pytest.mark.parametrize("seed", [0, 1])
def test_the_official_dicts_from_raw_reviews(tmp_path, seed):
    """A raw file of 2014 as Toys' own: 5-core, days as times, so full of ties; many users are dropped by the split."""
    rng = random.Random(seed)
    pairs = {(u, i) for u in range(300) for i in rng.sample(range(120), rng.randint(5, 9))}
    while True:  # the raw files are 5-core
        users, items = [u for u, _ in pairs], [i for _, i in pairs]
        kept = {(u, i) for u, i in pairs if users.count(u) >= 5 and items.count(i) >= 5}
        if kept == pairs:
            break
        pairs = kept
    start = {u: rng.randint(0, 1500) for u in range(300)}
    rows = [
        {"reviewerID": f"A{u * 7919 % 1000:03d}", "asin": f"B{i * 31 % 997:03d}", "overall": float(rng.randint(1, 5)),
         "unixReviewTime": 1_300_000_000 + 86_400 * (start[u] + rng.randint(0, 400)), "reviewText": "nice"}
        for u, i in sorted(pairs)
    ]  # fmt: skip
    rng.shuffle(rows)
    path = write(tmp_path / "raw" / "reviews_Toys_and_Games_5.json.gz", jsonl(rows))
    dicts, users, asins = papers_dicts(path)
    assert 50 < len(users) < 290
    assert all(any(split.values()) for split in dicts)
    data = SETRecDataModule(
        name="toys", reader=AmazonReviews(), text=None, cf=[], paper_ids=True, raw=str(path.parent), root=str(tmp_path)
    )
    data.prepare_data()
    data.setup()
    assert data.catalogue.ids == asins
    assert data.histories.ids == users
    for split, expected in zip(
        (data.histories.train, data.histories.validation, data.histories.test), dicts, strict=True
    ):
        assert {u: split.row(u).tolist() for u in range(len(split))} == expected
