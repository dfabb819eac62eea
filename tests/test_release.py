"""The whole official release: what it holds, its texts and its text vectors, and that every preset runs on nothing else."""

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from setrec.commands.configurations import SHIPPED, shipped_names
from setrec.data import OfficialRelease
from setrec.data.readers.official import fields_of
from setrec.errors import DataError
from setrec.text import TextFile
from tests.conftest import TINY_ITEMS, build_release, save_object

DATA_SETS = ("toys", "beauty", "sports", "steam")
RELEASE = {  # every file of a data set in the authors' repository
    "training_dict.npy", "validation_dict.npy", "testing_dict.npy", "testing_warm_dict.npy", "testing_cold_dict.npy",
    "warm_item.npy", "cold_item.npy", "combine_tdcb_maps.npy", "SASRec_item_embed.pkl", "{name}.emb-t5-tdcb.npy",
}  # fmt: skip
VECTORS = re.compile(r"\.(npy|pkl|safetensors|jsonl)$")


def text_of(item: int) -> str:
    """A text as the authors write it; every fifth item has no title, every third no description."""
    toy = ("wooden train", "paper crane", "metal robot", "cloth doll")[item % 4]
    title = f"{toy.capitalize()} No. {item}" if item % 5 else f"title_{item}"
    description = f"A {toy} for all. Number {item}" if item % 3 else f"description_{item}"
    return (
        f"The item title is {title}. {description}. It has the categories of Toys & Games , {toy}. "
        f"The brand of this item is Maker {item % 4}"
    )


def whole_release(folder: Path, name: str = "toys") -> Path:
    """A tiny release with all that the authors' has, and nothing else."""
    build_release(folder)
    (folder / "items.jsonl").unlink()
    vectors = np.load(folder / "text.npy")
    (folder / "text.npy").unlink()
    np.save(folder / f"{name}.emb-t5-tdcb.npy", vectors)
    save_object(folder / "combine_tdcb_maps.npy", {"recid2combine": {i: text_of(i) for i in range(TINY_ITEMS)}})
    assert {path.name for path in folder.iterdir()} == {file.format(name=name) for file in RELEASE}
    return folder


# ------------------------------------------------------------------------------------------------------------ what is in it
def test_what_is_downloaded_is_the_whole_release() -> None:
    for name in DATA_SETS:
        sources = OfficialRelease().public(name)
        assert {source.name for source in sources} == {file.format(name=name) for file in RELEASE}
        needed = {source.name for source in sources if not source.optional}
        assert needed == {"training_dict.npy", "validation_dict.npy", "testing_dict.npy"}


