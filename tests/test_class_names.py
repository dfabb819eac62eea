"""Names of classes in files: what they mean, former names included, and that nothing else is ever imported."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import setrec
from setrec import Recommender, class_names
from setrec.class_names import CLASSES, check_class_names, current_name, current_names, find_class, public_name
from setrec.cli import main, run
from setrec.data import Reader, TableFiles
from setrec.errors import ConfigError
from setrec.files.hashes import sealed
from setrec.hparams import instantiate, to_plain
from setrec.inference.journal import Journal
from setrec.serve.app import create_app
from setrec.serve.model_holder import ModelHolder
from setrec.serve.options import ServeOptions
from setrec.text import TextVectors
from tests.conftest import TrainedRun

pytestmark = pytest.mark.slow  # trains or loads models in most tests

PAYLOAD = "from pathlib import Path\nPath('ran').touch()\nclass Reader: ...\n"


@pytest.fixture
def payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the working directory that leaves a file when it is imported; the path of that file."""
    (tmp_path / "payload.py").write_text(PAYLOAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "payload", raising=False)
    return tmp_path / "ran"


def poisoned(checkpoint: Path, to: Path, part: str, change: dict[str, Any]) -> Path:
    """A copy of a checkpoint with other arguments."""
    content = torch.load(checkpoint, weights_only=True)
    content[part] |= change
    torch.save(content, to)
    return to


STRANGER = {"class_path": "payload.Reader", "init_args": {}}


@pytest.mark.parametrize("command", ["test", "predict", "validate"])
@pytest.mark.parametrize("argument", ["reader", "text", "split"])
def test_a_checkpoint_imports_nothing(payload: Path, tiny_run: TrainedRun, command: str, argument: str) -> None:
    path = poisoned(tiny_run.checkpoint, payload.parent / "x.ckpt", "datamodule_hyper_parameters", {argument: STRANGER})
    with pytest.raises(ConfigError, match=r"'payload.Reader' .*never imported.*setrec.register"):
        run([command, "--ckpt_path", str(path)])
    assert not payload.exists()


def test_recommending_imports_nothing(payload: Path, tiny_run: TrainedRun) -> None:
    path = poisoned(tiny_run.checkpoint, payload.parent / "x.ckpt", "hyper_parameters", {"backbone": STRANGER})
    with pytest.raises(ConfigError, match="never imported"):
        Recommender.load(path, data=tiny_run.data)
    folder = payload.parent / "published"
    Recommender.load(tiny_run.checkpoint).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["backbone"] = STRANGER
    (folder / "config.json").write_text(json.dumps(sealed(config)))  # as one would who forges it
    with pytest.raises(ConfigError, match="never imported"):
        Recommender.load(folder)
    assert not payload.exists()


def test_a_server_imports_nothing(payload: Path, tiny_run: TrainedRun, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither at its start nor by POST /model/reload; the old model goes on."""
    own = payload.parent / "own.ckpt"
    shutil.copy(tiny_run.checkpoint, own)
    folder = payload.parent / "published"
    Recommender.load(own, data=tiny_run.data).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["backbone"] = STRANGER
    (folder / "config.json").write_text(json.dumps(sealed(config)))  # as one would who forges it
    file = poisoned(own, payload.parent / "x.ckpt", "hyper_parameters", {"backbone": STRANGER})
    for path in (folder, file):
        with pytest.raises(SystemExit, match="2"):
            main(["serve", "--ckpt_path", str(path), "--port=0"])
        assert "'payload.Reader' is no Backbone of this project" in capsys.readouterr().err
    holder = ModelHolder(own, Recommender.load, Journal(payload.parent / "items.jsonl"), payload.parent)
    with TestClient(create_app(holder, "a token of ours", ServeOptions())) as client:
        for path in (folder, file):
            answer = client.post(
                "/model/reload", json={"path": str(path)}, headers={"authorization": "Bearer a token of ours"}
            )
            assert answer.status_code == 422
            assert "never imported" in answer.json()["error"]
        assert client.post("/recommend", json={"histories": [[]]}).status_code == 200
    assert not payload.exists()


def test_the_encoder_of_a_published_folder_imports_nothing(payload: Path, tiny_run: TrainedRun) -> None:
    folder = payload.parent / "published"
    Recommender.load(tiny_run.checkpoint).save_pretrained(folder)
    (folder / "encoder/config.json").write_text(json.dumps(STRANGER))
    config = json.loads((folder / "config.json").read_text())
    del config["files"]["encoder/config.json"]
    (folder / "config.json").write_text(json.dumps(sealed(config)))  # as one would who forges it
    recommender = Recommender.load(folder)
    with pytest.raises(ConfigError, match="never imported"):
        recommender.add_items([{"id": "NEW", "title": "road bike"}])
    assert not payload.exists()


def test_a_manifest_imports_nothing(payload: Path, tiny_run: TrainedRun) -> None:
    data = payload.parent / "data/tiny"
    shutil.copytree(tiny_run.data, data)
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["options"]["reader"] = STRANGER
    (data / "manifest.json").write_text(json.dumps(manifest))
    Recommender.load(tiny_run.checkpoint, data=data)
    assert not payload.exists()


def test_a_class_of_the_user_is_found_once_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_names, "_REGISTERED", {})

    class Own(TableFiles):
        """Somebody's own reader."""

    with pytest.raises(ConfigError, match="never imported"):
        instantiate(to_plain(Own()), Reader)
    assert setrec.register(Own) is Own
    found = instantiate(to_plain(Own(events="e.csv")), Reader)
    assert type(found) is Own
    assert found.events == "e.csv"


def test_a_name_on_the_command_line_is_allowed_in_the_checkpoint() -> None:
    plain = {"reader": {"class_path": "shop.readers.Own", "init_args": {}}}
    with pytest.raises(ConfigError, match="never imported"):
        check_class_names(plain)
    check_class_names(plain, ["shop.readers.Own"])


def test_every_name_leads_to_its_class() -> None:
    for name in CLASSES:
        cls = find_class(name, object)
        assert public_name(cls) == name
        assert current_name(f"{cls.__module__}.{cls.__qualname__}") == name
    assert current_name("setrec.data.table.TableFiles") == "setrec.data.TableFiles"  # as version 0.1.0 wrote it
    assert current_name("shop.Reader") == "shop.Reader"
    old = {"a": [{"class_path": "setrec.data.steam.SteamReviews", "init_args": {"b": 1}}]}
    assert current_names(old) == {"a": [{"class_path": "setrec.data.SteamReviews", "init_args": {"b": 1}}]}


def test_a_class_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no TextVectors"):
        find_class("setrec.data.TableFiles", TextVectors)
