"""What holds for any raw data: found by hypothesis, not chosen by hand."""

import csv
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from setrec.data import (
    AmazonReviews,
    Catalogue,
    Cleaning,
    Histories,
    LeaveOneOut,
    Reader,
    RecBoleFiles,
    SETRecDataModule,
    SteamReviews,
    TableFiles,
    TimeRatioSplit,
)
from setrec.data.catalogue import read_manifest
from setrec.data.preparation import Preparation
from setrec.data.prepare import prepare
from setrec.errors import DataError
from setrec.files.ids import NULL_WORDS
from setrec.files.packed import _OTHERS, _PACKED, _ZIP
from tests.raw_data import skipped

FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
DAY = 86_400
# ids as shops have them: unicode, very long, very big numbers, quotes and separators; no line ends, no halves of pairs
IDS = st.one_of(
    st.sampled_from(["a", "b", "c", "é", "007", "7", "x,y", '"', "日本", "🙂", "A" * 300]),
    st.integers(0, 10**40).map(str),
)
TEXTS = st.one_of(st.just(""), st.none(), st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30))
TEXTS = TEXTS.filter(lambda text: text is None or text.strip() not in NULL_WORDS)  # these mean: none
USERS = st.one_of(st.sampled_from(["u", "ü", "🙂 7"]), IDS)  # three who come often; many of the others come once
EVENTS = st.lists(st.tuples(USERS, IDS, st.integers(0, 12)), min_size=20, max_size=60)  # 13 days: many ties


def amazon(folder: Path, events: list[tuple], items: dict[str, str | None]) -> Reader:
    reviews = [{"reviewerID": u, "asin": i, "overall": 3.0, "unixReviewTime": t * DAY} for u, i, t in events]
    (folder / "reviews_X_5.json").write_text("".join(json.dumps(row) + "\n" for row in reviews))
    meta = [{"asin": i} | ({"title": title} if title is not None else {}) for i, title in items.items()]
    (folder / "meta_X.json").write_text("".join(f"{row!r}\n" for row in meta), "utf8")
    return AmazonReviews()


def steam(folder: Path, events: list[tuple], items: dict[str, str | None]) -> Reader:
    reviews = [{"username": u, "product_id": i, "date": f"1970-01-{t + 1:02d}"} for u, i, t in events]
    (folder / "steam_reviews.json").write_text("".join(f"{row!r}\n" for row in reviews), "utf8")
    games = [{"id": i, "app_name": title} for i, title in items.items()]
    (folder / "steam_games.json").write_text("".join(f"{row!r}\n" for row in games), "utf8")
    return SteamReviews()


def recbole(folder: Path, events: list[tuple], items: dict[str, str | None]) -> Reader:
    rows = "".join(f"{u}\t{i}\t{t * DAY}\n" for u, i, t in events)
    (folder / "x.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + rows, "utf8")
    about = "".join(f"{i}\t{title or ''}\n" for i, title in items.items())
    (folder / "x.item").write_text("item_id:token\ttitle:token_seq\n" + about, "utf8")
    return RecBoleFiles()


def tables(folder: Path, events: list[tuple], items: dict[str, str | None]) -> Reader:
    for name, head, rows in (
        ("events.csv", ("user_id", "item_id", "timestamp"), [(u, i, t * DAY) for u, i, t in events]),
        ("items.csv", ("item_id", "title"), list(items.items())),
    ):
        with (folder / name).open("w", newline="", encoding="utf8") as file:
            csv.writer(file).writerows([head, *rows])
    return TableFiles(items="items.csv")


def json_tables(folder: Path, events: list[tuple], items: dict[str, str | None]) -> Reader:
    rows = [{"user_id": u, "item_id": i, "timestamp": t * DAY} for u, i, t in events]
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = [{"item_id": i, "title": title} for i, title in items.items()]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in about))
    return TableFiles("events.jsonl", "items.jsonl")


def parquet(folder: Path, events: list[tuple], items: dict[str, str | None]) -> Reader:
    columns = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    pl.DataFrame([(u, i, t * DAY) for u, i, t in events], columns, orient="row").write_parquet(folder / "e.parquet")
    about = pl.DataFrame(list(items.items()), {"item_id": pl.String, "title": pl.String}, orient="row")
    about.write_parquet(folder / "i.parquet")
    return TableFiles("e.parquet", "i.parquet")


FORMATS = [amazon, steam, recbole, tables, json_tables, parquet]


def prepared(reader: Reader, raw: Path, folder: Path, paper_ids: bool = False) -> tuple[Catalogue, Histories]:
    preparation = Preparation(reader, None, [], Cleaning(k_core=0), TimeRatioSplit(0.2), paper_ids)
    prepare("x", folder, preparation, raw)
    return Catalogue.load(folder), Histories.load(folder)


