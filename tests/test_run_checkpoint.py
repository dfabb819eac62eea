"""Which weights of a run are kept: best is the best on validation, last.ckpt is the last."""

import json
from pathlib import Path

import pytest
import torch

from setrec.cli import main, run
from setrec.module import SETRecModule
from tests.conftest import command, model


def checkpoints(folder: Path, version: int = 0) -> dict[str, dict]:
    found = (folder / f"lightning_logs/version_{version}/checkpoints").glob("*.ckpt")
    return {path.stem: torch.load(path, weights_only=True) for path in found}


def measured(monkeypatch: pytest.MonkeyPatch, *recalls: float) -> None:
    """Let validation measure these figures, one after the other."""
    left, log = list(recalls), SETRecModule.log

    def logged(self: SETRecModule, name: str, value: torch.Tensor, **options: object) -> None:
        if name == "recall@10" and not self.trainer.sanity_checking:
            value = torch.tensor(left.pop(0))
        log(self, name, value, **options)

    monkeypatch.setattr(SETRecModule, "log", logged)


def test_last_is_the_last_epoch_and_best_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 0.1, 0.3, 0.2, 0.25)
    run([*command("fit", tmp_path, "--trainer.max_epochs=4", "--trainer.limit_train_batches=2"), *model()])
    kept = checkpoints(tmp_path)
    assert {name: state["epoch"] for name, state in kept.items()} == {"epoch-01": 1, "last": 3}
    assert kept["last"]["global_step"] == 8


def test_the_best_stays_the_best_when_a_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*command("fit", tmp_path, "--trainer.limit_train_batches=2"), *model()]
    last = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    with monkeypatch.context() as patch:
        measured(patch, 0.3, 0.2)
        run([*flags, "--trainer.max_epochs=2"])
    with monkeypatch.context() as patch:
        measured(patch, 0.1, 0.25)
        run([*flags, "--trainer.max_epochs=4", f"--ckpt_path={last}"])
    assert capsys.readouterr().out.count("version_0/checkpoints/epoch-00.ckpt\n") == 4  # best and next, twice
    assert {name: state["epoch"] for name, state in checkpoints(tmp_path, 1).items()} == {"last": 3}
    with monkeypatch.context() as patch:
        measured(patch, 0.4, 0.35)
        run([*flags, "--trainer.max_epochs=4", f"--ckpt_path={last}"])
    assert "version_2/checkpoints/epoch-02.ckpt" in capsys.readouterr().out
    assert set(checkpoints(tmp_path)) == {"epoch-00", "last"}  # nothing of the first run was removed
    next(last.parent.glob("epoch-*")).unlink()
    measured(monkeypatch, 0.1, 0.05)
    with pytest.warns(UserWarning, match="epoch-00.ckpt, is gone: the best is counted anew"):
        run([*flags, "--trainer.max_epochs=4", f"--ckpt_path={last}"])
    assert "version_3/checkpoints/epoch-02.ckpt" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=2"],
        ["--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2"],
        ["--trainer.max_steps=3"],
        ["--trainer.max_epochs=5", "--trainer.max_steps=13"],
    ],
)
def test_weights_that_no_validation_has_seen_are_validated_at_the_end(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(monkeypatch, 0.1, 0.2)
    run([*command("fit", tmp_path, *flags), *model()])
    kept = checkpoints(tmp_path)
    assert len(kept) == 2
    best, last = kept[min(kept)], kept["last"]
    assert best["global_step"] == last["global_step"]
    assert last["weights_chosen"]
    for name, value in best["state_dict"].items():
        assert torch.equal(last["state_dict"][name], value), name
    capsys.readouterr()
    main(["test", "--ckpt_path", str(next(tmp_path.rglob("last.ckpt"))), f"--trainer.default_root_dir={tmp_path}"])
    assert "chosen by validation Recall@10 (All)" in capsys.readouterr().out


def test_without_validation_the_last_weights_are_kept_and_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--trainer.max_epochs=1", "--trainer.limit_val_batches=0", "--test_after_fit=true"]
    main([*command("fit", tmp_path, *flags), *model()])
    out = capsys.readouterr().out
    assert "beta 0.5, the default: no validation chose it" in out
    last = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    assert f"last checkpoint: {last} (no validation chose the weights of its score)" in out
    assert set(checkpoints(tmp_path)) == {"last"}
    results = json.loads((last.parents[1] / "results.json").read_text())
    assert (results["beta"], results["protocol"]["beta_from"]) == (0.5, "default")
    main(["predict", "--ckpt_path", str(last), f"--trainer.default_root_dir={tmp_path}"])
    assert "predictions: " in capsys.readouterr().out


def test_a_sanity_check_chooses_no_weights(tmp_path: Path) -> None:
    flags = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.check_val_every_n_epoch=9"]
    cli = run(
        [*command("fit", tmp_path, *flags, "--checkpoint.monitor=null", "--trainer.num_sanity_val_steps=1"), *model()]
    )
    assert (cli.model.chosen.beta, cli.model.weights_chosen) == (0.5, False)


@pytest.mark.parametrize("flags", [["--trainer.max_epochs=0"], ["--trainer.limit_train_batches=0"]])
def test_nothing_to_train(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*command("fit", tmp_path, *flags), *model()])
    assert "no checkpoint was written: nothing was trained" in capsys.readouterr().out


@pytest.mark.parametrize("save_last", ["true", "link"])
def test_a_link_is_only_to_the_same_weights(save_last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 0.3, 0.2, 0.4)
    flags = ["--trainer.limit_train_batches=1", f"--checkpoint.save_last={save_last}"]
    for epochs, link in ((2, False), (3, save_last == "link")):
        if epochs == 3:
            flags.append(f"--ckpt_path={tmp_path / 'lightning_logs/version_0/checkpoints/last.ckpt'}")
        run([*command("fit", tmp_path, *flags, f"--trainer.max_epochs={epochs}"), *model()])
        last = tmp_path / f"lightning_logs/version_{epochs - 2}/checkpoints/last.ckpt"
        assert last.is_symlink() == link
        assert torch.load(last, weights_only=True)["epoch"] == epochs - 1


def test_what_a_killed_run_left_is_cleared_by_the_run_that_goes_on(tmp_path: Path) -> None:
    flags = [*command("fit", tmp_path, "--trainer.limit_train_batches=1"), *model()]
    run([*flags, "--trainer.max_epochs=1"])
    folder = tmp_path / "lightning_logs/version_0/checkpoints"
    (folder / ".epoch-07.ckpt.99999999").write_text("half a checkpoint")
    run([*flags, "--trainer.max_epochs=2", f"--ckpt_path={folder / 'last.ckpt'}"])
    assert sorted(path.name for path in folder.iterdir()) == ["epoch-00.ckpt", "last.ckpt"]
