"""Every matrix refuses to stand beside ids that it was not made for; raw files are known again."""

import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from setrec.cf import CFFile, CooccurrenceSVD
from setrec.data import Catalogue, Cleaning, OfficialRelease, SETRecDataModule, TableFiles, current
from setrec.data.catalogue import read_manifest
from setrec.errors import DataError
from setrec.files.hashes import ids_hash
from setrec.text import TextFile

MATRICES = ["text.safetensors", "cf.safetensors"]


@pytest.fixture
def folder(tiny_release: Path, tmp_path: Path) -> Path:
    """A prepared data set with text and two CF slots."""
    cf = [CFFile(), CooccurrenceSVD(width=8)]
    data = SETRecDataModule(name="x", text=TextFile("text.npy"), cf=cf, raw=str(tiny_release), root=str(tmp_path))
    data.prepare_data()
    return data.folder


def other_items(items: pl.DataFrame, change: str) -> pl.DataFrame:
    if change == "swapped":
        return items.with_columns(pl.Series("id", [items["id"][1], items["id"][0], *items["id"][2:]]))
    if change == "renamed":
        return items.with_columns(pl.Series("id", [*items["id"][:-1], "new"]))
    if change == "one fewer":
        return items.head(-1)
    return pl.concat([items, items.tail(1).with_columns(pl.lit("new").alias("id"))])


@pytest.mark.parametrize("change", ["swapped", "renamed", "one fewer", "one more"])
@pytest.mark.parametrize("kept", MATRICES)
def test_prepared_matrices_beside_other_items(folder, change, kept):
    for name in MATRICES:
        if name != kept:
            (folder / name).unlink()
    Catalogue.load(folder)
    items = pl.read_parquet(folder / "items.parquet")
    other_items(items, change).write_parquet(folder / "items.parquet")
    with pytest.raises(DataError, match=rf"{kept} was made for other items than items.parquet beside it"):
        Catalogue.load(folder)


@pytest.mark.parametrize("name", MATRICES)
def test_prepared_matrices_that_do_not_say_what_they_were_made_for(folder, name):
    save_file(load_file(folder / name), folder / name)
    with pytest.raises(DataError, match=f"{name} was made for other items"):
        Catalogue.load(folder)


@pytest.mark.parametrize("maker", [lambda file: {"text": TextFile(file)}, lambda file: {"cf": [CFFile(file)]}])
def test_matrices_from_files(tiny_release, tmp_path, maker):
    """A file that carries the hash of its ids is held to it, one without at least to the number of rows."""
    ids = OfficialRelease().read(tiny_release).items["id"].to_list()
    vectors = np.random.default_rng(0).standard_normal((len(ids), 8)).astype(np.float32)

    def prepared(file: str) -> None:
        options = {"text": None, "cf": []} | maker(file)
        SETRecDataModule(name="x", raw=str(tiny_release), root=str(tmp_path), **options).prepare_data()

    save_file({"vectors": vectors}, tiny_release / "good.safetensors", {"ids_sha256": ids_hash(ids)})
    prepared("good.safetensors")
    save_file({"vectors": vectors}, tiny_release / "other.safetensors", {"ids_sha256": ids_hash(ids[::-1])})
    with pytest.raises(DataError, match=r"other.safetensors was made for other items or another item order"):
        prepared("other.safetensors")
    np.save(tiny_release / "short.npy", vectors[1:])
    with pytest.raises(DataError, match=r"short.npy has 39 rows but the data has 40 items"):
        prepared("short.npy")


def test_vectors_for_the_paper_ids_are_refused_by_the_other_ids(tmp_path):
    """The same shop under both orders of ids: a file of vectors fits one of them."""
    rows = "".join(f"u{t % 5},i{t * 3 % 7},{t}\n" for t in range(100))
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n" + rows)

    def shop(name: str, paper_ids: bool, text: TextFile | None = None) -> SETRecDataModule:
        options = {"cleaning": Cleaning(k_core=0), "text": text, "cf": [], "paper_ids": paper_ids}
        data = SETRecDataModule(
            name=name, reader=TableFiles(), raw=str(tmp_path), root=str(tmp_path / "data"), **options
        )
        data.prepare_data()
        data.setup()
        return data

    ids = shop("paper", True).catalogue.ids
    save_file({"vectors": np.eye(7, dtype=np.float32)}, tmp_path / "v.safetensors", {"ids_sha256": ids_hash(ids)})
    text = TextFile("v.safetensors")
    assert shop("paper", True, text).catalogue.text is not None
    with pytest.raises(DataError, match="another item order"):
        shop("own", False, text)


def test_big_raw_files_are_known_by_size_and_time(tiny_release, tmp_path, monkeypatch):
    """From _BIG bytes on only a file whose size or time of change differs is hashed again; smaller ones always are."""
    hashed: list[str] = []
    real = current.file_hash
    monkeypatch.setattr(current, "file_hash", lambda path: hashed.append(path.name) or real(path))

    def start() -> list[str]:
        hashed.clear()
        data = SETRecDataModule(name="x", text=None, cf=[CFFile()], raw=str(tiny_release), root=str(tmp_path / "data"))
        data.prepare_data()
        return sorted(hashed)

    names = sorted(path.name for path in tiny_release.iterdir() if path.name != "text.npy")
    assert start() == names
    created = read_manifest(tmp_path / "data" / "x")["created"]
    assert start() == names  # all are small
    monkeypatch.setattr(current, "_BIG", 0)
    assert start() == []
    copy = tiny_release / "copy"
    shutil.copy(tiny_release / "items.jsonl", copy)
    os.replace(copy, tiny_release / "items.jsonl")
    assert start() == ["items.jsonl"]  # another time, the same content: nothing is prepared again
    assert start() == []
    assert read_manifest(tmp_path / "data" / "x")["created"] == created
    content = (tiny_release / "items.jsonl").read_text().replace("wooden", "golden")
    (tiny_release / "items.jsonl").write_text(content)
    assert set(start()) == set(names)
    assert "golden" in Catalogue.load(tmp_path / "data" / "x").titles[0]