@pytest.mark.parametrize("name", shipped_names())
def test_a_preset_names_no_file_that_the_release_lacks(name: str) -> None:
    known = {file.format(name=data) for file in RELEASE for data in DATA_SETS}

    def words(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [word for key, inside in value.items() for word in [*words(key), *words(inside)]]
        if isinstance(value, list):
            return [word for inside in value for word in words(inside)]
        return [value] if isinstance(value, str) else []

    config = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
    assert {word for word in words(config) if VECTORS.search(word)} <= known
    comments = [line for line in (SHIPPED / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert not [word for line in comments for word in line.split() if VECTORS.search(word) and word not in known]


# ----------------------------------------------------------------------------------------------------------------- its texts
@pytest.mark.parametrize(
    ("text", "title", "description", "categories", "brand"),
    [
        (text_of(1), "Paper crane No. 1", "A paper crane for all. Number 1", "Toys & Games, paper crane", "Maker 1"),
        (text_of(5), "", "A paper crane for all. Number 5", "Toys & Games, paper crane", "Maker 1"),
        (text_of(3), "Cloth doll No. 3", "", "Toys & Games, cloth doll", "Maker 3"),
        (text_of(15), "", "", "Toys & Games, cloth doll", "Maker 3"),
        (
            "The item title is Dr. Seuss, G.I. Joe vs. 10. Fun!. It has. Two ends. It has the categories of A , B, C. "
            "The brand of this item is unknown",
            "Dr. Seuss, G.I. Joe vs. 10", "Fun!. It has. Two ends", "A, B, C", "",
        ),
        ("The game title is Portal. A game. The tags are Action , Indie. The publisher is Valve.", "Portal", "A game",
         "Action, Indie", "Valve"),
        ("The item title is Portal", "Portal", "", "", ""),
        ("The item title is . . It has the categories of . The brand of this item is ", "", "", "", ""),
    ],
)  # fmt: skip
def test_a_text_is_taken_apart(text: str, title: str, description: str, categories: str, brand: str) -> None:
    assert fields_of(text) == {"title": title, "description": description, "categories": categories, "brand": brand}


def test_the_table_of_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = OfficialRelease().read(whole_release(tmp_path / "toys")).items
    assert items.columns == ["id", "title", "description", "categories", "brand", "text"]
    assert items.row(7, named=True) == {
        "id": "7", "title": "Cloth doll No. 7", "description": "A cloth doll for all. Number 7",
        "categories": "Toys & Games, cloth doll", "brand": "Maker 3",
        "text": "Cloth doll No. 7. A cloth doll for all. Number 7. Toys & Games, cloth doll. Maker 3",
    }  # fmt: skip
    assert not [text for text in items["text"] if "title_" in text or "description_" in text]
    said = "40 items; without a value: title 8, description 14, categories 0, brand 0, text 0\n"
    assert capsys.readouterr().err == f"combine_tdcb_maps.npy: {said}"


def test_texts_that_are_missing_or_of_another_form_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = whole_release(tmp_path / "toys")
    texts = {i: text_of(i) for i in reversed(range(TINY_ITEMS)) if i != 4} | {9: "something else " * 200}
    save_object(folder / "combine_tdcb_maps.npy", {"recid2combine": texts})
    items = OfficialRelease().read(folder).items
    assert (items["text"][4], items["title"][9], items["text"][8][:11]) == ("", "", "Wooden train"[:11])
    assert len(items["text"][9]) == 2000
    said = capsys.readouterr().err
    assert "text 1; 1 texts have another form and are kept whole, e.g. that of item 9\n" in said


def test_items_jsonl_takes_the_place_of_the_texts(tiny_release: Path) -> None:
    expected = OfficialRelease().read(tiny_release).items
    (tiny_release / "combine_tdcb_maps.npy").write_bytes(b"damaged, but not needed")
    assert OfficialRelease().read(tiny_release).items.equals(expected)
    assert tiny_release / "combine_tdcb_maps.npy" not in OfficialRelease().sources(tiny_release)


class Hostile:
    """Unpickled freely, this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["file", "text", "key"])
def test_hostile_texts_are_one_sentence(tmp_path: Path, where: str) -> None:
    folder, proof = whole_release(tmp_path / "toys"), tmp_path / "proof"
    bad = Hostile(proof)
    content = {"file": bad, "text": {"recid2combine": {0: bad}}, "key": {"recid2combine": {(bad,): "x"}}}[where]
    save_object(folder / "combine_tdcb_maps.npy", content)
    with pytest.raises(DataError, match=r"^combine_tdcb_maps.npy is refused: [^\n]*system") as caught:
        OfficialRelease().read(folder)
    assert not proof.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "must hold a dict with the entry 'recid2combine'"),
        ({"recid2title": {}}, "must hold a dict with the entry 'recid2combine'"),
        ({"recid2combine": ["a"]}, "must hold a dict with the entry 'recid2combine'"),
        ({"recid2combine": {"0": "a"}}, r"item '0' has 'a', but it must be a whole number"),
        ({"recid2combine": {0: 5}}, "item 0 has 5, but"),
        ({"recid2combine": {-1: "a"}}, "item -1 has"),
        ({"recid2combine": {TINY_ITEMS: "a"}}, "disagree about the number of items .*41 in combine_tdcb_maps.npy"),
    ],
)
def test_wrong_texts(tmp_path: Path, content: object, message: str) -> None:
    folder = whole_release(tmp_path / "toys")
    save_object(folder / "combine_tdcb_maps.npy", content)
    with pytest.raises(DataError, match=message):
        OfficialRelease().read(folder)


def test_damaged_texts(tmp_path: Path) -> None:
    folder = whole_release(tmp_path / "toys")
    path = folder / "combine_tdcb_maps.npy"
    whole = path.read_bytes()
    for keep in (0, 40, 150, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(
            DataError, match=r"^combine_tdcb_maps.npy .*(download it again|from a source you trust, .*)\.$"
        ):
            OfficialRelease().read(folder)
    twice = pickle.dumps({5: "a", 6: "b"}, 2).replace(b"K\x06", b"K\x05")
    header = np.lib.format.magic(1, 0) + len(
        head := b"{'descr': '|O', 'fortran_order': False, 'shape': ()}\n"
    ).to_bytes(2, "little")
    path.write_bytes(header + head + twice)
    with pytest.raises(DataError, match="the entry of 5 is there twice"):
        OfficialRelease().read(folder)


# ---------------------------------------------------------------------------------------------------------- its text vectors
def test_rows_of_text_vectors_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [f"A{i}" for i in range(4)]
    path = tmp_path / "toys.emb-t5-tdcb.npy"
    np.save(path, np.array([[1, 2], [3, 4], [1, 2], [1, 2]], np.float32))
    TextFile(path.name).encode(ids, ids, tmp_path)
    assert (
        capsys.readouterr().err
        == f"{path.name}: 2 of 4 rows equal an earlier row, e.g. item A2 has the vector of item A0\n"
    )
    np.save(path, np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32))
    TextFile(path.name).encode(ids, ids, tmp_path)
    assert capsys.readouterr().err == ""
    np.save(path, np.array([[1, 2], [3, np.inf], [5, 6], [7, 8]], np.float32))
    with pytest.raises(DataError, match=r"row 1 \(item A1\) holds NaN or infinity"):
        TextFile(path.name).encode(ids, ids, tmp_path)
    with pytest.raises(DataError, match="has 4 rows but the data has 3 items"):
        TextFile(path.name).encode(ids[:3], ids[:3], tmp_path)


# ------------------------------------------------------------------------------------------------------------ all presets
MODELS = (
    "best",
    "best_t5",
    "best_texts",
    "paper_t5",
    "paper_qwen",
    "qwen3",
    "qwen_tiny",
    "t5_tiny",
    "smollm2",
    "sasrec",
)
RUNS = {f"toys, {model}": ("toys", ["data/toys", f"model/{model}"]) for model in MODELS}
RUNS |= {f"{data}, {model}": (data, [f"data/{data}", f"model/{model}"])
         for data in DATA_SETS[1:] for model in ("best", "best_texts", "paper_qwen")}  # fmt: skip
RUNS |= {name: ("toys", [name]) for name in ("toys_t5", "toys_best")}
RUNS["steam, best without text"] = ("steam", ["data/steam", "model/best", "model/cf_only"])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_preset_runs_on_the_release_alone(name: str, tmp_path: Path, folders: dict[str, Path]) -> None:
    from setrec.cli import run

    data, configs = RUNS[name]
    release = whole_release(tmp_path / "release", data)
    words = [f"--config={config}" for config in configs]
    words += [f"--data.raw={release}", f"--data.root={tmp_path / 'data'}", "--data.batch_size=128"]
    given = [yaml.safe_load((SHIPPED / f"{config}.yaml").read_text()) for config in configs]
    if any("backbone" in config.get("model", {}) for config in given):
        words += ["--model.backbone.shape=nano", "--model.backbone.pretrained=null"]
    if any("HiddenStatesText" in str(config) for config in given):
        words += [f"--data.text.model={folders['qwen2']}"]
    words += [f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.precision=32-true"]
    run(["fit", *words, "--trainer.enable_model_summary=false", "--test_after_fit=true"])
    results = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    assert results["metrics"]["all"]["recall@20"] > 0
