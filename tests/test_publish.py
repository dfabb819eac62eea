"""The published folder: complete in itself, plain, strict, and the same model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from setrec import Recommender
from setrec.cli import main
from setrec.errors import ConfigError
from setrec.evaluation.results import write_results
from setrec.inference.restore import instance_of
from setrec.text import TextVectors
from tests.conftest import TrainedRun, train_tiny
from tests.language_models import save_model
from tests.test_t5 import folder as t5_folder  # noqa: F401

pytestmark = pytest.mark.slow  # trains or loads models in most tests

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def published(tiny_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model"
    main(["publish", "--ckpt_path", str(tiny_run.checkpoint), f"--output={folder}", "--license=mit"])
    return folder


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "copy"))


def asked(recommender: Recommender) -> list[list[str]]:
    own = recommender._snapshot.catalogue.ids
    return [own[:4], [], own[7:19], ["nope", own[3]]]


def test_it_holds_what_the_hub_expects_and_no_pickle(published: Path) -> None:
    files = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert files == {
        "config.json", "model.safetensors", "catalogue.parquet", "results.json", "README.md",
        "encoder/config.json", "encoder/encoder.safetensors",
    }  # fmt: skip
    for path in published.rglob("*"):
        start = path.read_bytes()[:2] if path.is_file() else b""
        assert start[:1] != b"\x80", path  # a pickle
        assert start != b"PK", path  # a zip, as torch.save writes
    assert not [path for path in published.parent.iterdir() if path != published]


def test_it_is_the_same_model(published: Path, tiny_run: TrainedRun) -> None:
    one, two = Recommender.load(tiny_run.checkpoint), Recommender.load(published)
    three = Recommender.from_pretrained(published, device="cpu")
    answers = one.recommend(asked(one), explain=True)
    assert two.recommend(asked(one), explain=True) == answers
    assert three.recommend(asked(one), explain=True) == answers
    assert {**one.info(), "path": ""} == {**two.info(), "path": ""}
    new = [{"id": "NEW", "title": "milk frother", "text": "milk frother. kitchen"}]
    one.add_items(new)
    two.add_items(new)  # the words of the encoder came along
    assert two.recommend([["NEW"]]) == one.recommend([["NEW"]])


@pytest.mark.process
def test_it_loads_in_another_process_without_anything_else(published: Path, tmp_path: Path) -> None:
    """Elsewhere, with no network, no data and no checkpoint."""
    alone = shutil.copytree(published, tmp_path / "elsewhere/model")
    code = (
        "from setrec import Recommender; r = Recommender.from_pretrained('model');"
        "print([[i.id for i in a.items] for a in r.recommend([r._snapshot.catalogue.ids[:4], []])])"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=alone.parent, env=offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    recommender = Recommender.load(published)
    answers = recommender.recommend([recommender._snapshot.catalogue.ids[:4], []])
    assert done.stdout.strip() == str([[item.id for item in answer.items] for answer in answers])


def test_the_card_is_filled_from_the_test(published: Path, tiny_run: TrainedRun) -> None:
    card = ModelCard.load(published / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "setrec"
    results = json.loads((tiny_run.folder / "lightning_logs/version_0/results.json").read_text())
    figure = results["metrics"]["all"]["recall@10"]
    for part in (f"{figure:.4f}", "seen items masked", "popularity", "Limits", "Licence of the data", "tiny", "bibtex"):
        assert part in card.text, part


def test_without_a_test_run_the_card_says_so(
    tiny_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(tiny_run.checkpoint.read_bytes())
    main(["publish", "--ckpt_path", str(checkpoint), f"--output={tmp_path / 'a'}"])
    assert "its quality is not known" in (tmp_path / "a/README.md").read_text()
    assert "--results" in capsys.readouterr().out
    results = tiny_run.folder / "lightning_logs/version_0/results.json"
    main(["publish", "--ckpt_path", str(checkpoint), f"--output={tmp_path / 'b'}", f"--results={results}"])
    assert "seen items masked" in (tmp_path / "b/README.md").read_text()
    other = json.loads(results.read_text()) | {"beta": 0.123}
    write_results(tmp_path / "other.json", other)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "publish",
                "--ckpt_path",
                str(checkpoint),
                f"--output={tmp_path / 'c'}",
                f"--results={tmp_path / 'other.json'}",
            ]
        )
    assert stop.value.code == 2
    assert "not those of this model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["publish", "--ckpt_path", str(checkpoint), f"--output={tmp_path / 'b'}"])
    assert "exists already" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"model.ckpt", "a", "b", "other.json"}


def test_added_items_are_published_and_published_models_take_items(tiny_run: TrainedRun, tmp_path: Path) -> None:
    recommender = Recommender.load(tiny_run.checkpoint)
    own = recommender._snapshot.catalogue.ids
    recommender.add_items([{"id": "NEW", "title": "milk frother", "shelf": "3"}])
    recommender.remove_items(own[:2])
    recommender.save_pretrained(tmp_path / "model")
    again = Recommender.load(tmp_path / "model")
    assert again.recommend([["NEW", own[5]], []]) == recommender.recommend([["NEW", own[5]], []])
    assert again.info()["n_items"] == recommender.info()["n_items"]
    table = pl.read_parquet(tmp_path / "model/catalogue.parquet")
    assert table.filter(pl.col("id") == "NEW").select("title", "shelf", "count", "warm").rows() == [
        ("milk frother", "3", 0, False)
    ]
    again.add_items([{"id": "NEWER", "title": "road bike"}])
    version = again.save()
    assert version == tmp_path / "model.items-001"
    assert Recommender.load(version).recommend([["NEWER"]]) == again.recommend([["NEWER"]])


def test_pushing_uploads_exactly_this_folder(tiny_run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: what would be uploaded is looked at."""
    seen: dict[str, object] = {}

    class Api:
        def __init__(self, token: object = None) -> None: ...

        def create_repo(self, repo_id: str, **_: object) -> object:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, repo_id: str, **_: object) -> str:
            seen.update(files=sorted(p.name for p in Path(folder_path).rglob("*") if p.is_file()), repo=repo_id)
            return "url"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert Recommender.load(tiny_run.checkpoint).push_to_hub("somebody/setrec-tiny") == "url"
    assert seen["repo"] == "somebody/setrec-tiny"
    assert {"README.md", "config.json", "model.safetensors", "catalogue.parquet"} <= set(seen["files"])  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["model.safetensors", "catalogue.parquet", "encoder/encoder.safetensors"])
