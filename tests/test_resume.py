"""A resumed run: the flags given now win or are refused, and its files say what it used."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from setrec.cli import main, run
from setrec.sasrec import SASRecModule
from tests.conftest import command, model

LENGTH = 10  # batches of an epoch


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, with a checkpoint in the middle of the second one."""
    folder = tmp_path_factory.mktemp("fitted")
    flags = ["--trainer.max_epochs=2", "--checkpoint.every_n_train_steps=5", "--checkpoint.monitor=null"]
    flags += ["--checkpoint.save_top_k=-1", "--checkpoint.filename=step-{step}"]
    run([*command("fit", folder, *flags), *model()])
    return folder


def checkpoint(fitted: Path, name: str) -> str:
    return str(fitted / f"lightning_logs/version_0/checkpoints/{name}.ckpt")


def resume(fitted: Path, tmp_path: Path, name: str, *flags: str) -> Any:
    root = f"--data.root={fitted / 'data'}"
    words = [
        *command("fit", tmp_path, "--trainer.max_epochs=3", *flags),
        root,
        f"--ckpt_path={checkpoint(fitted, name)}",
    ]
    return run([*words, *model()[:2]])


def refused(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, *flags: str) -> str:
    """The one line that refuses a resumed run."""
    capsys.readouterr()
    root, where = f"--data.root={fitted / 'data'}", f"--trainer.default_root_dir={tmp_path}"
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--ckpt_path", checkpoint(fitted, name), root, where, "--trainer.accelerator=cpu", *flags])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def rates(cli: Any) -> tuple[float, float, float]:
    group = cli.trainer.optimizers[0].param_groups[0]
    return group["initial_lr"], group["lr"], group["weight_decay"]


@pytest.mark.parametrize("name", ["last", "step-15"])
def test_flags_win_and_the_files_say_so(fitted: Path, tmp_path: Path, name: str) -> None:
    flags = ["--model.lr=1e-5", "--model.weight_decay=0.1", "--early_stopping.patience=7", "--model.filter_seen=false"]
    cli = resume(fitted, tmp_path, name, *flags, "--trainer.max_steps=21")
    peak, now, decay = rates(cli)
    assert (peak, decay) == (1e-5, 0.1)
    assert 0 <= now < 1e-5
    assert cli.trainer.early_stopping_callback.patience == 7
    used = yaml.safe_load((tmp_path / "lightning_logs/version_0/config.yaml").read_text())
    written = torch.load(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    for options in (used["model"], written["hyper_parameters"]):
        assert (options["lr"], options["weight_decay"], options["filter_seen"]) == (1e-5, 0.1, False)
    assert written["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.1
    assert written["lr_schedulers"][0]["base_lrs"] == [1e-5]


def test_the_learning_rate_of_the_first_resumed_step(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights move by the rate given now, from the first step on."""
    resume(fitted, tmp_path, "last", "--model.lr=0", "--model.weight_decay=0", "--trainer.max_steps=22")
    after = torch.load(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    before = torch.load(checkpoint(fitted, "last"), weights_only=True)["state_dict"]
    for name, value in before.items():
        if name.startswith("model."):
            assert torch.equal(after[name], value), name


def test_batch_size_wins_at_the_end_of_an_epoch_and_is_refused_in_the_middle(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = resume(fitted, tmp_path, "last", "--data.batch_size=64")
    assert cli.trainer.global_step == 2 * LENGTH + cli.trainer.num_training_batches > 3 * LENGTH
    assert cli.trainer.current_epoch == 3
    said = refused(fitted, tmp_path, capsys, "step-20", "--data.batch_size=64")  # written before the epoch was over
    assert "in the middle of an epoch" in said
    said = refused(fitted, tmp_path, capsys, "step-15", "--data.batch_size=64", "--data.seed=3")
    assert "in the middle of an epoch" in said
    assert "--data.batch_size was 128, is 64; --data.seed was 2023, is 3" in said


def test_options_that_shape_the_weights_are_refused(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(fitted, tmp_path, capsys, "last", "--model.n_sem=3", "--model.lr=1e-5")
    assert "--model.lr was 0.003, is 1e-05; --model.n_sem was 2, is 3" in said
    said = refused(fitted, tmp_path, capsys, "last", "--model.backbone.shape=tiny")
    assert "--model.backbone.shape was nano, is tiny" in said
    with pytest.raises(SystemExit):
        main(["test", "--ckpt_path", checkpoint(fitted, "last"), "--model.bottleneck=64", "--trainer.accelerator=cpu"])
    assert "--model.bottleneck was 128, is 64" in capsys.readouterr().err


@pytest.mark.parametrize("epochs", [1, 2])
def test_no_more_epochs_than_the_checkpoint_has(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], epochs: int
) -> None:
    monitor = "--checkpoint.monitor=null", "--checkpoint.every_n_train_steps=5"
    resume(fitted, tmp_path, "last", f"--trainer.max_epochs={epochs}", *monitor)
    said = capsys.readouterr().out.splitlines()
    assert "nothing was left to train: the checkpoint has 20 steps; give more --trainer.max_epochs" in said
    assert f"best checkpoint: {checkpoint(fitted, 'step-20')}" in said


def test_a_checkpoint_of_weights_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--checkpoint.save_weights_only=true"]
    run([*command("fit", tmp_path, *flags), *model()])
    said = refused(tmp_path, tmp_path, capsys, "last", "--trainer.max_epochs=2")
    assert "contains only the model" in said


@pytest.mark.slow
@pytest.mark.parametrize("every", ["1", "2"])
@pytest.mark.parametrize("first", [10, 13, 20])
def test_a_run_that_counts_steps_goes_on_with_the_right_batches(
    first: int, every: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, int, float]] = []
    step = SASRecModule.training_step

    def noted(self: SASRecModule, batch: Any, index: int) -> torch.Tensor:
        loss = step(self, batch, index)
        seen.append((self.trainer.current_epoch, index, int(batch.user.sum()), float(loss.detach())))
        return loss

    monkeypatch.setattr(SASRecModule, "training_step", noted)
    flags = ["--model=SASRecModule", f"--trainer.check_val_every_n_epoch={every}"]
    run([*command("fit", tmp_path / "whole", *flags, "--trainer.max_steps=25")])
    whole, seen[:] = list(seen), []
    run([*command("fit", tmp_path / "part", *flags, f"--trainer.max_steps={first}")])
    last = next((tmp_path / "part").rglob("last.ckpt"))
    run([*command("fit", tmp_path / "part", *flags, "--trainer.max_steps=25", f"--ckpt_path={last}")])
    assert seen == whole


def test_last_is_no_name_of_a_file(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path=last"])
    assert "name the file" in capsys.readouterr().err
