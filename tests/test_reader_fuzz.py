"""Readers on damaged files and on any bytes: events, or one sentence; never another exception, never a hang."""

import bz2
import gzip
import io
import json
import random
import tempfile
import zipfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from setrec.data import AmazonReviews, RecBoleFiles, SteamReviews, TableFiles
from setrec.errors import SETRecError
from setrec.files.tables import read_table
from setrec.inference.history_file import read_history_file

ROWS = [(f"u{n % 7}", f"i{n % 5}", 1_400_000_000 + n) for n in range(40)]
HEAD = ["user_id", "item_id", "timestamp"]


def text(separator: str = ",", quote: str = "") -> bytes:
    rows = [HEAD, *ROWS]
    return "".join(separator.join(f"{quote}{field}{quote}" for field in row) + "\n" for row in rows).encode()


def parquet() -> bytes:
    file = io.BytesIO()
    pl.DataFrame(ROWS, HEAD, orient="row").write_parquet(file)
    return file.getvalue()


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("events.csv", content)
    return file.getvalue()


JSON = "".join(json.dumps(dict(zip(HEAD, row, strict=True))) + "\n" for row in ROWS).encode()
REVIEWS = "".join(json.dumps({"reviewerID": u, "asin": i, "unixReviewTime": t}) + "\n" for u, i, t in ROWS).encode()
STEAM = "".join(f"{ {'username': u, 'product_id': i, 'date': '2014-01-01'}!r}\n" for u, i, _ in ROWS).encode()
ATOMIC = text("\t").replace(b"_id", b"_id:token").replace(b"timestamp", b"timestamp:float")
FILES = {  # name -> content, and what reads it
    "e.csv": (text(), TableFiles("e.csv", "e.csv", title=None, max_bad_lines=1.0)),
    "q.csv": (text(quote='"'), TableFiles("q.csv", "q.csv", title=None, max_bad_lines=1.0)),
    "e.tsv": (text("\t"), TableFiles("e.tsv", max_bad_lines=1.0)),
    "e.dat": (text("::"), TableFiles("e.dat", max_bad_lines=1.0)),
    "u16.csv": (text().decode().encode("utf-16"), TableFiles("u16.csv", max_bad_lines=1.0)),
    "gb.csv": (text(), TableFiles("gb.csv", encoding="gb18030", max_bad_lines=1.0)),
    "e.jsonl": (JSON, TableFiles("e.jsonl", "e.jsonl", title=None, max_bad_lines=1.0)),
    "e.json": (b"[" + JSON.replace(b"\n", b",\n")[:-2] + b"]", TableFiles("e.json", max_bad_lines=1.0)),
    "e.parquet": (parquet(), TableFiles("e.parquet", "e.parquet", title=None, max_bad_lines=1.0)),
    "e.csv.gz": (gzip.compress(text(), mtime=0), TableFiles("e.csv.gz", max_bad_lines=1.0)),
    "e.csv.bz2": (bz2.compress(text()), TableFiles("e.csv.bz2", max_bad_lines=1.0)),
    "e.zip": (zipped(text()), TableFiles("e.zip", max_bad_lines=1.0)),
    "x.inter": (ATOMIC, RecBoleFiles(max_bad_lines=1.0)),
    "x.zip": (zipped(ATOMIC).replace(b"events.csv", b"x/xx.inter"), RecBoleFiles(max_bad_lines=1.0)),
    "reviews_X_5.json": (REVIEWS, AmazonReviews(max_bad_lines=1.0)),
    "steam_reviews.json": (STEAM, SteamReviews(max_bad_lines=1.0)),
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One to four damages: a bit, a byte, a piece lost, doubled, or made of what separates things."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.randint(1, 50)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 50)]
        elif kind == 4:
            data[at:at] = rng.choice(
                [b'"', b"\n", b"\r", b"\0", b",", b"\t", b"\xff", b"\xef\xbb\xbf", b'""', b'\\"', b"[", b"{"]
            )
        else:
            del data[at:]
    return bytes(data)


def is_sentence(error: SETRecError) -> None:
    assert "\n" not in str(error).strip()


def survives(name: str, content: bytes) -> bool:
    """Whether the file still gives events. Raises what is no sentence."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            log = FILES[name][1].read(Path(folder))
        except SETRecError as error:
            is_sentence(error)
            return False
        assert len(log.events) > 0
        assert log.files
        return True


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name):
    rng = random.Random(name)
    assert survives(name, FILES[name][0])
    whole = sum(survives(name, damaged(FILES[name][0], rng)) for _ in range(TRIES))
    print(f"{name}: {TRIES} damages, {whole} still give events, 0 other exceptions")


TRIES = 40


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=300), name=st.sampled_from(sorted(FILES)))
def test_any_bytes(content, name):
    survives(name, content)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200), name=st.sampled_from(["t.csv", "t.jsonl", "t.parquet", "t.tsv.gz", "t.zip"]))
def test_any_bytes_as_a_table_of_histories(content, name):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        for start in (b"", b"user_id,item_id,timestamp\n", b'{"user_id": 1, "history": [1, 2]}\n'):
            path.write_bytes(start + content)
            for read in (read_table, read_history_file):
                try:
                    read(path)
                except SETRecError as error:
                    is_sentence(error)
