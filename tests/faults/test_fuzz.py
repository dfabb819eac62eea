"""Damaged tables and request bodies: a valid result or one clear sentence, never a traceback and never a status of 5xx."""

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from setrec.data import AmazonReviews, Cleaning, LeaveOneOut, RecBoleFiles, SETRecDataModule, TableFiles
from setrec.data.readers.base import EventLog, Reader
from setrec.errors import SETRecError
from setrec.text import TfidfSVD
from tests.faults.conftest import TRIES
from tests.serve_fake import WITH_TOKEN

pytestmark = pytest.mark.fault

Tally = Callable[..., None]
SETTINGS = settings(
    max_examples=5 * TRIES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
WORDS = [
    "user_id",
    "item_id",
    "timestamp",
    "a",
    "1",
    "1.0",
    "007",
    "",
    "nan",
    "null",
    '"',
    '"a',
    "-1",
    "1e400",
    "2020-01-01",
]
CELLS = st.one_of(st.sampled_from(WORDS), st.text(max_size=6), st.integers().map(str))
DAMAGES = ("flip", "cut", "repeat", "insert", "join")


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content with one to three places damaged."""
    for _ in range(draw.randint(1, 3)):
        place, length = draw.randrange(len(content) + 1), draw.randint(1, 40)
        kind = draw.choice(DAMAGES)
        if kind == "flip" and content:
            at = min(place, len(content) - 1)
            content = content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:place] + content[place + length :]
        elif kind == "repeat":
            content = content[:place] + content[place : place + length] * 2 + content[place + length :]
        elif kind == "insert":
            content = content[:place] + draw.randbytes(draw.randint(1, 4)) + content[place:]
        else:
            content = content.replace(b"\n", draw.choice([b"\r\n", b"\r", b"", b"\n\n", b"\0"]), draw.randint(1, 3))
    return content


def events() -> pl.DataFrame:
    draw = random.Random(1)
    rows = [(f"u{draw.randrange(12)}", f"i{draw.randrange(9)}", 1_600_000_000 + 3600 * n) for n in range(120)]
    return pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row")


def of_kind(kind: str) -> bytes:
    """A whole table of events in a format."""
    file, table = io.BytesIO(), events()
    if kind == "parquet":
        table.write_parquet(file)
    elif kind == "jsonl":
        table.write_ndjson(file)
    else:
        table.write_csv(file, separator="\t" if kind == "tsv" else ",")
    return gzip.compress(file.getvalue(), mtime=0) if kind.endswith(".gz") else file.getvalue()


def judged(reader: Reader, folder: Path) -> bool:
    """Whether a reader reads the folder; if not, it must say why in one line."""
    try:
        log = reader.read(folder)
    except SETRecError as error:
        said = str(error).strip()
    else:
        said = ""
    if said:
        assert "\n" not in said, said
        return False
    assert isinstance(log, EventLog)
    assert log.events["user"].null_count() == log.events["item"].null_count() == log.events["time"].null_count() == 0
    return True


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "csv.gz"])
def test_damaged_tables(kind: str, tmp_path: Path, tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    whole, file = of_kind(kind), tmp_path / f"events.{kind}"
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},wooden train {n}\n" for n in range(9)))
    file.write_bytes(whole)
    assert judged(TableFiles(events=file.name, items="items.csv"), tmp_path)

    @SETTINGS
    @given(st.integers(0, 1 << 32))
    def check(seed: int) -> None:
        file.write_bytes(damaged(whole, random.Random(seed)))
        tally(tries=1, survived=1, read=judged(TableFiles(events=file.name, items="items.csv"), tmp_path))

    check()


@pytest.mark.parametrize("part", ["events", "items"])
def test_tables_of_any_cells(part: str, tmp_path: Path, tally: Tally) -> None:
    events().write_csv(tmp_path / "events.csv")
    (tmp_path / "items.csv").write_text("item_id,title\ni1,a title\n")

    head = ["user_id", "item_id", "timestamp"] if part == "events" else ["item_id", "title"]
    row = st.one_of(st.lists(CELLS, max_size=5), st.just(["u1", "i1", "1600000000"][-len(head) :]), st.just(head))

    @SETTINGS
    @given(st.lists(row, max_size=8), st.sampled_from(",;\t|"), st.sampled_from([True, True, False]))
    def check(rows: list[list[str]], separator: str, header: bool) -> None:
        lines = [separator.join(row) for row in ([head] if header else []) + rows]
        (tmp_path / f"{part}.csv").write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        made = TableFiles(events="events.csv", items="items.csv", max_bad_lines=1.0)
        tally(tries=1, survived=1, read=judged(made, tmp_path))

    check()


@pytest.mark.parametrize("reader", ["recbole", "amazon"])
def test_damaged_releases(reader: str, tmp_path: Path, tally: Tally) -> None:
    if reader == "recbole":
        named = events().rename(
            {"user_id": "user_id:token", "item_id": "item_id:token", "timestamp": "timestamp:float"}
        )
        whole, file = named.write_csv(separator="\t").encode(), tmp_path / "x.inter"
        (tmp_path / "x.item").write_text("item_id:token\ttitle:token_seq\ni1\ta title\n")
    else:
        rows = [{"reviewerID": u, "asin": i, "unixReviewTime": t, "overall": 5.0} for u, i, t in events().iter_rows()]
        whole, file = "\n".join(map(json.dumps, rows)).encode(), tmp_path / "reviews_X_5.json"
        (tmp_path / "meta_X.json").write_text(json.dumps({"asin": "i1", "title": "a title"}) + "\n")

    def made() -> Reader:
        return RecBoleFiles() if reader == "recbole" else AmazonReviews()

    file.write_bytes(whole)
    assert judged(made(), tmp_path)

    @SETTINGS
    @given(st.integers(0, 1 << 32))
    def check(seed: int) -> None:
        file.write_bytes(damaged(whole, random.Random(seed)))
        tally(tries=1, survived=1, read=judged(made(), tmp_path))

    check()


def test_damaged_tables_are_prepared_or_refused(tmp_path: Path, tally: Tally) -> None:
    whole, file = of_kind("csv"), tmp_path / "raw" / "events.csv"
    file.parent.mkdir()
    (file.parent / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},wooden train {n}\n" for n in range(9)))
    draw = random.Random(3)
    for _ in range(TRIES):
        file.write_bytes(damaged(whole, draw))
        data = SETRecDataModule(
            name="tiny", root=str(tmp_path / "data"), raw=str(file.parent), cleaning=Cleaning(k_core=1), split=LeaveOneOut(),
            reader=TableFiles(events="events.csv", items="items.csv"), text=TfidfSVD(min_df=1),
        )  # fmt: skip
        said = ""
        try:
            data.prepare_data()
            data.setup()
        except SETRecError as error:
            said = str(error)
        assert "\n" not in said, said
        tally(tries=1, survived=1, prepared=not said)


# ------------------------------------------------------------------------------------------------------- request bodies
NUMBERS = st.one_of(st.integers(), st.floats(), st.just(3e38), st.just(-1), st.just(10**400))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | NUMBERS
    | st.text(max_size=12)
    | st.sampled_from(["A001", "A002", "id", "title", "=1+1"]),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=6), inside, max_size=4),
    max_leaves=12,
)
KEYS = (
    "histories",
    "k",
    "exclude_seen",
    "candidates",
    "explain",
    "beta",
    "unknown",
    "items",
    "id",
    "title",
    "text",
    "vector",
    "path",
)
BODIES = {
    "/recommend": {"histories": [["A001", "A002"], []], "k": 5, "explain": True, "candidates": ["A003"]},
    "/items": {"items": [{"id": "N1", "title": "a title", "text": "a text"}]},
    "/model/reload": {"path": "model.ckpt"},
}


def changed(value: Any, draw: random.Random, fresh: Any) -> Any:
    """A body with one place changed to something fresh."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice([*value])
        return value | {draw.choice([key, draw.choice(KEYS)]): changed(value[key], draw, fresh)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        return [*value[:place], changed(value[place], draw, fresh), *value[place + 1 :]]
    return fresh


@pytest.mark.parametrize("path", [*BODIES])
def test_request_bodies(path: str, client: Any, tally: Tally) -> None:
    whole = BODIES[path]

    @SETTINGS
    @given(st.integers(0, 1 << 32), VALUES, st.sampled_from([False, False, True]))
    def check(seed: int, fresh: Any, bytewise: bool) -> None:
        draw = random.Random(seed)
        body = (
            json.dumps(changed(whole, draw, fresh) if draw.random() < 0.8 else whole).replace("N1", f"N{seed}").encode()
        )
        if bytewise:
            body = damaged(body, draw)
        kind = draw.choice(["application/json"] * 8 + ["text/plain", "application/x-www-form-urlencoded"])
        answer = client.post(path, content=body, headers=WITH_TOKEN | {"content-type": kind})
        assert answer.status_code < 500, (body, answer.text)
        if answer.status_code >= 400:
            assert answer.json()["error"]
        tally(tries=1, survived=1, accepted=answer.status_code < 300)

    check()


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"histories":' * 5_000, b"\xff\xfe", b"", b"1" * 10_000])
@pytest.mark.parametrize("path", [*BODIES])
def test_odd_bodies(path: str, body: bytes, client: Any) -> None:
    answer = client.post(path, content=body, headers=WITH_TOKEN | {"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]
