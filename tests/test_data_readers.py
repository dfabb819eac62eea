"""Readers of raw files: what they make of each format, and what they say of files that are wrong."""

import csv
import gzip
import json
import math
import random
import zipfile
from pathlib import Path

import polars as pl
import pytest
from jsonargparse import ArgumentParser

from setrec.data import (
    AmazonReviews,
    Catalogue,
    Cleaning,
    EventLog,
    Histories,
    RecBoleFiles,
    SETRecDataModule,
    Source,
    SteamReviews,
    TableFiles,
    TimestampSplit,
)
from setrec.data.readers import columns, lines
from setrec.errors import ConfigError, DataError
from setrec.files import tables


def write(path: Path, content: str | bytes) -> Path:
    """A file; packed where its name says so."""
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def literal(rows: list[dict]) -> str:
    return "".join(f"{row!r}\n" for row in rows)


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def events_of(log: EventLog) -> list[tuple]:
    return log.events.with_columns(pl.col("user", "item").cast(pl.String)).rows()


def items_of(log: EventLog) -> dict[str, dict]:
    return {row["id"]: row for row in log.items.rows(named=True)}


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
    assert log.skipped == {"reviews_X_5.json": 0, "meta_X.json": 2}
    assert not trap.exists()


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
    assert log.skipped == {"steam_reviews.json.gz": 1, "steam_games.json.gz": 1}
    row = items_of(log)["328100"]
    assert row["text"] == "title: Rocket; genres: Action, Indie; tags: Space; developer: D&D"
    assert (row["title"], row["category"], row["brand"]) == ("Rocket", "Action", "D&D")
    (tmp_path / "steam_reviews.json.gz").rename(tmp_path / "steam_new.json.gz")
    assert events_of(SteamReviews(max_bad_lines=1).read(tmp_path)) == events_of(log)
    (tmp_path / "steam_new.json.gz").unlink()
    with pytest.raises(DataError, match="holds no steam_reviews"):
        SteamReviews().read(tmp_path)


INTER = 'user_id:token\titem_id:token\trating:float\ttimestamp:float\n"1\t7\t4\t978300760.5\n2\t7\t3\t978300000\n'
ITEM = "item_id:token\tmovie_title:token_seq\tyear:float\tclass:token_seq\n7\tToy Story\t1995\tAnimation Comedy\n8\tX\t\t\n"


@pytest.mark.parametrize("where", ["folder", "below", "zip"])
def test_recbole(tmp_path, where):
    if where == "zip":
        with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
            archive.writestr("ml-x/ml-x.inter", INTER)
            archive.writestr("ml-x/ml-x.item", ITEM)
    else:
        folder = tmp_path / "ml-x" if where == "below" else tmp_path
        write(folder / "ml-x.inter", INTER)
        write(folder / "ml-x.item", ITEM)
    log = RecBoleFiles().read(tmp_path)
    assert events_of(log) == [('"1', "7", 978300760_500000, 4), ("2", "7", 978300000_000000, 3)]
    row = items_of(log)["7"]
    assert row["title"] == "Toy Story"
    assert row["text"] == "movie_title: Toy Story; class: Animation Comedy"
    assert set(items_of(RecBoleFiles(keep_unreviewed=True).read(tmp_path))) == {"7", "8"}
    assert items_of(RecBoleFiles(text_fields=["year"]).read(tmp_path))["7"]["text"] == "year: 1995"
    assert {path.suffix for path in RecBoleFiles().sources(tmp_path)} == (
        {".zip"} if where == "zip" else {".inter", ".item"}
    )


def test_recbole_that_is_none(tmp_path):
    with pytest.raises(DataError, match=r"must hold one .inter.*has none"):
        RecBoleFiles().read(tmp_path)
    write(tmp_path / "a.inter", "user_id\titem_id\ttimestamp\n1\t2\t3\n")
    with pytest.raises(DataError, match="names no types"):
        RecBoleFiles().read(tmp_path)
    write(tmp_path / "a.inter", "user_id:token\titem_id:token\n1\t2\n")
    with pytest.raises(DataError, match="a.inter has no column 'timestamp'"):
        RecBoleFiles().read(tmp_path)
    write(tmp_path / "b.inter", INTER)
    with pytest.raises(DataError, match="name the data set with --data.reader.dataset"):
        RecBoleFiles().read(tmp_path)
    assert len(RecBoleFiles(dataset="b").read(tmp_path).events) == 2
    for path in tmp_path.iterdir():
        path.unlink()
    write(tmp_path / "c.zip", b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match="c.zip is no zip archive"):
        RecBoleFiles().read(tmp_path)


