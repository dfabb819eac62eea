"""Tables of vectors that are larger than memory: what making them holds, and that they are the same numbers."""

import errno
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from setrec.cf import CFFile
from setrec.data import identity
from setrec.data.clean import Cleaning
from setrec.data.item_vectors import make_vectors
from setrec.data.preparation import Preparation
from setrec.data.readers.base import SplitLog
from setrec.data.readers.table import TableFiles
from setrec.data.split import LeaveOneOut
from setrec.data.store import Prepared, write
from setrec.encoders import LanguageModelText
from setrec.errors import DataError
from setrec.files import mapped
from setrec.files.ragged import Ragged
from setrec.files.text_blocks import Encode
from setrec.text import TextFile, TfidfSVD
from setrec.vectors import FileVectors

N, WIDTH = 8000, 512  # a table of 16 MiB
IDS = [f"i{row}" for row in range(N)]


class Lengths(LanguageModelText):
    """An encoder of two texts an item whose vector repeats the length of the text; it needs no model."""

    def __init__(self, combine: bool) -> None:
        self.model, self.revision, self.max_tokens, self.normalize = "lengths", None, None, True
        self.batch_size, self.device, self.dtype, self.combine = 16, "cpu", "float32", combine

    @property
    def templates(self) -> list[str]:
        return ["{title}", "{text}"] if self.combine else ["{text}"]

    def combine_fields(self, vectors: np.ndarray, filled: np.ndarray) -> np.ndarray:
        return vectors.mean(axis=1) if self.combine else vectors[:, 0]

    def load(self) -> Encode:
        return lambda texts: np.array([[len(text), *range(1, WIDTH)] for text in texts], np.float32)


def log() -> SplitLog:
    row = pl.int_range(N, eager=True)
    text = pl.select((pl.lit("word ") + (row % 997).cast(pl.String)).alias("text"))["text"]
    items = pl.DataFrame({"id": IDS, "title": text, "text": text})
    nobody = Ragged.from_rows([[]])
    return SplitLog(["u"], items, Ragged.from_rows([[0, 1, 2]]), nobody, nobody)


def rows(dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(3).standard_normal((N, WIDTH)).astype(dtype)


def npy(path: Path) -> Path:
    np.save(path / "v.npy", rows())
    return path / "v.npy"


def doubles(path: Path) -> Path:
    np.save(path / "d.npy", np.asfortranarray(rows("float64")))
    return path / "d.npy"


def safetensors(path: Path) -> Path:
    save_file({"vectors": rows("float16")}, path / "v.safetensors")
    return path / "v.safetensors"


def parquet(path: Path) -> Path:
    table = pl.DataFrame(
        {"id": IDS, "vector": pl.Series(rows(), dtype=pl.Array(pl.Float32, WIDTH)).cast(pl.List(pl.Float64))}
    )
    table[::-1].write_parquet(path / "v.parquet", row_group_size=500)
    return path / "v.parquet"


MAKERS: dict[str, Callable[[Path], Preparation]] = {
    "a language model": lambda path: preparation(text=Lengths(combine=False)),
    "two fields": lambda path: preparation(text=Lengths(combine=True)),
    "a file of texts": lambda path: preparation(text=TextFile(str(npy(path)))),
    "CF vectors": lambda path: preparation(cf=[CFFile(str(safetensors(path)))]),
    "a source, doubles": lambda path: preparation(vectors={"x": FileVectors(str(doubles(path)))}),
    "a source, parquet": lambda path: preparation(vectors={"x": FileVectors(str(parquet(path)))}),
}


def preparation(**given: object) -> Preparation:
    plain = Preparation(TableFiles("events.csv"), None, [], Cleaning(), LeaveOneOut(), paper_ids=False)
    return plain._replace(**given)  # type: ignore[arg-type]


def make(given: Preparation, folder: Path) -> None:
    """Make the vectors and write the data set."""
    of = log()
    made = make_vectors("x", of, given, None, dict.fromkeys(given.sources(None), ""), folder / "scratch")
    cf = [(one.vectors, one.present) for one in made.cf]
    text = None if made.text is None else made.text.vectors
    splits = (of.train, of.validation, of.test)
    whole = Prepared("x", of.items, of.user_ids, *splits, text, cf, vectors=made.more)
    write(folder / "x", whole, made.about)


def tables(folder: Path) -> dict[str, np.ndarray]:
    files = [folder / f"x/{name}.safetensors" for name in ("text", "cf", "vectors")]
    return {key: table for file in files if file.exists() for key, table in load_file(file).items()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", MAKERS)
def test_making_a_table_holds_a_part_of_it(
    kind: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = MAKERS[kind](tmp_path)._replace(vector_dtype=dtype)
    make(given, tmp_path / "whole")
    whole = tables(tmp_path / "whole")
    monkeypatch.setattr(mapped, "_BLOCK", 1 << 16)  # numbers: 256 KiB
    monkeypatch.setattr(identity, "_ROWS", 1 << 7)
    tracemalloc.start()
    try:
        make(given, tmp_path / "parts")
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held < N * WIDTH * 4 / 2, f"{held / 2**20:.1f} MiB of a table of {N * WIDTH * 4 / 2**20:.0f}"
    parts = tables(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for key, table in whole.items():
        assert table.dtype == parts[key].dtype
        assert np.array_equal(table, parts[key]), key


@pytest.mark.parametrize("kind", ["a file of texts", "a source, parquet"])
def test_the_rows_of_a_file_are_those_of_the_items(kind: str, tmp_path: Path) -> None:
    make(MAKERS[kind](tmp_path), tmp_path)
    (table,) = (one for key, one in tables(tmp_path).items() if key.endswith("vectors"))
    scale = np.linalg.norm(rows(), axis=1).mean() if kind == "a source, parquet" else 1
    np.testing.assert_allclose(table, rows() / scale, rtol=1e-6)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"has no room for a table of .* free some space or choose another place"):
        make(MAKERS["a source, doubles"](tmp_path), tmp_path)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_sample_of_the_texts_is_learned_from_and_the_others_are_projected() -> None:
    texts = [f"word{row % 7} word{row % 5} thing{row % 3}" for row in range(300)]
    ids = [str(row) for row in range(300)]
    items = pl.DataFrame({"id": ids, "title": "", "text": texts})
    encoder = TfidfSVD(64, sample=100)
    vectors = encoder.encode(ids, texts, None, items)
    np.testing.assert_allclose(vectors, encoder.encode_more(items, encoder.learned()), atol=1e-5)
    assert encoder.describe()["sample"] == 100
    whole = TfidfSVD(64, sample=300)
    assert "sample" not in whole.describe()
    all_texts = whole.encode(ids, texts, None, items)
    assert np.abs(vectors @ vectors.T - all_texts @ all_texts.T).mean() < 0.02  # cosines: only the idf differ
