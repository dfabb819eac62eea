"""The exported files answer as the model does, and need nothing of this project."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from setrec import Recommender, register
from setrec.backbones.t5 import T5Backbone
from setrec.cli import main
from setrec.inference import user_tower
from tests.conftest import TrainedRun, train_tiny

for package in user_tower.NEEDED:
    pytest.importorskip(package, reason='pip install "setrec[export]"')

pytestmark = pytest.mark.slow


class Bessel(T5Backbone):
    """A backbone with an operation that ONNX does not have."""

    reads_on = False  # type: ignore[assignment]  # T5's `read` does not know it

    def forward(self, items: Tensor, real: Tensor, prefix: Tensor, queries: Tensor) -> Tensor:
        outputs = super().forward(items, real, prefix, queries)
        return outputs + torch.special.bessel_j0(outputs)


class Looking(T5Backbone):
    """A backbone whose code depends on the numbers that it reads."""

    def forward(self, items: Tensor, real: Tensor, prefix: Tensor, queries: Tensor) -> Tensor:
        return super().forward(items, real, prefix, queries) * (2.0 if float(items.detach().sum()) > 0 else 1.0)


register(Bessel)
register(Looking)


def loaded(folder: Path) -> ModuleType:
    """The example in an exported folder."""
    spec = importlib.util.spec_from_file_location("example", folder / "example.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def histories(recommender: Recommender, users: int) -> list[list[str]]:
    """Made-up histories, empty ones, long ones and unknown ids among them."""
    rng, own = np.random.default_rng(0), [*recommender._snapshot.catalogue.ids, "nobody knows it"]
    return [[own[i] for i in rng.integers(0, len(own), rng.integers(0, 70))] for _ in range(users)]


def check_equal(checkpoint: Path, folder: Path, users: int = 300) -> None:
    recommender, example = Recommender.load(checkpoint), loaded(folder)
    asked = histories(recommender, users)
    for history, answer in zip(asked, recommender.recommend(asked), strict=True):
        found = example.recommend(history)
        assert [(item.id, item.title) for item in answer.items] == [(own, title) for own, title, _ in found]
        assert [item.score for item in answer.items] == pytest.approx([s for *_, s in found], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("formats", ["[onnx]", "[torch]"])
def test_t5_with_memories_gives_equal_lists(formats: str, tiny_run: TrainedRun, tmp_path: Path) -> None:
    main(["export", "--ckpt_path", str(tiny_run.checkpoint), f"--output={tmp_path / 'out'}", f"--formats={formats}"])
    check_equal(tiny_run.checkpoint, tmp_path / "out")


def test_a_decoder_with_item_graphs_gives_equal_lists(graph_run: TrainedRun, tmp_path: Path) -> None:
    """With weights that let every part count, warm and cold items apart; and items that were added later."""
    recommender = Recommender.load(graph_run.checkpoint)
    weights = recommender._snapshot.restored.weights._replace(
        beta=0.4, neighbours=6.0, recency=0.5, cold_text=9.0, transitions=2.0, inferred=1.0
    )
    restored = recommender._snapshot.restored._replace(weights=weights)
    recommender._snapshot = recommender._snapshot._replace(restored=restored)
    recommender.add_items([{"id": "NEW", "title": "garden lamp"}, {"id": "NEWER", "title": "garden lamp"}])
    folder = tmp_path / "out"
    folder.mkdir()
    found = recommender.export(folder)
    assert found.formats == ["onnx"]
    example = loaded(folder)
    assert {"cooccurrence", "transitions", "inferred", "text", "cold_text"} == set(example.graphs)
    asked = [*histories(recommender, 300), ["NEW"], []]
    for history, answer in zip(asked, recommender.recommend(asked), strict=True):
        assert [item.id for item in answer.items] == [own for own, *_ in example.recommend(history)]


@pytest.mark.process
def test_the_folder_is_a_model_repository_that_needs_no_setrec(
    graph_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--ckpt_path", str(graph_run.checkpoint), f"--output={tmp_path / 'out'}"]
    main(words)
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"user_tower/config.pbtxt", "user_tower/1/model.onnx", "item_table.safetensors", "example.py"}
    config = (tmp_path / "out/user_tower/config.pbtxt").read_text()
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "out/user_tower/1/model.onnx")
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, found.name) == ("history", "tensor(int64)", "user")
    assert f"dims: [ {found.shape[1]} ]" in config
    recommender = Recommender.load(graph_run.checkpoint)
    own = recommender._snapshot.catalogue.ids[:3]
    block = "import sys; sys.modules['setrec'] = sys.modules['torch'] = None; sys.argv = sys.argv[1:]\n"
    code = f"{block}import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out/example.py"), *own], capture_output=True, text=True, check=True
    )
    lines = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert lines == [item.id for item in recommender.recommend([own])[0].items]
    with pytest.raises(SystemExit):
        main(words)
    assert "exists already" in capsys.readouterr().err


def test_what_onnx_cannot_express_is_a_program_of_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_tiny(tmp_path / "run", "--model.backbone=tests.test_export.Bessel", "--trainer.max_epochs=1")
    main(["export", "--ckpt_path", str(run.checkpoint), f"--output={tmp_path / 'out'}"])
    said = capsys.readouterr().out
    assert "ONNX can't express this backbone (" in said
    assert "a program of torch.export was written in its place" in said
    assert [path.name for path in (tmp_path / "out/user_tower").rglob("*") if path.is_file()] == ["model.pt2"]
    check_equal(run.checkpoint, tmp_path / "out", users=20)


def test_a_backbone_that_is_no_graph_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_tiny(tmp_path / "run", "--model.backbone=tests.test_export.Looking", "--trainer.max_epochs=1")
    with pytest.raises(SystemExit) as stop:
        main(["export", "--ckpt_path", str(run.checkpoint), f"--output={tmp_path / 'out'}"])
    assert stop.value.code == 2
    assert "Looking can't be exported: torch.export says: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_the_packages(tiny_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_tower, "find_spec", lambda name: None)
    with pytest.raises(user_tower.ConfigError, match="needs the package onnx.*setrec.export"):
        Recommender.load(tiny_run.checkpoint).export(tmp_path)