TABLE = [("u1", "007", 1400000000, 5.0), ("u2", 'é, "q"', 1400000001, 3.5), ("u1", "9", 1400000002, None)]


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet", "jsonl", "jsonl.gz"])
def test_tables(tmp_path, kind):
    frame = pl.DataFrame(TABLE, schema=["who", "what", "when", "stars"], orient="row")
    items = pl.DataFrame(
        {"what": ["007", "9", "x"], "name": ["Bond", "Nine\nlines", ""], "color": ["red", None, "blue"]}
    )
    for name, data in (("events", frame), ("items", items)):
        path = tmp_path / f"{name}.{kind}"
        if kind == "parquet":
            data.write_parquet(path)
        else:
            csv_like = data.write_csv(separator="\t" if kind == "tsv" else ",")
            write(path, data.write_ndjson() if "json" in kind else csv_like)
    reader = TableFiles(
        events=f"events.{kind}",
        items=f"items.{kind}",
        user="who",
        item="what",
        timestamp="when",
        rating="stars",
        title="name",
    )
    log = reader.read(tmp_path)
    assert events_of(log) == [(u, i, t * tables.TICKS, r) for u, i, t, r in TABLE]
    rows = items_of(log)
    assert set(rows) == {"007", "9"}
    assert {field: rows["007"][field] for field in ("title", "name", "color")} == {
        "title": "Bond", "name": "Bond", "color": "red"
    }  # fmt: skip
    assert sorted(rows["007"]["text"].split("; ")) == ["color: red", "name: Bond"]
    assert rows["9"]["text"] == "name: Nine lines"
    assert [path.name for path in reader.sources(tmp_path)] == [f"events.{kind}", f"items.{kind}"]


def test_table_without_header_and_items_in_the_events(tmp_path):
    write(tmp_path / "ratings.csv", "u,i,4,12\nu,j,5,13\n")
    log = TableFiles("ratings.csv", columns=["user_id", "item_id", "stars", "timestamp"], rating="stars").read(tmp_path)
    assert events_of(log) == [("u", "i", 12 * tables.TICKS, 4), ("u", "j", 13 * tables.TICKS, 5)]
    sales = "user_id;item_id;timestamp;name\nu;i;1;short\nv;i;2;a longer name\nu;i;3;\n"
    write(tmp_path / "sales.csv", sales)
    reader = TableFiles("sales.csv", "sales.csv", separator=";", title="name", text_fields=["name"])
    assert items_of(reader.read(tmp_path))["i"]["title"] == "a longer name"


def test_times():
    texts = ["1400000000", "1400000000000", "1400000000000000", "1400000000000000000", "1400000000.25", "2014-05-13",
             "2014-05-13T16:53:20Z", "2014-05-13 18:53:20+02:00", "2014-05-13T16:53:20.000001", "-5", "", "soon", "nan",
             "1e400", " 7 ", "99999999999999999999999999"]  # fmt: skip
    day, moment = 1399939200_000000, 1400000000_000000
    expected = [moment, moment, moment, moment, moment + 250000, day, moment, moment, moment + 1, -5_000000, None, None,
                None, None, 7_000000, None]  # fmt: skip
    assert tables.times(pl.Series("t", texts)).to_list() == expected
    assert tables.times(pl.Series("t", [1, 10**11, None])).to_list() == [10**6, 10**14, None]
    assert tables.times(pl.Series("t", [1.5, float("nan")])).to_list() == [1_500000, None]
    assert tables.times(pl.Series("t", ["2014-05-13"]).str.to_date()).to_list() == [day]
    assert tables.times(pl.Series("t", ["5"]), "ms").to_list() == [5000]
    assert tables.times(pl.Series("t", ["5000"]), "ns").to_list() == [5]
    assert tables.times(pl.Series("t", [10**18]), "s").to_list() == [None]  # beyond int64


