"""Training, validation, test, prediction and recommending on a device whose tensors may not meet tensors of the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from setrec import recommend
from setrec.backbones import Backbone, DecoderBackbone, T5Backbone
from setrec.cf import CFFile
from setrec.data import OfficialRelease, SETRecDataModule
from setrec.module import SETRecModule
from setrec.recommend import Recommender
from setrec.text import TextFile
from tests.conftest import TrainedRun
from tests.fake_gpu import DEVICE, FakeGPU

pytestmark = pytest.mark.slow

BACKBONES: dict[str, Any] = {
    "t5": lambda: T5Backbone(shape="nano", dropout=0.0, attention_dropout=0.0),
    "decoder": lambda: DecoderBackbone(shape="nano"),
}
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "best": {
        "objective": "score", "negatives": "warm", "missing_cf": "zero", "cf_dropout": 0.2, "cf_score_dropout": 0.5,
        "memory": True, "neighbours": True,
    },
    "sampled": {"objective": "score", "sampled": 16, "sampling": "popularity"},
}  # fmt: skip


class FakeAccelerator(Accelerator):
    """The fake GPU, as Lightning sees a device."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "fakegpu"


def trainer(device: torch.device, folder: Path) -> Trainer:
    strategy = SingleDeviceStrategy(device, accelerator=FakeAccelerator()) if device == DEVICE else "auto"
    return Trainer(
        accelerator="auto" if device == DEVICE else "cpu",
        strategy=strategy,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,  # which tensor subclasses can not be views in
        default_root_dir=folder,
    )


def run(device: torch.device, release: Path, folder: Path, backbone: Backbone, recipe: dict[str, Any]) -> list[Any]:
    """The figures of a fit, a test and a prediction."""
    torch.manual_seed(0)
    data = SETRecDataModule(
        name="tiny", reader=OfficialRelease(), text=TextFile("text.npy"), cf=[CFFile()], raw=str(release),
        root=str(folder), batch_size=64, eval_batch_size=16, seed=1,
    )  # fmt: skip
    module = SETRecModule(backbone, warmup_steps=2, n_sem=2, n_cf=1, bottleneck=8, trunk=(16,), **recipe)
    one = trainer(device, folder)
    one.fit(module, data)
    found: list[Any] = [{name: float(value) for name, value in one.callback_metrics.items()}]
    one.test(module, data, verbose=False)
    lists = one.predict(module, data)
    return [*found, [p.item.tolist() for p in lists or []]]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_run_gives_the_figures_of_the_cpu(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, recipe: str
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = run(torch.device("cpu"), tiny_release, tmp_path / "cpu", BACKBONES[backbone](), RECIPES[recipe])
    with FakeGPU():
        found = run(DEVICE, tiny_release, tmp_path / "gpu", BACKBONES[backbone](), RECIPES[recipe])
    assert found[0] == pytest.approx(expected[0], abs=1e-5, nan_ok=True)
    assert found[1] == expected[1]


def answers_of(checkpoint: Path, device: str) -> list[Any]:
    """Lists with explanations, before and after an item is added."""
    recommender = Recommender.load(checkpoint, device)
    ids = recommender._snapshot.catalogue.ids
    histories = [[], ids[:3], ids[5:20], [ids[7]]]
    options: list[dict[str, Any]] = [{}, {"exclude_seen": False}, {"candidates": ids[10:30]}, {"explain": True}]
    found = [recommender.recommend(histories, 5, **more) for more in options]
    width = recommender._trained.catalogue.text.shape[1]
    recommender.add_items([{"id": "new", "title": "new", "vector": [0.1] * width}])
    return [*found, recommender.recommend([["new", *row] for row in histories], 5)]


@pytest.mark.parametrize("graphs", [False, True])
def test_a_recommender_gives_the_answers_of_the_cpu(
    tiny_run: TrainedRun, graph_run: TrainedRun, monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    checkpoint = (graph_run if graphs else tiny_run).checkpoint
    expected = answers_of(checkpoint, "cpu")
    for name in ("ranked", "try_snapshot"):  # tensor subclasses can't be views in inference mode
        monkeypatch.setattr(recommend, name, torch.no_grad()(getattr(recommend, name).__wrapped__))
    with FakeGPU():
        found = answers_of(checkpoint, "fakegpu:0")
    for one, other in zip(expected, found, strict=True):
        for left, right in zip(one, other, strict=True):
            assert [item.id for item in left.items] == [item.id for item in right.items]
            assert [item.score for item in left.items] == pytest.approx([item.score for item in right.items], abs=1e-5)
