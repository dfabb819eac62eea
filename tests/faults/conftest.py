"""What the fault tests share: a trained run, kills, the number of tries."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TrainedRun
from tests.zygote import Ended, Zygote

TRIES = int(os.environ.get("SETREC_FAULT_TRIES", "8"))  # of every kind; more of them find more


@pytest.fixture(scope="session")
def run(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run of the smallest kind, made in a process of its own."""
    folder = tmp_path_factory.mktemp("run")
    done = zygote.run("command", folder / "log", words=fit_words(folder))
    assert done.code == 0, done.said
    checkpoint = next((folder / "lightning_logs/version_0/checkpoints").glob("epoch-*.ckpt"))
    return TrainedRun(checkpoint, folder / "data/tiny", folder)


def fit_words(folder: Path, *more: str) -> list[str]:
    """A fit of a second or two."""
    return [
        "fit", "--data.name=tiny", f"--data.root={folder / 'data'}", "--data.reader=SyntheticWorld",
        "--data.reader.users=60", "--data.reader.items=40", "--data.cleaning.k_core=2", "--data.batch_size=64",
        "--model.backbone.shape=nano", "--model.n_sem=1", f"--trainer.default_root_dir={folder}",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        "--trainer.max_epochs=2", "--trainer.limit_train_batches=2", "--trainer.logger=CSVLogger",
        f"--trainer.logger.save_dir={folder}", *more,
    ]  # fmt: skip


@pytest.fixture
def tally(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Counts tries and survivors, and prints them at the end, also under -q."""
    counts: dict[str, int] = {"tries": 0, "killed": 0, "survived": 0}

    def count(**more: int) -> None:
        for name, n in more.items():
            counts[name] = counts.get(name, 0) + n

    yield count
    with capsys.disabled():
        print(
            f"\n{request.node.name}: "
            + ", ".join(f"{n} {name}" for name, n in counts.items() if n or name != "killed"),
            end="",
        )


class Kills:
    """Runs a task again and again, each time killed at a random moment."""

    def __init__(self, zygote: Zygote, log: Path, seed: int) -> None:
        self.zygote, self.log = zygote, log
        self.random = random.Random(seed)
        self.seconds = 1.0  # of the whole task

    def whole(self, task: str, **arguments: Any) -> Ended:
        """Run a task to its end, and note how long that takes."""
        done = self.zygote.run(task, self.log, **arguments)
        assert done.code == 0, done.said
        self.seconds = done.seconds
        return done

    def moment(self) -> float:
        """A moment of the task, in seconds: any, or near its end, where most is written."""
        return self.random.uniform(self.random.choice((0, 0.6)), 1.1) * self.seconds

    def one(self, task: str, **arguments: Any) -> Ended:
        """Run a task and kill it; code -9, or 0 where it was faster."""
        done = self.zygote.run(task, self.log, self.moment(), **arguments)
        assert done.code in (0, -9), done.said
        if done.code == 0:  # the machine is less busy than it was
            self.seconds = min(self.seconds, done.seconds)
        return done


@pytest.fixture
def kills(zygote: Zygote, tmp_path: Path, request: pytest.FixtureRequest) -> Kills:
    return Kills(zygote, tmp_path / "log", int(os.environ.get("SETREC_FAULT_SEED", "0")) + len(request.node.name))