def test_malformed_lines_are_counted_with_their_place(tmp_path, capsys):
    rows = ["user_id,item_id,timestamp,rating"] + [f"u{i},i{i},{i},5" for i in range(200)]
    rows[1] = "u"
    rows[100:100] = [""]  # an empty line is no fault
    rows[150] = ",i,1,5"
    rows[199] = "u,i,today,5"
    rows[201] = "u,i,1,many"
    path = write(tmp_path / "events.csv", "\n".join(rows) + "\n\n")
    log = TableFiles(rating="rating", max_bad_lines=0.1).read(tmp_path)
    assert log.skipped == {"events.csv": 4}
    assert len(log.events) == 196
    assert capsys.readouterr().err == (
        "events.csv: skipped 4 malformed lines of 202: line 2 (not 4 fields), line 151 (no user), line 200 (time "
        "'today'), ...\n"
    )
    for limit, passes in ((4, True), (3, False), (0.02, True), (0.01, False), (0, False)):
        if passes:
            TableFiles(rating="rating", max_bad_lines=limit).read(tmp_path)
        else:
            with pytest.raises(DataError, match=r"events.csv has \d malformed lines?, more than max_bad_lines"):
                TableFiles(rating="rating", max_bad_lines=limit).read(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"u5,", b"\xff,"))
    assert TableFiles(max_bad_lines=9).read(tmp_path).skipped == {"events.csv": 4}  # the rating is not looked at
    with pytest.raises(ConfigError, match="max_bad_lines 1.5 must be"):
        TableFiles(max_bad_lines=1.5).read(tmp_path)


def test_lines_stay_right_over_blocks_and_quotes(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "_BLOCK", 64)
    rows = ["user_id,item_id,timestamp"] + [f'"u{i}",i{i},{i}' for i in range(50)]
    rows[30] = "broken"
    write(tmp_path / "events.csv", "\n".join(rows))
    with pytest.raises(DataError, match=r"line 31 \(not 3 fields\)"):
        TableFiles(max_bad_lines=0).read(tmp_path)
    items = "item_id,title\n" + "".join(f'i{i},"a ""title""\nof {i}, with a break"\n' for i in range(40))
    write(tmp_path / "items.csv", items)
    log = TableFiles(items="items.csv", max_bad_lines=1).read(tmp_path)
    assert items_of(log)["i7"]["title"] == 'a "title" of 7, with a break'
    assert len(log.items) == 39  # i29 stood in the broken line


