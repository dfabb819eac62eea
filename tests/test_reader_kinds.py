"""Files as people have them: encodings, quotes, separators, packing, ids, times. One shop, written in many ways, is read alike."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from setrec.data import Cleaning, LeaveOneOut, RecBoleFiles, TableFiles, TimestampSplit
from setrec.data.catalogue import read_manifest
from setrec.errors import ConfigError, DataError
from setrec.files import packed
from setrec.files.times import TICKS
from setrec.text import TfidfSVD
from tests.raw_data import events_of, items_of, prepared, skipped, write

EVENTS = [(f"u{n % 12:02d}", f"{n * 7 % 20 + 1}", 1_400_000_000 + 3600 * n) for n in range(240)]
EXPECTED = [(user, item, time * TICKS) for user, item, time in EVENTS]
TITLES = {f"{n}": f"{'café noir' if n % 2 else 'thé à la crème'} {n + 10}" for n in range(1, 21)}
HEAD, ITEM_HEAD = ["user_id", "item_id", "timestamp"], ["item_id", "title"]


def table(rows: list, separator: str = ",", head: list[str] | None = HEAD, **options: Any) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n", **options).writerows([*([head] if head else []), *rows])
    return text.getvalue()


def shop(folder: Path, events: str | bytes | None = None, items: str | bytes | None = None) -> Path:
    """events.csv and items.csv; what is not given is plain."""
    write(folder / "events.csv", table(EVENTS) if events is None else events)
    write(folder / "items.csv", table(list(TITLES.items()), head=ITEM_HEAD) if items is None else items)
    return folder


def read(folder: Path, **options: Any) -> Any:
    return TableFiles(items="items.csv", **options).read(folder)


def titles(log: Any) -> dict[str, str]:
    return {own: row["title"] for own, row in items_of(log).items()}


# ---------------------------------------------------------------------------------------------------------- encodings
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_an_encoding_is_seen_from_each_file(tmp_path, encoding):
    items = table(list(TITLES.items()), head=ITEM_HEAD)
    log = read(shop(tmp_path, items=items.encode(encoding)))
    assert titles(log) == TITLES
    assert log.files["items.csv"]["encoding"] in (encoding, "utf-8", "utf-16-le", "utf-32-le")
    assert log.files["events.csv"]["encoding"] == "utf-8"
    log = read(shop(tmp_path, events=table(EVENTS).replace("u", "ü").replace("üser", "user").encode(encoding)))
    assert events_of(log)[0][0] == "ü00"


@pytest.mark.parametrize(
    ("encoding", "word"),
    [
        ("gb18030", "红色水壶"),
        ("shift_jis", "赤いケトル"),
        ("cp1251", "красный чайник"),
        ("euc_kr", "빨간 주전자"),
        ("big5", "紅色水壺"),
    ],
)
def test_other_encodings_are_told_and_asked_for(tmp_path, encoding, word):
    about = {own: f"{word} {own}" for own in TITLES}
    shop(tmp_path, items=table(list(about.items()), head=ITEM_HEAD).encode(encoding))
    assert titles(read(tmp_path, item_encoding=encoding)) == about
    with pytest.raises(DataError, match=r"items.csv has .*not UTF-8.*--data.reader.item_encoding \(cp1252, gb18030"):
        read(tmp_path)


def test_an_encoding_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="'utf-9' is no encoding"):
        TableFiles(encoding="utf-9")
    shop(tmp_path, items="item_id,title\n" + "".join(f"{own},{title}\n" for own, title in TITLES.items()))
    with pytest.raises(DataError, match=r"items.csv has 20 malformed lines.*not ASCII in column 'title'"):
        read(tmp_path, item_encoding="ascii")


def test_broken_bytes_in_utf8_are_counted(tmp_path):
    good = table(list(TITLES.items()), head=ITEM_HEAD).encode()
    log = read(
        shop(tmp_path, items=good.replace("café noir 13\n".encode(), "café noir 13\n".encode("latin-1"))),
        max_bad_lines=1,
    )
    assert log.files["items.csv"]["reasons"] == {"not UTF-8 in column 'title'": {"rows": 1, "example": "line 4"}}
    assert titles(log) == {own: title for own, title in TITLES.items() if own != "3"}


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends_of_other_systems(tmp_path, line_end):
    log = read(shop(tmp_path, events=table(EVENTS).replace("\n", line_end)))
    assert events_of(log) == EXPECTED


# ------------------------------------------------------------------------------------------------------------- quotes
@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_proper_quotes_in_any_separator(tmp_path, separator, quoting):
    odd = {"1": 'the "best" kettle', "2": "two\nlines, and more", "3": '5" nails', "4": "a,b;c|d\te", "5": '"', "6": ""}
    log = read(shop(tmp_path, items=table(list(odd.items()), separator, ITEM_HEAD, quoting=quoting)))
    assert titles(log) == {own: " ".join(title.split()) for own, title in odd.items()}
    assert "notes" not in log.files["items.csv"]


@pytest.mark.parametrize("separator", ["\t", ",", ";", "::"])
def test_titles_that_begin_with_a_quote_stay_as_they_are(tmp_path, separator):
    rows = [[own, f'"{title}' if own in ("3", "11", "17") else title, "brand"] for own, title in TITLES.items()]
    text = "".join(separator.join(row) + "\n" for row in [["item_id", "title", "brand"], *rows])
    log = read(shop(tmp_path, items=text), max_bad_lines=0)
    assert titles(log) == {own: title for own, title, _ in rows}
    note = log.files["items.csv"]["notes"]["rows with odd quotes, taken as they stand"]
    assert note["rows"] == 3
    assert note["example"].startswith("line 4: '3")
    assert skipped(log)["items.csv"] == 0


def test_a_backslash_before_quotes(tmp_path):
    """As Spark and MySQL write."""
    log = read(shop(tmp_path, items='item_id,title\n1,"the \\"best\\", of all"\n2,plain\n3,"ends with \\""\n'))
    assert titles(log) == {"1": 'the "best", of all', "2": "plain", "3": 'ends with "'}


def test_blanks_after_separators(tmp_path):
    """As people write by hand."""
    text = 'item_id, title, brand\n1, "a kettle, red", x\n2, plain, "y"\n'
    log = read(shop(tmp_path, items=text))
    rows = items_of(log)
    assert rows["1"]["title"] == "a kettle, red"
    assert rows["2"]["brand"] == "y"


# ---------------------------------------------------------------------------------------- separators, headers, columns
@pytest.mark.parametrize("of_events", [",", "\t", ";", "|", "::", "\x01"])
@pytest.mark.parametrize("of_items", [",", "::"])
def test_every_file_has_its_own_separator(tmp_path, of_events, of_items):
    events = "".join(of_events.join(map(str, row)) + "\n" for row in [HEAD, *EVENTS])
    items = "".join(of_items.join(row) + "\n" for row in [ITEM_HEAD, *TITLES.items()])
    log = read(shop(tmp_path, events, items))
    assert events_of(log) == EXPECTED
    assert titles(log) == TITLES
    told = read(tmp_path, separator=of_events, item_separator=of_items)
    assert events_of(told) == EXPECTED


def test_a_rare_separator_is_told_once(tmp_path):
    shop(tmp_path, table(EVENTS, "^"), table(list(TITLES.items()), "^", ITEM_HEAD))
    assert titles(read(tmp_path, separator="^")) == TITLES
    shop(tmp_path, table(EVENTS, "^"))
    assert titles(read(tmp_path, separator="^")) == TITLES


def test_a_line_for_excel(tmp_path):
    log = read(shop(tmp_path, "sep=;\n" + table(EVENTS, ";")))
    assert events_of(log) == EXPECTED


def test_movielens(tmp_path):
    """ratings.dat and movies.dat: no header, :: between the fields, Latin-1."""
    ratings = "".join(f"{user}::{item}::5::{time}\n" for user, item, time in EVENTS)
    movies = "".join(f"{own}::{title} (1995)::Animation|Children's\n" for own, title in TITLES.items())
    write(tmp_path / "ratings.dat", ratings)
    write(tmp_path / "movies.dat", movies.encode("latin-1"))
    reader = TableFiles(
        "ratings.dat", "movies.dat", columns=["user_id", "item_id", "rating", "timestamp"], rating="rating",
        item_columns=["item_id", "title", "genres"],
    )  # fmt: skip
    log = reader.read(tmp_path)
    assert events_of(log) == [(*event, 5.0) for event in EXPECTED]
    assert items_of(log)["2"]["text"] == "title: thé à la crème 12 (1995); genres: Animation|Children's"
    assert log.files["movies.dat"] | {"notes": 0} == {
        "rows": 20, "skipped": 0, "encoding": "cp1252", "separator": "::", "notes": 0, "items": 20
    }  # fmt: skip
    with pytest.raises(DataError, match=r"ratings.dat has no column 'user_id' .*no header.*--data.reader.columns"):
        TableFiles("ratings.dat").read(tmp_path)
    with pytest.raises(DataError, match=r"movies.dat has no column 'item_id' .*no header.*--data.reader.item_columns"):
        TableFiles("ratings.dat", "movies.dat", columns=reader.columns).read(tmp_path)


def test_names_of_columns(tmp_path):
    named = [["", *HEAD], *([n, *row] for n, row in enumerate(EVENTS))]  # as pandas writes
    twice = [["Unnamed: 0", "", *ITEM_HEAD], *([n, n, own, title] for n, (own, title) in enumerate(TITLES.items()))]
    log = read(shop(tmp_path, table(named, head=None), table(twice, head=None)))
    assert events_of(log) == EXPECTED
    assert items_of(log)["1"]["text"] == "title: café noir 11"
    assert list(log.files["items.csv"]["notes"]) == ["2 columns without a name left out"]
    shop(tmp_path, items="item_id,title,title\n1,a,b\n")
    with pytest.raises(DataError, match="items.csv has two columns called 'title'"):
        read(tmp_path)
    shop(tmp_path, items="item_id,title,x,x\n1,a,b,c\n")
    with pytest.raises(DataError, match="items.csv has two columns called 'x'"):
        read(tmp_path)
    assert titles(read(tmp_path, text_fields=["title"])) == {"1": "a"}  # nobody needs x
    shop(tmp_path, events=" user_id , item_id,timestamp \n" + table(EVENTS, head=None))
    assert (
        events_of(read(shop(tmp_path, events=" user_id , item_id,timestamp \n" + table(EVENTS, head=None)))) == EXPECTED
    )


# ------------------------------------------------------------------------------------------------------------- packing
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_files(tmp_path, pack):
    for name in ("events.csv", "events.csv.packed"):
        write(tmp_path / name, pack(table(EVENTS).encode()))
        assert events_of(TableFiles(name).read(tmp_path)) == EXPECTED


def zipped(path: Path, **members: str | bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_a_zip_of_one_file(tmp_path):
    frame = pl.DataFrame(EVENTS, HEAD, orient="row")
    stored = io.BytesIO()
    frame.write_parquet(stored)
    litter = {"__MACOSX/._events.csv": b"\0", "folder/": b"", ".DS_Store": b"x"}
    for member, content in (
        ("events.csv", table(EVENTS)),
        ("folder/e.jsonl", frame.write_ndjson()),
        ("e.parquet", stored.getvalue()),
    ):
        zipped(tmp_path / "events.csv.zip", **{member: content}, **litter)
        log = TableFiles("events.csv.zip").read(tmp_path)
        assert events_of(log) == EXPECTED
        assert list(log.files) == [f"events.csv.zip/{member}"]
    zipped(tmp_path / "two.zip", **{"a.csv": table(EVENTS), "b.csv": "x"})
    with pytest.raises(DataError, match=r"two.zip must hold one file, but holds a.csv, b.csv; unpack it"):
        TableFiles("two.zip").read(tmp_path)


def test_what_is_no_table(tmp_path):
    zipped(tmp_path / "events.xlsx", **{"[Content_Types].xml": "x", "xl/workbook.xml": "x"})
    for name, content, said in (
        ("events.xlsx", None, "an Excel workbook: save the sheet as CSV"),
        ("events.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook"),
        ("events.csv.zst", b"\x28\xb5\x2f\xfdxxxx", "packed by zstd"),
        ("events.7z", b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        ("events.zip", b"PK\x03\x04 not a zip", "cannot be read"),
    ):
        if content is not None:
            write(tmp_path / name, content)
        with pytest.raises(DataError, match=said):
            TableFiles(name).read(tmp_path)


def test_a_bomb_ends_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_FREE", 1 << 20)
    write(tmp_path / "events.csv.gz", table(EVENTS) + "u,i,1\n" * 2_000_000)
    zipped(tmp_path / "events.zip", **{"events.csv": table(EVENTS) + "u,i,1\n" * 2_000_000})
    for name in ("events.csv.gz", "events.zip"):
        with pytest.raises(DataError, match=r"unpacks to more than 200 times its size.*unpack it yourself"):
            TableFiles(name).read(tmp_path)


def test_a_line_without_end(tmp_path, monkeypatch):
    from setrec.files import encodings

    monkeypatch.setattr(encodings, "_BLOCK", 1 << 16)
    monkeypatch.setattr(encodings, "_LONGEST", 1 << 17)
    write(tmp_path / "events.csv", "user_id,item_id,timestamp\n" + "x" * (1 << 19))
    with pytest.raises(DataError, match="events.csv has a line of more than"):
        TableFiles().read(tmp_path)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array(tmp_path, indent):
    rows = [dict(zip(HEAD, row, strict=True)) for row in EVENTS]
    write(tmp_path / "events.json", json.dumps(rows, indent=indent))
    assert events_of(TableFiles("events.json").read(tmp_path)) == EXPECTED
    write(tmp_path / "events.json", json.dumps([*rows, 7]))
    assert skipped(TableFiles("events.json", max_bad_lines=1).read(tmp_path)) == {"events.json": 1}


# ----------------------------------------------------------------------------------------------------------------- ids
def events_with(change) -> str:
    return table([(user, change(item), time) for user, item, time in EVENTS])


def test_ids_are_trimmed_text(tmp_path):
    log = read(
        shop(
            tmp_path,
            events_with(lambda own: f" {own}\t"),
            table([(f"{own} ", title) for own, title in TITLES.items()], head=ITEM_HEAD),
        )
    )
    assert events_of(log) == EXPECTED
    assert titles(log) == TITLES


@pytest.mark.parametrize("where", ["events", "items", "both"])
def test_whole_numbers_with_a_point_are_the_same_ids(tmp_path, where):
    def floated(own: str) -> str:
        return f"{own}.0"

    events = events_with(floated) if where != "items" else None
    items = (
        table([(floated(own), title) for own, title in TITLES.items()], head=ITEM_HEAD) if where != "events" else None
    )
    log = read(shop(tmp_path, events, items))
    assert events_of(log) == EXPECTED
    assert titles(log) == TITLES
    said = {"item ids with a decimal point, read as whole numbers": {"rows": 20, "example": "'1.0' as '1'"}}
    assert log.files["events.csv"].get("notes", {}) == (said if where != "items" else {})


def test_versions_are_no_whole_numbers(tmp_path):
    log = TableFiles().read(shop(tmp_path, events_with(lambda own: f"{own}.0" if own != "7" else "7.5")))
    assert {event[1] for event in events_of(log)} >= {"1.0", "7.5"}


def test_numbers_of_parquet_are_ids(tmp_path):
    users = pl.Series("user_id", [user for user, _, _ in EVENTS])
    items = pl.Series("item_id", [float(item) for _, item, _ in EVENTS])  # pandas, where one is missing
    times = pl.Series("timestamp", [time for _, _, time in EVENTS]) * 1000
    pl.DataFrame([users, items, times.cast(pl.Datetime("ms", "Europe/Berlin"))]).write_parquet(tmp_path / "e.parquet")
    shop(tmp_path)
    assert events_of(read(tmp_path, events="e.parquet")) == EXPECTED


def test_ids_that_are_written_differently(tmp_path):
    """Zeros lost on one side for some items: said, with an example of both."""
    items = table([(own.zfill(6) if int(own) < 15 else own, title) for own, title in TITLES.items()], head=ITEM_HEAD)
    log = read(shop(tmp_path, items=items))
    assert log.files["items.csv"] | {"rows": 0} == {
        "rows": 0, "skipped": 0, "encoding": "utf-8", "separator": ",", "items": 6, "in_no_event": 14,
        "example": "000001", "written_differently": {"items": 14, "here": "000001", "in_events": "1"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda own: own.zfill(5), "20 differ only in zeros in front or in capital letters, such as '00001' and '1'"),
        (lambda own: f"SKU-{own}", "'SKU-1' stands in one, '1' in the other; name the columns"),
    ],
)
def test_no_id_in_common(tmp_path, change, hint):
    items = table([(change(own), title) for own, title in TITLES.items()], head=ITEM_HEAD)
    shop(tmp_path, items=items)
    for keep in (False, True):
        with pytest.raises(DataError, match=f"no id of items.csv is in events.csv.*{hint}"):
            read(tmp_path, keep_unreviewed=keep)


def test_capital_letters(tmp_path):
    upper = table([(f"SKU{own}", title) for own, title in TITLES.items()], head=ITEM_HEAD)
    with pytest.raises(DataError, match="such as 'SKU1' and 'sku1'"):
        read(shop(tmp_path, events_with(lambda own: f"sku{own}"), upper))


def test_words_that_mean_nothing(tmp_path):
    words = ["nan", "None", "NULL", "\\N", "N/A", "NA"]
    rows = [*EVENTS, *((word, "1", 1_400_000_000) for word in words), *(("u00", word, 1_400_000_000) for word in words)]
    about = [*TITLES.items(), *((word, "a title") for word in words)]
    about[:2] = [("1", "nan"), ("2", "\\N")]
    log = read(shop(tmp_path, table(rows), table(about, head=ITEM_HEAD)), max_bad_lines=20)
    assert events_of(log) == EXPECTED
    reasons = log.files["events.csv"]["reasons"]
    assert {why: (one["rows"], one["example"]) for why, one in reasons.items()} == {
        "no user": (6, "line 242: 'nan'"), "no item": (6, "line 248: 'nan'")
    }  # fmt: skip
    assert titles(log) == TITLES | {"1": "", "2": ""}
    kept = read(tmp_path, null_words=[])
    assert len(kept.events) == len(rows)
    assert titles(kept)["1"] == "nan"


# --------------------------------------------------------------------------------------------------------------- times
MOMENT = 1_404_216_000  # 2014-07-01 12:00:00 UTC
FORMS = [
    "1404216000", "1404216000000", "1404216000000000", "1404216000000000000", "1404216000.0", "2014-07-01T12:00:00Z",
    "2014-07-01 12:00:00", "2014-07-01 12:00:00 UTC", "2014-07-01 12:00:00+00:00", "2014-07-01 14:00:00 +0200",
    "2014-07-01T14:00:00+02:00[Europe/Berlin]", "2014-07-01 14:00:00 Europe/Berlin", "2014/07/01 12:00", "2014.07.01 12:00:00",
    "20140701120000", "20140701T120000Z", "Jul 1, 2014 12:00 PM", "July 1, 2014 12:00:00", "1 Jul 2014 12:00",
    "Tue, 01 Jul 2014 12:00:00 +0000", "Tue Jul 01 12:00:00 +0000 2014", "01/Jul/2014:14:00:00 +0200", "01-Jul-2014 12:00",
    "01.07.2014 12:00",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_common_forms_of_times(tmp_path, form):
    rows = [("u", f"i{n}", form) for n in range(3)]
    write(tmp_path / "events.csv", table(rows, quoting=csv.QUOTE_ALL))
    assert [event[2] for event in events_of(TableFiles().read(tmp_path))] == [MOMENT * TICKS] * 3


@pytest.mark.parametrize(
    ("dates", "days"),
    [
        (["01/07/2014", "13/07/2014"], [16252, 16264]),
        (["07/01/2014 12:00", "7/13/2014 5:30 PM"], [16252.5, 16264 + 17.5 / 24]),
        (["01-07-2014", "31-07-2014"], [16252, 16282]),
        (["1.7.14", "2.7.14"], [16252, 16253]),
        (["20140701", "20140713"], [16252, 16264]),
        (["2014-07-01", "2014-07-13"], [16252, 16264]),
    ],
)
def test_dates_that_tell_their_order_together(tmp_path, dates, days):
    write(tmp_path / "events.csv", table([("u", f"i{n}", date) for n, date in enumerate(dates)]))
    found = [event[2] / TICKS / 86_400 for event in events_of(TableFiles().read(tmp_path))]
    assert found == pytest.approx(days)


def test_dates_that_nobody_can_read(tmp_path):
    write(tmp_path / "events.csv", table([("u", "i", "01/07/2014"), ("u", "j", "02/08/2014")]))
    with pytest.raises(
        DataError, match=r"column 'timestamp': in '01/07/2014' nobody can know.*--data.reader.time_format"
    ):
        TableFiles().read(tmp_path)
    for form, day in (("%d/%m/%Y", 16252), ("%m/%d/%Y", 16077)):
        assert events_of(TableFiles(time_format=form).read(tmp_path))[0][2] == day * 86_400 * TICKS
    write(tmp_path / "events.csv", table([("u", "i", "25/12/2014"), ("u", "j", "12/25/2014")]))
    with pytest.raises(DataError, match="'25/12/2014' begins with the day and '12/25/2014' with the month"):
        TableFiles().read(tmp_path)


def test_no_times_only_when_asked_for(tmp_path):
    rows = [(user, item) for user, item, _ in EVENTS]
    shop(tmp_path, table(rows, head=HEAD[:2]))
    with pytest.raises(
        DataError, match=r"no column 'timestamp'.*for events without times, --data.reader.timestamp null"
    ):
        read(tmp_path)
    log = read(tmp_path, timestamp=None)
    assert [event[:2] for event in events_of(log)] == rows
    assert "no times: the order of the rows is the order of the events" in log.files["events.csv"]["notes"]
    catalogue, histories = prepared(tmp_path, TableFiles(timestamp=None), split=LeaveOneOut())
    own = [item for user, item, _ in EVENTS if user == "u00"]
    assert [catalogue.ids[i] for i in histories.train.row(0)] == own[:-2]


def test_columns_of_parquet_that_hold_something_else(tmp_path):
    moment = datetime(2014, 7, 1, 12)
    good = {"user_id": [1], "item_id": [2], "timestamp": [moment]}
    for name, column, said in (
        ("timestamp", [moment.time()], r"no time: '12:00:00'"),
        ("timestamp", [timedelta(hours=1)], r"no time: '1:00:00'"),
        ("item_id", [[2, 3]], r"no item: '\[2, 3\]'"),
        ("user_id", [{"x": 1}], r"no user: "),
    ):
        pl.DataFrame(good | {name: column}).write_parquet(tmp_path / "e.parquet")
        with pytest.raises(DataError, match=said):
            TableFiles("e.parquet").read(tmp_path)
    pl.DataFrame(
        good | {"item_id": pl.Series([b"x"]), "user_id": pl.Series(["u"], dtype=pl.Categorical)}
    ).write_parquet(tmp_path / "e.parquet")
    about = {"item_id": [b"x"], "title": ["T"], "tags": [["a", "b"]], "made": [moment.date()], "odd": [b"\xff"]}
    pl.DataFrame(about).write_parquet(tmp_path / "i.parquet")
    log = TableFiles("e.parquet", "i.parquet").read(tmp_path)
    assert events_of(log) == [("u", "x", MOMENT * TICKS)]
    assert items_of(log)["x"]["text"] == "title: T; tags: a, b; made: 2014-07-01"
    (tmp_path / "e.parquet").rename(tmp_path / "e.csv")
    with pytest.raises(DataError, match=r"e.csv is a parquet file: give it a name that ends in .parquet"):
        TableFiles("e.csv").read(tmp_path)


def test_what_a_spreadsheet_does(tmp_path):
    """Ids in the form 8.71235E+12, a decimal comma where the separator is another, an encoding that was told wrongly."""
    rows = [(user, item, time, "4,5") for user, item, time in EVENTS] + [("u00", "8.71235E+12", 1_400_000_000, "1")]
    shop(tmp_path, table(rows, ";", [*HEAD, "stars"]), table(list(TITLES.items()), head=ITEM_HEAD))
    log = read(tmp_path, rating="stars", item_encoding="latin-1")
    assert {event[3] for event in events_of(log)} == {4.5, 1}
    (note,) = log.files["events.csv"]["notes"].items()
    assert note == (
        "item ids in the form of a spreadsheet, which may have lost their last digits",
        {"rows": 1, "example": "'8.71235E+12'"},
    )
    assert list(log.files["items.csv"]["notes"]) == ["told to be iso8859-1, but it makes sense as UTF-8"]


def test_no_good_row_at_all_says_why(tmp_path):
    write(tmp_path / "events.csv", table([("u", "i", "yesterday")]))
    with pytest.raises(
        DataError, match=r"events.csv holds no events \(1 malformed line: line 2 \(no time: 'yesterday'\)\)"
    ):
        TableFiles(max_bad_lines=5).read(tmp_path)
    write(tmp_path / "events.csv", "user_id item_id timestamp\nu i 5\n")
    with pytest.raises(DataError, match="what stands between the columns with --data.reader.separator"):
        TableFiles().read(tmp_path)
    assert len(TableFiles(separator=" ").read(tmp_path).events) == 1


# -------------------------------------------------------------------------------------------------------------- RecBole
def atomic(rows: list[tuple], times: bool = True) -> str:
    head = "user_id:token\titem_id:token" + "\ttimestamp:float" * times
    return head + "\n" + "".join("\t".join(map(str, row[: 2 + times])) + "\n" for row in rows)


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("where", ["folder", "zip"])
def test_recbole_that_comes_split(tmp_path, times, where):
    parts = {"train": EVENTS[:150], "valid": EVENTS[150:190], "test": EVENTS[190:]}
    files = {f"x/x.{part}.inter": atomic(rows, times) for part, rows in parts.items()}
    files["x/x.item"] = "item_id:token\ttitle:token_seq\n" + "".join(
        f"{own}\t{title}\n" for own, title in TITLES.items()
    )
    if where == "zip":
        zipped(tmp_path / "x.zip", **files)
    else:
        for name, content in files.items():
            write(tmp_path / name, content)
    reader = RecBoleFiles(timestamp="timestamp" if times else None)
    catalogue, histories = prepared(tmp_path, reader, cleaning=Cleaning(k_core=50))  # which does not apply
    assert catalogue.ids == sorted(TITLES)
    assert catalogue.titles == [TITLES[own] for own in catalogue.ids]
    for split, rows in zip((histories.train, histories.validation, histories.test), parts.values(), strict=True):
        for number, user in enumerate(histories.ids):
            expected = [item for one, item, _ in rows if one == user]
            assert [catalogue.ids[item] for item in split.row(number)] == expected
    manifest = read_manifest(tmp_path / "data/x")
    assert manifest is not None
    assert manifest["report"]["targets"]["test"] == {"events": 50, "users": 12}
    assert len(reader.sources(tmp_path)) == (1 if where == "zip" else 4)


def test_recbole_that_comes_split_in_part(tmp_path):
    write(tmp_path / "x.train.inter", atomic(EVENTS))
    write(tmp_path / "x.test.inter", atomic(EVENTS))
    with pytest.raises(DataError, match=r"holds x.test.inter, x.train.inter, but no x.valid.inter"):
        RecBoleFiles().read(tmp_path)
    write(tmp_path / "x.valid.inter", "user_id:token\titem_id_list:token_seq\titem_id:token\n1\t2 3\t4\n")
    with pytest.raises(DataError, match="holds a list of items in each row"):
        RecBoleFiles(timestamp=None).read(tmp_path)
    write(tmp_path / "x.inter", atomic(EVENTS))  # the whole data set comes first
    assert len(RecBoleFiles().read(tmp_path).events) == len(EVENTS)


def test_recbole_in_other_encodings(tmp_path):
    write(tmp_path / "x.inter", atomic(EVENTS))
    about = "item_id:token\tmovie_title:token_seq\n" + "".join(f"{own}\t{title}\n" for own, title in TITLES.items())
    write(tmp_path / "x.item", about.encode("cp1252"))
    assert titles(RecBoleFiles().read(tmp_path)) == TITLES
    write(tmp_path / "x.item", about.encode("utf-16"))
    assert titles(RecBoleFiles().read(tmp_path)) == TITLES


# --------------------------------------------------------------------------------------------------------- what is said
def test_what_was_done_is_printed_and_kept(tmp_path, capsys):
    rows = [*EVENTS, EVENTS[0], ("rare", "1", 1_400_000_001), ("u00", "", 5), ("u01", "3", "soon")]
    about = [(own, title) for own, title in TITLES.items() if own not in ("4", "5")]
    about += [("999", "never bought"), ("", "no id")]
    about[0] = ("1", about[1][1])  # two items with the same text
    shop(tmp_path, table(rows), table(about, head=ITEM_HEAD))
    reader = TableFiles(items="items.csv", max_bad_lines=5)
    prepared(
        tmp_path,
        reader,
        cleaning=Cleaning(k_core=2),
        split=TimestampSplit(1_400_600_000, 1_400_720_000),
        text=TfidfSVD(8, 1),
    )
    manifest = read_manifest(tmp_path / "data/x")
    assert manifest is not None
    report = manifest["report"]
    assert report["files"]["events.csv"]["reasons"] == {
        "no item": {"rows": 1, "example": "line 244"}, "no time": {"rows": 1, "example": "line 245: 'soon'"}
    }  # fmt: skip
    assert report["files"]["items.csv"]["in_no_event"] == 1
    assert report["read"] == {"events": 242, "users": 13, "items": 20}
    assert report["cleaning"] == [{"step": "drop_duplicates", "dropped": 1}, {"step": "k_core 2", "dropped": 1}]
    assert report["kept"] == {"events": 240, "users": 12, "items": 20}
    assert [one["events"] for one in report["targets"].values()] == [167, 33, 40]
    assert report["items"] == {"described": 18}
    assert report["text"] == {"empty": 2, "duplicate": 2}
    assert report["times"]["tied"] == 0
    assert manifest["skipped_lines"] == {"events.csv": 2, "items.csv": 1}
    said = capsys.readouterr().err
    for line in (
        "data set x, prepared in",
        "events.csv: 244 rows; 1 skipped: no item (line 244); 1 skipped: no time (line 245: 'soon')",
        "items.csv: 20 rows; 1 skipped: no item (line 21); 1 ids in no event (such as '999')",
        "cleaning: 242 events of 13 users and 20 items, -1 by drop_duplicates, -1 by k_core 2",
        "kept: 240 events of 12 users and 20 items; train 167 (12 users), validation 33 (12 users), test 40 (12 users)",
        "times: 2014-05-13 16:53:20 to 2014-05-23 15:53:20, 0.0% of the events tied with another of the user",
        "items: 18 of 20 have a text",
        "text vectors: 2 empty, 2 the same as another's",
    ):
        assert line in said, line


def test_a_split_without_targets_is_said_when_it_is_made(tmp_path, capsys):
    rows = [(f"u{n // 20:02d}", f"i{n * 7 % 30}", n) for n in range(600)]  # row numbers for times, sorted by user
    shop(tmp_path, table(rows))
    for _ in range(2):  # and whenever it is used
        prepared(tmp_path, TableFiles())
        said = capsys.readouterr().err
        assert (
            "WARNING: the split leaves no test targets (9 users were dropped: they have fewer than 2 training items)"
            in said
        )
        assert (
            "WARNING: the times go from 1970-01-01 00:00:00 to 1970-01-01 00:09:59: they look like row numbers" in said
        )
    prepared(tmp_path, TableFiles(), "few", split=TimestampSplit(5, 10))
    assert "WARNING: the training split has only 5 events of 5 items: too few to learn from." in capsys.readouterr().err
