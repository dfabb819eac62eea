"""refit: two short fits from a checkpoint, weighed on one half of validation, fitted to all of it."""

import json
from pathlib import Path

import pytest
import torch

from setrec.cli import main, run

SMALL = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder, and the checkpoint of a fit there."""
    folder = tmp_path_factory.mktemp("refit")
    fit = run(
        [
            "fit",
            "--config=configs/toys_best.yaml",
            "--model.backbone.shape=nano",
            "--model.n_cf=1",
            "--data.reader=SyntheticWorld",
            "--data.reader.users=200",
            "--data.reader.items=80",
            "--data.cleaning.k_core=2",
            "--data.text=TfidfSVD",
            "--data.cf=[CooccurrenceSVD]",
            f"--data.root={folder / 'data'}",
            f"--trainer.default_root_dir={folder}",
            "--trainer.max_epochs=2",
            *SMALL,
        ]
    )
    return folder, Path(fit.trainer.checkpoint_callback.best_model_path)


def state(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_refit_weighs_on_one_half_and_fits_to_all(fitted, capsys) -> None:
    folder, first = fitted
    main(["refit", "--ckpt_path", str(first), f"--trainer.default_root_dir={folder}", "--test_after_fit=true", *SMALL])
    half = state(folder / "lightning_logs/version_1/checkpoints/last.ckpt")
    whole = state(folder / "lightning_logs/version_2/checkpoints/last.ckpt")
    assert half["datamodule_hyper_parameters"]["fit_on"] == "half_validation"
    assert whole["datamodule_hyper_parameters"]["fit_on"] == "validation"
    for weight in ("beta", "neighbours_weight", "recency_weight"):  # chosen on the half, taken over
        assert whole["state_dict"][weight] == half["state_dict"][weight]
    # both start from the first fit's weights: with the little there is to learn they stay near them, and apart
    before, after, other = (s["state_dict"]["model.queries"] for s in (state(first), whole, half))
    assert 0 < (after - before).norm() < before.norm()
    assert not torch.equal(after, other)
    results = json.loads((folder / "lightning_logs/version_2/results.json").read_text())
    assert results["protocol"]["fitted_to"] == "train, then validation"
    assert results["protocol"]["weights"]["recency"] == pytest.approx(float(half["state_dict"]["recency_weight"]))
    assert "fitted to train, then validation" in capsys.readouterr().out


def test_a_refitted_checkpoint_is_not_refitted(fitted, capsys) -> None:
    folder, _ = fitted
    again = folder / "lightning_logs/version_2/checkpoints/last.ckpt"
    with pytest.raises(SystemExit, match="2"):
        main(["refit", "--ckpt_path", str(again)])
    assert "fitted to validation already; give the checkpoint of fit" in capsys.readouterr().err


def test_refit_needs_a_checkpoint(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["refit"])
    assert "refit needs --ckpt_path" in capsys.readouterr().err