def tie_key(user: str, item: str, seconds: int) -> int:
    """A number that looks random, made from one event: blake2b of the ids, mixed as in splitmix64."""

    def mixed(number: int) -> int:
        number = (number + 0x9E3779B97F4A7C15) % 2**64
        number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
        return number ^ number >> 31

    of_user, of_item = (
        int.from_bytes(hashlib.blake2b(own.encode(), digest_size=8).digest(), "little") for own in (user, item)
    )
    return mixed(mixed(mixed(of_user) ^ of_item) ^ seconds % 2**64)


def naive(events: list[tuple]) -> list[dict[str, list[str]]]:
    """The prepared splits in plain Python: duplicates dropped, ties in time by chance, users with 2 training items."""
    events = sorted(set(events), key=lambda e: (e[2], tie_key(e[0], e[1], e[2] * DAY)))
    times, n = [t for _, _, t in events], int(0.2 * len(set(events)))
    test_from, validation_from = times[-n], times[-int(-(-1.8 * n // 1))]
    splits: list[dict[str, list[str]]] = [{}, {}, {}]
    for user in {u for u, _, _ in events}:
        own = [(i, (t >= validation_from) + (t >= test_from)) for u, i, t in events if u == user]
        if sum(part == 0 for _, part in own) >= 2:
            for part in range(3):
                splits[part][user] = [i for i, p in own if p == part]
    return splits


@pytest.mark.parametrize("form", FORMATS)
@FEW
@given(events=EVENTS, titles=st.lists(TEXTS, min_size=30, max_size=30), seed=st.integers(0, 9))
@pytest.mark.slow
def test_every_format_gives_what_plain_python_gives_in_any_order(form, events, titles, seed):
    """Unicode, ties, users with one event, items without metadata, metadata without items, empty and missing titles."""
    if len(set(events)) < 5:
        return
    own = sorted({i for _, i, _ in events})
    about = dict(zip([*own[::2], "never reviewed"], titles, strict=False))
    expected = naive(events)
    files = []
    for order in (events, random.Random(seed).sample(events, len(events))):
        with tempfile.TemporaryDirectory() as temporary:
            raw, folder = Path(temporary), Path(temporary) / "data" / "x"
            reader = form(raw, order, about)
            if not expected[0]:
                with pytest.raises(DataError, match="no user has 2 training items"):
                    prepared(reader, raw, folder)
                return
            catalogue, histories = prepared(reader, raw, folder)
            manifest = read_manifest(folder)
            assert manifest is not None
            files.append(manifest["files"])
    splits = (histories.train, histories.validation, histories.test)
    found = [{u: [catalogue.ids[i] for i in s.row(n)] for n, u in enumerate(histories.ids)} for s in splits]
    assert found == expected
    assert catalogue.ids == sorted({i for split in expected for row in split.values() for i in row})
    for item, title in zip(catalogue.ids, catalogue.titles, strict=True):
        assert title == "" if not about.get(item) else "<" in about[item] or "&" in about[item] or (
            title == " ".join(about[item].split())
        )  # fmt: skip
    assert files[0] == files[1]  # shuffled rows, the same bytes


@FEW
@given(
    lines=st.lists(
        st.one_of(
            st.binary(max_size=40).filter(lambda line: b"\n" not in line and b"\r" not in line),
            st.sampled_from(
                [b'{"reviewerID": "u"}', b"{}", b"[]", b"null", b"{'asin': 'x', 'reviewerID': 1}", b"\xff"]
            ),
            st.just(b'{"reviewerID": "u", "asin": "i", "unixReviewTime": 5, "overall": 1.0}'),
        ),
        max_size=40,
    ).filter(lambda lines: not b"".join(lines[:1]).startswith((*_PACKED, *_OTHERS, _ZIP)))  # no packed file
)
def test_rubbish_is_counted_line_by_line(lines):
    """Whatever the bytes: an event for each good line, the others counted, nothing else happens."""
    good = sum(line.startswith(b'{"reviewerID": "u", "asin"') for line in lines)
    empty = sum(
        not line.strip().removeprefix(b"\xef\xbb\xbf") for line in lines
    )  # a lone byte order mark is an empty line
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "reviews_X_5.json").write_bytes(b"\n".join(lines))
        if not good:
            with pytest.raises(DataError, match="holds no events"):
                AmazonReviews(edition=2014, max_bad_lines=1.0).read(Path(temporary))
            return
        log = AmazonReviews(edition=2014, max_bad_lines=1.0).read(Path(temporary))
    assert len(log.events) == good
    assert skipped(log) == {"reviews_X_5.json": len(lines) - empty - good}


@FEW
@given(
    rows=st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0")), max_size=5))
)
def test_rubbish_in_a_csv(rows):
    """Any table of fields, written by Python's csv: no crash, and every row is an event, counted, or empty."""
    rows = [[field[:20] for field in row] for row in rows]
    with tempfile.TemporaryDirectory() as temporary:
        with (Path(temporary) / "events.csv").open("w", newline="", encoding="utf8") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [["user_id", "item_id", "timestamp"], *rows, ["u", "i", "5"]]
            )
        log = TableFiles(max_bad_lines=1.0).read(Path(temporary))
    assert log.files is not None
    empty = sum(not any(row) for row in rows if len(row) in (0, 3))
    assert len(log.events) + skipped(log)["events.csv"] == len(rows) + 1 - empty


def prepared_four(raw: str, root: str) -> list[str]:
    """The hashes of the files of four prepared data sets, and their fingerprints."""
    found = []
    for name, reader in (("t", TableFiles(items="items.csv")), ("a", AmazonReviews(reviews="reviews_X_5.json"))):
        for paper_ids in (False, True):
            data = SETRecDataModule(name=f"{name}{paper_ids}", reader=reader, raw=raw, root=root, paper_ids=paper_ids)
            data.prepare_data()
            data.setup()
            found.append(f"{json.dumps(read_manifest(data.folder)['files'])} {data.catalogue.fingerprint}")
    return found


@pytest.mark.process
@pytest.mark.filterwarnings(
    "ignore:invalid value encountered in divide:RuntimeWarning:sklearn"
)  # texts without variance
def test_prepared_data_does_not_depend_on_the_hash_seed(tmp_path):
    rng = random.Random(0)
    own = [f"{'é' * (i % 3)}{i * 7919 % 101}" for i in range(30)]
    events = [(f"user{rng.randrange(25)}", rng.choice(own), rng.randrange(300)) for _ in range(600)]
    tables(tmp_path, events, {i: f"thing {i} of kind {n % 4}" for n, i in enumerate(own)})
    amazon(tmp_path, events, {i: f"thing {i} of kind {n % 4}" for n, i in enumerate(own)})
    here = prepared_four(str(tmp_path), str(tmp_path / "here"))
    code = "import sys; from tests.test_data_properties import prepared_four as four\n"
    code += "print(hash('a'), *four(*sys.argv[1:]), sep='\\n')"
    seed = "0" if os.environ.get("PYTHONHASHSEED") != "0" else "4242"  # another than here
    words = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "there")]
    there = subprocess.run(
        words,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    hash_of_a, *outputs = there.stdout.splitlines()
    assert int(hash_of_a) != hash("a")
    assert len(here) == 4
    assert outputs == here


@FEW
@given(
    events=EVENTS,
    k_core=st.integers(0, 3),
    latest=st.one_of(st.none(), st.integers(1, 6)),
    repeats=st.sampled_from(["keep", "first", "last"]),
)
def test_cleaning_against_plain_python(events, k_core, latest, repeats):
    """Every option together, on rows in file order, as with paper_ids."""
    rows = [(u, i, t, n) for n, (u, i, t) in enumerate(events)]
    rows = [e for e in rows if not any(o[:3] == e[:3] and o[3] < e[3] for o in rows)]
    if repeats != "keep":
        of_pair: dict[tuple, list[tuple]] = {}
        for event in rows:
            of_pair.setdefault(event[:2], []).append(event)
        first = repeats == "first"
        rows = [min(pair, key=lambda e: e[2:]) if first else (*pair[-1][:3], pair[0][3]) for pair in of_pair.values()]
    if latest is not None:
        rows = [e for e in rows if sum(o[0] == e[0] and o[2:] > e[2:] for o in rows) < latest]
    while True:
        users, items = [e[0] for e in rows], [e[1] for e in rows]
        kept = [e for e in rows if k_core < 2 or (users.count(e[0]) >= k_core and items.count(e[1]) >= k_core)]
        if kept == rows:
            break
        rows = kept
    frame = pl.DataFrame(events, ["user", "item", "time"], orient="row").with_row_index("row")
    cleaning = Cleaning(k_core=k_core, max_user_events=latest, repeats=repeats)
    if not rows:
        with pytest.raises(DataError, match="cleaning leaves none"):
            cleaning.apply(frame)
        return
    found = cleaning.apply(frame).select("user", "item", "time", "row")
    assert found.rows() == sorted(rows, key=lambda e: e[3])


@FEW
@given(events=EVENTS)
def test_leave_one_out_whatever_the_order(events):
    contents = []
    for order in (events, events[::-1]):
        with tempfile.TemporaryDirectory() as temporary:
            raw, folder = Path(temporary), Path(temporary) / "data"
            preparation = Preparation(
                tables(raw, order, {}), None, [], Cleaning(k_core=0), LeaveOneOut(min_train=1), False
            )
            try:
                prepare("x", folder, preparation, raw)
            except DataError:
                contents.append(None)
                continue
            histories = Histories.load(folder)
            assert (histories.test.lengths == 1).all()
            assert (histories.validation.lengths == 1).all()
            manifest = read_manifest(folder)
            assert manifest is not None
            contents.append(manifest["files"])
    assert contents[0] == contents[1]
