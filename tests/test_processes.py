"""Several processes are one run: the same optimiser steps, the same figures, every user once."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

import setrec.encoders
from setrec.cli import run
from setrec.data import SETRecDataModule, SyntheticWorld
from setrec.encoders import HiddenStatesText
from tests.test_cli import command, model
from tests.zygote import Zygote

pytestmark = pytest.mark.process

ROOT = Path(__file__).parent.parent
SAME_EVERYWHERE = ["--model.backbone.dropout=0", "--model.backbone.attention_dropout=0"]  # dropout differs by process


def launch(words: list[str], processes: int, folder: Path, by: Zygote | Literal["lightning", "torchrun"]) -> None:
    """python main.py ... on several CPU processes, one thread each, which Lightning starts, or torchrun, or a zygote forks."""
    words = [*words, f"--trainer.devices={processes}", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]
    if isinstance(by, Zygote):
        by.together(words, processes, folder)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [sys.executable, *(start if by == "torchrun" else []), str(ROOT / "main.py"), *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "lightning_logs/version_0/checkpoints/last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same short fit on one process and on two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    flags = ["--trainer.max_epochs=2", *model(*SAME_EVERYWHERE)]
    run([*command("fit", one), *flags])
    launch([*command("fit", two), *flags], 2, two, "lightning")
    return one, two


def test_two_processes_take_the_same_steps_as_one(pair: tuple[Path, Path]) -> None:
    one, two = map(weights, pair)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert (value - two[name]).abs().max() < 1e-3 * max(float(value.abs().max()), 1e-2), name


def test_torchrun_takes_the_same_steps(pair: tuple[Path, Path], tmp_path: Path) -> None:
    launch([*command("fit", tmp_path), "--trainer.max_epochs=2", *model(*SAME_EVERYWHERE)], 2, tmp_path, "torchrun")
    one, found = weights(pair[0]), weights(tmp_path)
    assert one.keys() == found.keys()
    for name, value in one.items():
        assert (value - found[name]).abs().max() < 1e-3 * max(float(value.abs().max()), 1e-2), name


def prepare_slowly(words: list[str]) -> None:
    """One of the processes that prepare the same data; writes how many blocks of texts it has encoded."""

    class Slow(HiddenStatesText):
        blocks = 0

        def load(self) -> Callable[[list[str]], np.ndarray]:
            def encode(texts: list[str]) -> np.ndarray:
                Slow.blocks += 1
                time.sleep(0.2)
                return np.array([[len(text), sum(text.encode())] for text in texts], np.float32)

            return encode

    setrec.encoders.BLOCK = 1
    text, folder = Slow("no folder", batch_size=4), Path(words[0])
    (folder / f"ready{os.environ['RANK']}").touch()
    while len(list(folder.glob("ready*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.05)
    SETRecDataModule("x", SyntheticWorld(users=60, items=120), text, [], root=words[0]).prepare_data()
    (folder / f"blocks{os.environ['RANK']}").write_text(str(Slow.blocks))


def test_processes_of_torchrun_share_the_encoding_of_texts(zygote: Zygote, tmp_path: Path) -> None:
    def encoded(folder: Path, world: int) -> tuple[list[int], bytes]:
        folder.mkdir()
        zygote.together([str(folder)], world, folder, function="tests.test_processes:prepare_slowly")
        blocks = [int((folder / f"blocks{rank}").read_text()) for rank in range(world)]
        return blocks, (folder / "x/text.safetensors").read_bytes()

    (alone,), vectors = encoded(tmp_path / "one", 1)
    shared, same = encoded(tmp_path / "two", 2)
    assert same == vectors
    assert min(shared) >= 3  # of about 25
    assert sum(shared) <= alone + 2  # hardly anything twice
    assert not list((tmp_path / "two").glob(".x.*s"))


def test_figures_agree_on_one_two_and_three_processes(pair: tuple[Path, Path], zygote: Zygote, tmp_path: Path) -> None:
    checkpoint = next((pair[0] / "lightning_logs/version_0/checkpoints").glob("epoch-*.ckpt"))
    found = []
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        folder.mkdir()
        words = ["test", "--ckpt_path", str(checkpoint), f"--trainer.default_root_dir={folder}"]
        words.append("--data.eval_batch_size=40")  # several batches, not a multiple of the processes
        if processes == 1:
            run([*words, "--trainer.accelerator=cpu"])
        else:
            launch(words, processes, folder, zygote)
        found.append(json.loads((folder / "lightning_logs/version_0/results.json").read_text()))
    for name in ("per_user", "hits"):  # every user's figures, written once, by one process
        one, *others = (pl.read_parquet(tmp_path / f"{n}/lightning_logs/version_0/{name}.parquet") for n in (1, 2, 3))
        for other in others:
            assert_frame_equal(one, other, abs_tol=1e-6)
    for other in found[1:]:
        assert other["protocol"]["users"] == found[0]["protocol"]["users"]  # every user once
        for part in ("metrics", "baselines", "lists"):
            assert_close(other[part], found[0][part])
        assert_close(other["other_filter"]["metrics"], found[0]["other_filter"]["metrics"])


def assert_close(one: dict, other: dict) -> None:
    """Nested dictionaries of figures agree to 1e-6."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_close(value, other[key])
        else:
            assert value == pytest.approx(other[key], abs=1e-6), key


def test_predictions_of_two_processes_hold_every_user_once(
    pair: tuple[Path, Path], zygote: Zygote, tmp_path: Path
) -> None:
    checkpoint = next((pair[0] / "lightning_logs/version_0/checkpoints").glob("epoch-*.ckpt"))
    tables = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        words = ["predict", "--ckpt_path", str(checkpoint), f"--predictions.output={folder / 'out.parquet'}"]
        words += ["--data.eval_batch_size=40", f"--trainer.default_root_dir={folder}"]
        if processes == 1:
            run([*words, "--trainer.accelerator=cpu"])
        else:
            launch(words, processes, folder, zygote)
        tables.append(pl.read_parquet(folder / "out.parquet"))
    assert tables[0].select("user_id", "rank", "item_id").equals(tables[1].select("user_id", "rank", "item_id"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes_with_a_checkpoint(tmp_path: Path, number: int) -> None:
    flags = [
        "--trainer.max_epochs=1000",
        "--early_stopping.patience=1000",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
    ]
    words = [sys.executable, str(ROOT / "main.py"), *command("fit", tmp_path, *flags), *model()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    limit = time.monotonic() + 300
    while not list(tmp_path.rglob("last.ckpt")) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    said, resume = out.strip().splitlines()[-2:]
    assert said.startswith(f"stopped by {signal.Signals(number).name} after ")
    last = shlex.split(resume)[-1]
    assert torch.load(last, weights_only=True)["global_step"] == int(said.split()[4].replace(",", ""))
    while is_alive(process.pid):  # the others end soon after
        assert time.monotonic() < limit
        time.sleep(0.1)


def is_alive(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
