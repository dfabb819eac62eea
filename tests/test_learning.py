"""It learns: better than popularity where there is something to learn, and the parts of a result hang together."""

import json
from pathlib import Path

import pytest

from setrec.cli import run

pytestmark = pytest.mark.slow

WORLD = [
    "--data.reader=SyntheticWorld",
    "--data.reader.users=500",
    "--data.reader.items=150",
    "--data.cleaning.k_core=3",
]
PRESETS = {
    "paper": [],
    "score": [
        "--model.objective=score",
        "--model.negatives=warm",
        "--model.missing_cf=zero",
        "--model.cf_dropout=0.2",
        "--model.memory=true",
        "--model.backbone.recency_bias=true",
    ],
}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_learning_beats_popularity(preset: str, tmp_path: Path) -> None:
    run(
        [
            "fit",
            "--data.name=world",
            f"--data.root={tmp_path}",
            *WORLD,
            "--data.batch_size=128",
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.accelerator=cpu",
            "--trainer.max_epochs=10",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            "--model.backbone.shape=nano",
            "--model.n_sem=2",
            "--model.lr=5e-3",
            "--test_after_fit=true",
            *PRESETS[preset],
        ]
    )
    results = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    popularity = results["baselines"]["popularity"]["all"]
    assert results["metrics"]["all"]["recall@10"] > 1.3 * popularity["recall@10"]
    assert results["metrics"]["all"]["ndcg@10"] > 1.3 * popularity["ndcg@10"]