def test_a_quote_left_open_is_not_one_line(tmp_path):
    rows = [f"u{i},i{i},{i}" for i in range(1000)]
    rows[3] = 'u,"i,3'
    write(tmp_path / "events.csv", "user_id,item_id,timestamp\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"99\d malformed lines.*line 5 \(not 3 fields, a quote left open\)"):
        TableFiles(max_bad_lines=0.5).read(tmp_path)
    rows[500] = 'u,i",3'  # closed far away: three fields again
    write(tmp_path / "events.csv", "user_id,item_id,timestamp\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"498 malformed lines.*line 5 \(a quote left open\)"):
        TableFiles(max_bad_lines=0.4).read(tmp_path)


@pytest.mark.parametrize("name", ["events.csv.gz", "events.jsonl.gz"])
def test_a_file_that_is_cut_off(tmp_path, name):
    line = '{"user_id": "u", "item_id": "i", "timestamp": 1}\n' if "json" in name else "u,i,1\n"
    whole = ("user_id,item_id,timestamp\n" if "csv" in name else "") + line * 50_000
    path = write(tmp_path / name, whole)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{name} cannot be read to its end"):
        TableFiles(name).read(tmp_path)


def test_files_that_are_something_else(tmp_path):
    write(tmp_path / "a.parquet", b"PAR1 no")
    with pytest.raises(DataError, match="a.parquet is not a table that can be read"):
        TableFiles("a.parquet").read(tmp_path)
    write(tmp_path / "empty.csv", b"")
    with pytest.raises(DataError, match="empty.csv is empty"):
        TableFiles("empty.csv").read(tmp_path)
    write(tmp_path / "header.csv", "user_id,item_id,timestamp\n")
    with pytest.raises(DataError, match="header.csv holds no events"):
        TableFiles("header.csv").read(tmp_path)
    with pytest.raises(DataError, match=r"header.csv has no column 'who' \(it has user_id, item_id, timestamp\)"):
        TableFiles("header.csv", user="who").read(tmp_path)
    write(tmp_path / "deep.jsonl", "[" * 100_000 + "\n" + '{"a":' * 50_000 + "\n" + "9" * 10_000 + "\n")
    with pytest.raises(DataError, match="deep.jsonl has 3 malformed lines"):
        TableFiles("deep.jsonl").read(tmp_path)
    with pytest.raises(ConfigError, match="time_unit"):
        TableFiles(time_unit="days")
    with pytest.raises(ConfigError, match="one character"):
        TableFiles(separator="::")


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
    """The official dicts from raw reviews, after design.md section 6: plain Python, nothing of the pipeline."""
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


def prepared(tmp_path: Path, reader, name: str = "x", **options) -> tuple[Catalogue, Histories]:
    options = {"cleaning": Cleaning(k_core=0), "text": None, "cf": []} | options
    data = SETRecDataModule(name=name, reader=reader, raw=str(tmp_path), root=str(tmp_path / "data"), **options)
    data.prepare_data()
    data.setup()
    return data.catalogue, data.histories


def test_items_that_nobody_reviewed(tmp_path):
    rows = [("u", f"i{t}", t) for t in range(10)] + [("v", "rare", 3)]  # v has one event: it goes, and its item with it
    write(tmp_path / "events.csv", "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    write(tmp_path / "items.csv", "item_id,title\ni1,one\nnever,new\nrare,gone\n")
    options = {"split": TimestampSplit(4, 7)}
    catalogue, histories = prepared(tmp_path, TableFiles(items="items.csv"), **options)
    assert catalogue.ids == [f"i{t}" for t in range(10)]
    assert catalogue.titles == ["", "one", *[""] * 8]
    kept, same = prepared(tmp_path, TableFiles(items="items.csv", keep_unreviewed=True), **options)
    assert kept.ids == [*catalogue.ids, "never"]
    assert kept.titles[-1] == "new"
    assert not kept.warm[-1]
    assert same.test.items.tolist() == histories.test.items.tolist() == [7, 8, 9]
    shuffled, _ = prepared(tmp_path, TableFiles(items="items.csv", keep_unreviewed=True), paper_ids=True, **options)
    assert sorted(shuffled.ids) == sorted(kept.ids)


def test_the_order_within_a_second_counts(tmp_path):
    rows = [("u", f"i{9 - t}", 1588687728000 + t) for t in range(8)]  # eight clicks in one second, ids against time
    write(tmp_path / "events.csv", "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows[::-1]))
    split = TimestampSplit(1588687729, 1588687730)
    for paper_ids in (False, True):
        catalogue, histories = prepared(tmp_path, TableFiles(), paper_ids=paper_ids, split=split)
        assert [catalogue.ids[i] for i in histories.train.row(0)] == [i for _, i, _ in rows]


def test_skipped_lines_are_in_the_manifest(tmp_path):
    write(tmp_path / "events.csv", "user_id,item_id,timestamp\n" + "".join(f"u,i{t},{t}\n" for t in range(10)) + "x\n")
    prepared(tmp_path, TableFiles(max_bad_lines=1))
    manifest = json.loads((tmp_path / "data" / "x" / "manifest.json").read_text())
    assert manifest["skipped_lines"] == {"events.csv": 1}


def test_flags():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SETRecDataModule, "data")

    def reader(*flags: str):
        return parser.instantiate(parser.parse_args([f"--data.{flag}" for flag in flags])).data.preparation.reader

    amazon = reader("reader=AmazonReviews", "reader.edition=2023", "reader.text_fields=[title, brand]")
    assert (amazon.edition, amazon.text_fields) == (2023, ["title", "brand"])
    assert reader("reader=SteamReviews", "reader.max_bad_lines=7").max_bad_lines == 7
    assert reader("reader=RecBoleFiles", "reader.max_bad_lines=0.5").max_bad_lines == 0.5
    table = reader("reader=TableFiles", "reader.download=[{url: 'http://x/e.csv', sha256: ab}]")
    assert table.public("x") == [Source("http://x/e.csv", sha256="ab")]
    with pytest.raises(Exception, match="colour"):
        reader("reader=AmazonReviews", "reader.text_fields=[colour]")


def test_parse_takes_objects_only():
    assert lines.parse(b'{"a": 1}') == lines.parse(b"{'a': 1}") == lines.parse(b"{u'a': 1}") == {"a": 1}
    for text in (b"[1]", b"1", b"{'a': f()}", b"", b"\xff"):
        with pytest.raises((ValueError, SyntaxError)):
            lines.parse(text)


def test_what_csv_writes_is_what_is_read(tmp_path):
    """Python's csv module as the judge, on awkward ids."""
    own = ['a"b', "a,b", " a ", "ü", "'", '""', "\\", "0", "1e5", "NA", "null", "nan", "#x"]
    with (tmp_path / "events.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        writer.writerows((one, other, 5) for one in own for other in own)
    expected = [(one, other, 5_000000) for one in own for other in own]
    assert events_of(TableFiles().read(tmp_path)) == expected
