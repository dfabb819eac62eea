"""Your own tables of events and items."""

import csv

import polars as pl
import pytest

from setrec.data import TableFiles, TimestampSplit
from setrec.errors import ConfigError, DataError
from setrec.files.times import TICKS
from tests.raw_data import events_of, items_of, prepared, write

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
    assert events_of(log) == [(u, i, t * TICKS, r) for u, i, t, r in TABLE]
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
    assert events_of(log) == [("u", "i", 12 * TICKS, 4), ("u", "j", 13 * TICKS, 5)]
    sales = "user_id;item_id;timestamp;name\nu;i;1;short\nv;i;2;a longer name\nu;i;3;\n"
    write(tmp_path / "sales.csv", sales)
    reader = TableFiles("sales.csv", "sales.csv", separator=";", title="name", text_fields=["name"])
    assert items_of(reader.read(tmp_path))["i"]["title"] == "a longer name"


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
    with pytest.raises(ConfigError, match="one or more characters"):
        TableFiles(separator="")


def test_what_csv_writes_is_what_is_read(tmp_path):
    """Python's csv module as the judge, on awkward ids."""
    own = ['a"b', "a,b", "a b", "ü", "'", '""', "\\", "0", "1e5", "x,NA", "#x", "1.0", "01"]
    with (tmp_path / "events.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        writer.writerows((one, other, 5) for one in own for other in own)
    expected = [(one, other, 5_000000) for one in own for other in own]
    assert events_of(TableFiles().read(tmp_path)) == expected


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