def test_a_changed_or_missing_file_is_refused(name: str, copy: Path) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(bytes(content))
    with pytest.raises(ConfigError, match=f"{name} is not the file that was published"):
        Recommender.load(copy)
    (copy / name).unlink()
    with pytest.raises(ConfigError, match="cannot be read as a published model"):
        Recommender.load(copy)


def test_weights_load_strictly(copy: Path) -> None:
    """A weight file with a missing or an additional tensor is refused even if its hash is right."""
    from setrec.files.hashes import file_hash, sealed

    config = json.loads((copy / "config.json").read_text())
    for change in ("missing", "additional"):
        weights = load_file(copy / "model.safetensors")
        if change == "missing":
            weights.pop("model.queries")
        else:
            weights["model.nothing"] = torch.zeros(1)
        save_file(weights, copy / "model.safetensors")
        config["files"]["model.safetensors"] = file_hash(copy / "model.safetensors")
        (copy / "config.json").write_text(json.dumps(sealed(config)))
        with pytest.raises(ConfigError, match="do not fit its own arguments"):
            Recommender.load(copy)


@pytest.mark.parametrize(
    "name", ["subprocess.Popen", "os.system", "builtins.eval", "setrec.text.np", "nowhere.Thing", "x"]
)
def test_a_config_can_name_nothing_but_what_is_asked_for(name: str) -> None:
    with pytest.raises(ConfigError, match="is no TextVectors"):
        instance_of({"class_path": name, "init_args": {"args": ["true"]}}, TextVectors)


@pytest.mark.slow
def test_a_pretrained_backbone_is_not_looked_for_again(t5_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """All its weights are in the folder; the hub's name or the folder it came from is gone."""
    base = Path(shutil.copytree(t5_folder, tmp_path / "base"))
    run = train_tiny(tmp_path / "run", f"--model.backbone.pretrained={base}")
    recommender = Recommender.load(run.checkpoint)
    recommender.save_pretrained(tmp_path / "model")
    histories = asked(recommender)
    answers = recommender.recommend(histories)
    shutil.rmtree(base)
    shutil.rmtree(run.folder)
    again = Recommender.load(tmp_path / "model")
    assert again.recommend(histories) == answers
    again.save_pretrained(tmp_path / "again")  # and once more from there
    assert Recommender.load(tmp_path / "again").recommend(histories) == answers


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [False, True])
def test_a_language_model_is_published_whole_or_as_adapters(adapted: bool, tmp_path: Path) -> None:
    """Trained as a whole, nothing else is needed; adapters name their frozen base, and refuse another one."""
    base = save_model(tmp_path / "base", "qwen3")
    flags = ["--model.backbone=DecoderBackbone", f"--model.backbone.pretrained={base}"]
    if adapted:
        pytest.importorskip("peft")
        flags.append("--model.backbone.lora={r: 2}")
    run = train_tiny(tmp_path / "run", *flags, "--trainer.max_epochs=1")
    recommender = Recommender.load(run.checkpoint)
    recommender.save_pretrained(tmp_path / "model")
    histories = asked(recommender)
    answers = recommender.recommend(histories)
    named = any(".base." in name and ".lora_" not in name for name in load_file(tmp_path / "model/model.safetensors"))
    assert named == (not adapted)  # the frozen base stays where it is
    assert ("base_model" in (tmp_path / "model/README.md").read_text()) == adapted
    if not adapted:
        shutil.rmtree(base)
    assert Recommender.load(tmp_path / "model").recommend(histories) == answers
    if adapted:
        shutil.rmtree(base)
        save_model(base, "qwen3", seed=4)
        with pytest.raises(ConfigError, match="were trained on"):
            Recommender.load(tmp_path / "model")


def test_vectors_survive_to_the_bit(published: Path, tiny_run: TrainedRun) -> None:
    one, two = (
        Recommender.load(tiny_run.checkpoint)._snapshot.catalogue,
        Recommender.load(published)._snapshot.catalogue,
    )
    assert one.text is not None
    assert two.text is not None
    assert np.array_equal(one.text.numpy(), two.text.numpy())
    for a, b in zip((*one.cf, *one.present, one.count), (*two.cf, *two.present, two.count), strict=True):
        assert torch.equal(a, b)
