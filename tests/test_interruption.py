"""SIGTERM and SIGINT in a fit: a checkpoint, the exit code, and a command that goes on as if nothing had happened."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from setrec.cli import main, run
from setrec.module import SETRecModule
from tests.conftest import command, model

FLAGS = ["--trainer.max_epochs=3", "--data.batch_size=64", "--trainer.accumulate_grad_batches=2"]


def send(monkeypatch: pytest.MonkeyPatch, method: str, when: Callable[..., bool], number: int) -> None:
    """Let a step of the module send this process a signal, once."""
    step = getattr(SETRecModule, method)
    sent = []

    def stepped(self: SETRecModule, batch: object, batch_index: int, *more: int) -> object:
        if not sent and not self.trainer.sanity_checking and when(self, batch_index, *more):
            sent.append(True)
            os.kill(os.getpid(), number)
        return step(self, batch, batch_index, *more)

    monkeypatch.setattr(SETRecModule, method, stepped)


def interrupted(capsys: pytest.CaptureFixture[str], words: list[str], number: int) -> list[str]:
    """Run; it must be stopped by the signal. Returns the words of the command that it prints."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 128 + number
    out, err = capsys.readouterr()
    name = signal.Signals(number).name
    assert f"{name}: writing a checkpoint after this step" in err
    said, resume = out.strip().splitlines()[-2:]
    assert said.startswith(f"stopped by {name} after ")
    program, *resumed = shlex.split(resume.removeprefix("resume: "))
    assert program == "setrec"
    assert Path(resumed[resumed.index("--ckpt_path") + 1]).is_file()
    return resumed


def losses(folder: Path) -> dict[int, float]:
    """Step -> training loss, over all runs in a folder."""
    found = {}
    for version in sorted((folder / "lightning_logs").iterdir()):
        events = EventAccumulator(str(version))
        events.Reload()
        found |= {event.step: event.value for event in events.Scalars("train/loss")}
    return found


def last(folder: Path) -> dict:
    versions = sorted((folder / "lightning_logs").iterdir())
    return torch.load(versions[-1] / "checkpoints/last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run([*command("fit", folder, *FLAGS), *model()])
    return folder


def assert_same_run(folder: Path, unbroken: Path) -> None:
    one, two = last(folder), last(unbroken)
    assert one["global_step"] == two["global_step"]
    assert one["epoch"] == two["epoch"]
    for name, value in two["state_dict"].items():
        assert torch.equal(one["state_dict"][name], value), name
    for name in ("callbacks", "lr_schedulers"):
        assert one[name].keys() == two[name].keys() if name == "callbacks" else one[name] == two[name]
    scores = [next(v for k, v in state["callbacks"].items() if k.startswith("ModelCheckpoint")) for state in (one, two)]
    assert scores[0]["best_model_score"] == scores[1]["best_model_score"]
    assert Path(scores[0]["best_model_path"]).name == Path(scores[1]["best_model_path"]).name
    assert losses(folder) == losses(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_twice_equals_an_unbroken_one(
    number: int, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "with a blank"
    words = [*command("fit", folder, *FLAGS), *model()]
    for batch in (2, 7):  # in the first epoch, both between two optimiser steps
        with monkeypatch.context() as patch:
            send(patch, "training_step", lambda _, index, batch=batch: index == batch, number)
            words = interrupted(capsys, words, number)
        assert last(folder)["global_step"] == (batch + 2) // 2
    main(words)
    assert_same_run(folder, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("loader", [0, 1])
@pytest.mark.parametrize("interval", ["1.0", "0.5"])
def test_a_validation_that_is_stopped_is_made_again(
    loader: int, interval: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*FLAGS, "--data.eval_batch_size=16", f"--trainer.val_check_interval={interval}"]
    run([*command("fit", tmp_path / "unbroken", *flags), *model()])
    send(
        monkeypatch,
        "validation_step",
        lambda module, index, which: module.trainer.current_epoch == 1 and index == 2 and which == loader,
        signal.SIGTERM,
    )
    words = interrupted(capsys, [*command("fit", tmp_path / "stopped", *flags), *model()], signal.SIGTERM)
    main(words)
    assert_same_run(tmp_path / "stopped", tmp_path / "unbroken")


def test_a_signal_at_the_last_batch_of_an_epoch(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    send(monkeypatch, "training_step", lambda module, _: module.trainer.is_last_batch, signal.SIGTERM)
    words = interrupted(capsys, [*command("fit", tmp_path, *FLAGS), *model()], signal.SIGTERM)
    main(words)
    assert_same_run(tmp_path, unbroken)


def test_a_run_without_checkpoints_says_that_nothing_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    send(monkeypatch, "training_step", lambda _, index: index == 2, signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        main([*command("fit", tmp_path, *FLAGS, "--trainer.enable_checkpointing=false"), *model()])
    assert stop.value.code == 143
    assert "stopped by SIGTERM; nothing was kept: run the same command again" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_the_data_is_prepared(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(*_: object) -> None:
        os.kill(os.getpid(), number)
        for _ in range(100):  # another thread may receive it; this one hears of it a moment later
            time.sleep(0.05)

    monkeypatch.setattr("setrec.data.datamodule.prepare", prepare)
    with pytest.raises(SystemExit) as stop:
        main([*command("fit", tmp_path), *model()])
    assert stop.value.code == code
    assert "nothing was kept: run the same command again" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.process
@pytest.mark.parametrize("words", [["fit", "--config", "quickstart"], ["serve", "--ckpt_path", "x.ckpt"]])
def test_a_signal_while_modules_are_imported(words: list[str], tmp_path: Path) -> None:
    """Libraries catch what is raised within an import, so it ends at once; with a sentence all the same."""
    for wait in (0, 0.05, 0.15, 0.3, 0.6):
        process = subprocess.Popen(
            [sys.executable, "-m", "setrec", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )  # fmt: skip
        caught, limit = 0, time.monotonic() + 60
        while not caught & 1 << signal.SIGTERM - 1 and time.monotonic() < limit:  # until the command has begun
            (line,) = re.findall(r"SigCgt:\s+(\w+)", Path(f"/proc/{process.pid}/status").read_text())
            caught = int(line, 16)
        time.sleep(wait)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[1] == "stopped by SIGTERM: run the same command again\n"
        assert process.returncode == 143
    assert not list(tmp_path.iterdir())
