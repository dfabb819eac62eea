"""refit: a short fit from a checkpoint's weights over the validation items."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from setrec.cf import CooccurrenceSVD
from setrec.cli import main, run
from setrec.commands.fit import checkpoint_arguments
from setrec.data import SETRecDataModule, SyntheticWorld
from setrec.data.clean import Cleaning
from setrec.text import TfidfSVD

pytestmark = pytest.mark.slow

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
            "--config=toys_best",
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


def test_refit_goes_on_from_the_weights_and_keeps_what_validation_chose(fitted, capsys) -> None:
    folder, first = fitted
    main(["refit", "--ckpt_path", str(first), f"--trainer.default_root_dir={folder}", "--test_after_fit=true", *SMALL])
    before, after = state(first), state(folder / "lightning_logs/version_1/checkpoints/last.ckpt")
    assert after["datamodule_hyper_parameters"]["fit_on"] == "validation"
    for weight in ("beta", "neighbours_weight", "recency_weight", "cold_text_weight"):
        assert after["state_dict"][weight] == before["state_dict"][weight]
    # it starts from the first fit's weights: with the little there is to learn it stays near them
    change = after["state_dict"]["model.queries"] - before["state_dict"]["model.queries"]
    assert 0 < change.norm() < 0.5 * before["state_dict"]["model.queries"].norm()
    results = json.loads((folder / "lightning_logs/version_1/results.json").read_text())
    assert results["protocol"]["fitted_to"] == "train, then validation"
    assert results["protocol"]["weights"]["neighbours"] == float(before["state_dict"]["neighbours_weight"])
    assert "fitted to train, then validation" in capsys.readouterr().out


def test_refit_is_asked_for_validation_items_and_may_be_asked_for_new_ones(fitted) -> None:
    _, first = fitted
    known = checkpoint_arguments(first)["data"]
    data = SETRecDataModule(
        name=known["name"], reader=SyntheticWorld(users=200, items=80), root=known["root"], fit_on="validation",
        cleaning=Cleaning(k_core=2), text=TfidfSVD(), cf=[CooccurrenceSVD()],
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    asked = np.sort(np.concatenate([batch.target.flatten()[batch.valid].numpy() for batch in data.train_dataloader()]))
    assert np.array_equal(asked, np.sort(data.histories.validation.items))
    later = torch.from_numpy(np.bincount(data.histories.validation.items, minlength=data.catalogue.n_items) > 0)
    assert (later & ~data.catalogue.warm).any()  # or the next line would prove nothing
    assert torch.equal(data.targets, data.catalogue.warm | later)


def test_a_refitted_checkpoint_is_not_refitted(fitted, capsys) -> None:
    folder, _ = fitted
    again = folder / "lightning_logs/version_1/checkpoints/last.ckpt"
    with pytest.raises(SystemExit, match="2"):
        main(["refit", "--ckpt_path", str(again)])
    assert "fitted to validation already; give the checkpoint of fit" in capsys.readouterr().err


def test_refit_needs_a_checkpoint(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["refit"])
    assert "refit needs --ckpt_path" in capsys.readouterr().err


def test_help(capsys) -> None:
    main(["refit", "--help"])
    assert "usage: setrec refit --ckpt_path PATH" in capsys.readouterr().out
    main(["--help"])
    shown = capsys.readouterr().out
    for command in (
        "refit",
        "add-items",
        "publish",
        "serve",
        "report",
        "ablate",
        "estimate",
        "merge",
        "export",
        "tune",
    ):
        assert f"  {command} " in shown
