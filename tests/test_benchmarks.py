"""The benchmarks compare like with like: the naive way, written out as the method reads, has our losses, gradients and scores."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from setrec.backbones import Backbone, DecoderBackbone, T5Backbone
from setrec.data.batches import EvalRows
from setrec.model import SETRec
from setrec.recipe import Recipe

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize(
    "backbone", [T5Backbone(shape="nano", dropout=0.0, attention_dropout=0.0), DecoderBackbone(shape="nano")]
)
def test_the_naive_way_agrees(backbone: Backbone) -> None:
    from efficiency import loss_differences, module_of, score_differences
    from world import made_up_catalogue, made_up_rows

    torch.manual_seed(0)
    catalogue = made_up_catalogue(300)
    model = SETRec(catalogue, backbone, Recipe(n_sem=2)).train()
    loss, gradient = loss_differences(model, made_up_rows(120, 300))
    assert loss < 1e-5
    assert gradient < 1e-5
    module = module_of(model, catalogue)
    module.scorer.refresh()
    rows = EvalRows(made_up_rows(20, 300, seed=1), made_up_rows(20, 300, (0.0, 0.5), seed=2), 50)
    score, spread = score_differences(model, module, rows, np.arange(0, 20, 5))
    assert score < 1e-4 * spread


def test_quality_compares_the_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import quality

    ways = ["naive", "exact", "sampled", "shared", "single"]
    flags = ["--epochs", "1", "--seeds", "1", "--users", "120", "--items", "60", "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["quality.py", "--ways", *ways, *flags])
    quality.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["recall@10"]) == ways
    assert all(0 < value < 1 for values in found["recall@10"].values() for value in values)
