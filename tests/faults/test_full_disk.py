"""A full disk: one sentence, exit code 2, nothing that was there is lost, and the same command works once there is space."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
import torch

from setrec import Recommender
from setrec.data.catalogue import Catalogue, read_manifest
from setrec.data.store import files_match
from setrec.inference.versions import list_versions, read_version
from tests.conftest import TrainedRun
from tests.faults.conftest import TRIES, fit_words
from tests.zygote import Ended, Zygote

pytestmark = [pytest.mark.fault, pytest.mark.process]

Tally = Callable[..., None]
SIZE = 32 << 20  # bytes of the small disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here: that needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


class Filled:
    """The disk, filled up to a few free bytes for a while."""

    def __init__(self, disk: Path, free: int) -> None:
        self.file, self.free = disk / "ballast", free

    def __enter__(self) -> None:
        usage = shutil.disk_usage(self.file.parent)
        with self.file.open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, max(usage.free - self.free, 1))

    def __exit__(self, *_: object) -> None:
        self.file.unlink()


def refused(done: Ended) -> bool:
    """Whether the disk was too small for a task; it may have been large enough."""
    assert "Traceback" not in done.said, done.said
    if done.code == 0:
        return False
    assert done.code == 2, done.said
    (line,) = [line for line in done.said.splitlines() if line.startswith("error: ")]
    assert "No space left" in line or "can't be written" in line, line
    return True


def free_bytes(largest: int) -> Iterator[int]:
    """How much space is left in each try: from nothing to nearly enough."""
    draw = random.Random(7)
    yield 0
    for _ in range(max(2, TRIES // 2) - 1):
        yield int(largest * draw.random() ** 2)


def test_prepare(zygote: Zygote, disk: Path, tally: Tally) -> None:
    words = fit_words(disk, "--trainer.fast_dev_run=true")
    assert zygote.run("command", disk.parent / "log", words=words).code == 0
    folder = disk / "data/tiny"
    before = read_manifest(folder)
    assert before is not None
    for free in free_bytes(200_000):
        with Filled(disk, free):
            done = zygote.run("command", disk.parent / "log", words=[*words, "--data.cleaning.k_core=3"])
        now = read_manifest(folder)
        assert now is not None
        assert files_match(folder, now)
        if refused(done):
            assert now == before
        else:
            zygote.run("command", disk.parent / "log", words=words)
            before = read_manifest(folder)
        tally(tries=1, survived=1, refused=done.code == 2)


@pytest.mark.parametrize("logger", ["TensorBoardLogger", "CSVLogger"])
def test_fit(zygote: Zygote, run: TrainedRun, disk: Path, tally: Tally, logger: str) -> None:
    shutil.copytree(run.data, disk / "data" / run.data.name)  # not its updates: other tests made these
    words = fit_words(disk, f"--trainer.logger={logger}", "--trainer.max_epochs=1")
    assert zygote.run("command", disk.parent / "log", words=words).code == 0
    last = disk / "lightning_logs/version_0/checkpoints/last.ckpt"
    words = [*words, f"--ckpt_path={last}", "--trainer.max_epochs=3", f"--checkpoint.dirpath={last.parent}"]
    for free in free_bytes(3_000_000):
        with Filled(disk, free):
            done = zygote.run("command", disk.parent / "log", words=words)
        is_refused = refused(done)
        for path in disk.rglob("*.ckpt"):
            assert torch.load(path, weights_only=True)["state_dict"]
        assert last.exists()
        for folder in disk.glob("lightning_logs/version_[1-9]*"):
            shutil.rmtree(folder)
        tally(tries=1, survived=1, refused=is_refused)


def test_publish_and_add_items(zygote: Zygote, run: TrainedRun, disk: Path, tally: Tally) -> None:
    model, published = disk / "model.ckpt", disk / "published"
    shutil.copy(run.checkpoint, model)
    (disk / "new.csv").write_text("id,title\nN1,a garden lamp\n")
    publish = ["publish", "--ckpt_path", str(model), "--output", str(published)]
    add = ["add-items", "--ckpt_path", str(model), "--items", str(disk / "new.csv"), "--output", str(disk / "version")]
    for free in free_bytes(1_500_000):
        for words, output in ((publish, published), (add, disk / "version")):
            with Filled(disk, free if output == published else free // 100):
                done = zygote.run("command", disk.parent / "log", words=words)
            assert output.exists() != refused(done)
            if output.exists():
                Recommender.load(output)
                shutil.rmtree(output)
            assert not list(disk.glob(".*"))
            tally(tries=1, survived=1, refused=done.code == 2)
    assert not list_versions(model)
    assert zygote.run("command", disk.parent / "log", words=add[:-2]).code == 0
    assert read_version(list_versions(model)[0]).changes.added is not None


@pytest.mark.parametrize("histories", [True, False])
def test_predict(zygote: Zygote, run: TrainedRun, disk: Path, tally: Tally, histories: bool) -> None:
    output = disk / "predictions.parquet"
    if histories:
        item = Catalogue.load(run.data).ids[0]
        rows = pl.DataFrame({"user_id": [f"u{n}" for n in range(900)], "history": [[item]] * 900})
        rows.write_parquet(disk.parent / "h.parquet")
        words = ["predict", "--ckpt_path", str(run.checkpoint), "--histories", str(disk.parent / "h.parquet")]
        words += ["--output", str(output)]
    else:
        words = ["predict", "--ckpt_path", str(run.checkpoint), f"--predictions.output={output}"]
        words += [f"--trainer.default_root_dir={disk.parent}", "--trainer.logger=false", "--trainer.accelerator=cpu"]
    assert zygote.run("command", disk.parent / "log", words=words).code == 0
    before = output.read_bytes()
    for free in free_bytes(3 * len(before)):
        with Filled(disk, free):
            done = zygote.run("command", disk.parent / "log", words=words)
        is_refused = refused(done)
        assert output.read_bytes() == before
        tally(tries=1, survived=1, refused=is_refused)


def test_files_that_may_not_grow(zygote: Zygote, run: TrainedRun, tmp_path: Path, tally: Tally) -> None:
    """As the test of fit, without a disk of its own: a limit on the size of files."""
    shutil.copytree(run.data, tmp_path / "data" / run.data.name)
    words = fit_words(tmp_path, "--trainer.max_epochs=1")
    assert zygote.run("command", tmp_path / "log", words=words).code == 0
    last = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    before, size = last.read_bytes(), last.stat().st_size
    words = [*words, f"--ckpt_path={last}", "--trainer.max_epochs=2", f"--checkpoint.dirpath={last.parent}"]
    for limit in free_bytes(size):
        done = zygote.run("command", tmp_path / "log", words=words, file_size=max(limit, 20_000))
        assert refused(done)
        assert last.read_bytes() == before
        tally(tries=1, survived=1, refused=1)
