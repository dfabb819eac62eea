"""Data for every test: the real releases where this machine has them, and a tiny one made on the spot."""

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.zygote import Zygote

torch.set_num_threads(1)  # tiny tensors: a second thread only waits
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

TINY_USERS, TINY_ITEMS, TINY_COLD = 60, 40, 8  # the last 8 items of tiny_release are cold

# Modules that take longest, about 60 down to 10 seconds of one core: they begin first, so that no core waits at the end.
LONG = (
    "test_processes", "test_kill", "test_configs", "test_export", "test_cli", "test_fuzz", "test_full_disk",
    "test_notebooks", "test_accelerator", "test_interruption", "test_learning", "test_decoder", "test_predictfile",
    "test_data_store", "test_metrics", "test_golden", "test_tune", "test_serve_document", "test_ablate", "test_old",
    "test_data_properties", "test_update", "test_resume",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first; the order inside a module stays."""
    place = {name: n for n, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def _real(variable: str, folder: str) -> Path:
    path = Path(os.environ.get(variable, Path(__file__).parents[1] / "../shared/data" / folder))
    if not path.is_dir():
        pytest.skip(f"the {folder} release is not here; set {variable} to its folder")
    return path.resolve()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Runs commands in processes of their own, without their imports."""
    process = Zygote()
    yield process
    process.close()


@pytest.fixture(scope="session")
def toys_raw() -> Path:
    """Folder of the official Toys release."""
    return _real("SETREC_TOYS", "toys")


@pytest.fixture(scope="session")
def steam_raw() -> Path:
    """Folder of the official Steam release."""
    return _real("SETREC_STEAM", "steam")


def save_object(path: Path, content: object) -> None:
    """As the authors save: numpy.save of a Python object."""
    np.save(path, np.array(content, dtype=object), allow_pickle=True)


def build_release(folder: Path, seed: int = 0) -> Path:
    """A release of 60 users and 40 items in the official form: dicts, sets, items.jsonl, CF pickle (64), text (16).

    Users buy around a group of their own, so there is something to learn. Every third user has no validation items,
    every fourth no test items; tests reach the cold items 32..39, training never does.
    """
    rng = np.random.default_rng(seed)
    warm = TINY_ITEMS - TINY_COLD
    train: dict[int, list[int]] = {}
    validation: dict[int, list[int]] = {}
    test: dict[int, list[int]] = {}
    for user in range(TINY_USERS):
        home = np.where(np.arange(TINY_ITEMS) % 4 == user % 4, 6.0, 1.0)  # four groups of items
        order = rng.choice(TINY_ITEMS, TINY_ITEMS, replace=False, p=home / home.sum())
        n_train = int(rng.integers(2, 13))
        train[user] = order[order < warm][:n_train].tolist()
        later = [int(item) for item in order if item not in train[user]]
        validation[user] = later[:2] if user % 3 else []
        test[user] = later[2 : 3 + user % 3] if user % 4 else []
    missing = set(range(warm)) - {item for row in train.values() for item in row}
    train[0] += sorted(missing)  # every item that should be warm is
    trained = {item for row in train.values() for item in row}
    folder.mkdir(parents=True, exist_ok=True)
    save_object(folder / "training_dict.npy", train)
    save_object(folder / "validation_dict.npy", validation)
    save_object(folder / "testing_dict.npy", test)
    for name, kept in (("warm", trained), ("cold", set(range(TINY_ITEMS)) - trained)):
        save_object(folder / f"{name}_item.npy", kept)
        part = {user: [item for item in row if item in kept] for user, row in test.items()}
        save_object(folder / f"testing_{name}_dict.npy", part)
    group = np.arange(TINY_ITEMS) % 4
    words = ["wooden train", "paper crane", "metal robot", "cloth doll"]
    with (folder / "items.jsonl").open("w") as file:
        for item in range(TINY_ITEMS):
            entry = {
                "item_id": item,
                "asin": f"A{item:03d}",
                "title": f"{words[group[item]]} {item}",
                "keywords": "toy",
            }
            file.write(json.dumps(entry) + "\n")
    text = np.eye(4, 16, dtype=np.float32)[group] + 0.3 * rng.standard_normal((TINY_ITEMS, 16)).astype(np.float32)
    np.save(folder / "text.npy", text)
    vectors = np.eye(4, 64, dtype=np.float32)[group] + 0.3 * rng.standard_normal((TINY_ITEMS, 64)).astype(np.float32)
    with (folder / "SASRec_item_embed.pkl").open("wb") as file:
        pickle.dump(torch.from_numpy(vectors), file)
    return folder


@pytest.fixture
def tiny_release(tmp_path: Path) -> Path:
    """Folder of a tiny release, see `build_release`; a copy of its own for each test."""
    return build_release(tmp_path / "release")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny pretrained language model of every family, in a folder; don't change them."""
    from tests.language_models import FAMILIES, save_model

    return {family: save_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


class TrainedRun(NamedTuple):
    """A run that is over."""

    checkpoint: Path
    data: Path  # folder of its prepared data
    folder: Path  # of the whole run


def command(sub: str, folder: Path, *more: str) -> list[str]:
    """A small, fast run on the made-up world, everything it writes inside `folder`."""
    return [
        sub,
        "--data.name=tiny",
        f"--data.root={folder / 'data'}",
        "--data.reader=SyntheticWorld",
        "--data.reader.users=150",
        "--data.reader.items=80",
        "--data.cleaning.k_core=2",
        "--data.batch_size=128",
        f"--trainer.default_root_dir={folder}",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        *more,
    ]


def model(*more: str) -> list[str]:
    return ["--model.backbone.shape=nano", "--model.n_sem=2", "--model.lr=3e-3", "--model.warmup_steps=5", *more]


def train_tiny(folder: Path, *more: str) -> TrainedRun:
    """Fit a nano model for two epochs on a made-up world of 150 users and 80 items, and test it; seconds."""
    from setrec.cli import run

    flags = ["--model.backbone=T5Backbone", *model(), "--trainer.max_epochs=2", "--test_after_fit=true"]
    run([*command("fit", folder, *flags), *more])
    checkpoint = next((folder / "lightning_logs/version_0/checkpoints").glob("epoch-*.ckpt"))
    return TrainedRun(checkpoint, folder / "data/tiny", folder)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A trained checkpoint with everything that a served model can have (score, memory, zero missing CF); don't change it."""
    flags = ["--model.objective=score", "--model.memory=true", "--model.missing_cf=zero", "--model.negatives=warm"]
    return train_tiny(tmp_path_factory.mktemp("tiny_run"), *flags, "--model.backbone.recency_bias=true")


@pytest.fixture(scope="session")
def graph_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A trained decoder with item graphs and a memory; don't change it."""
    from setrec.cli import run

    folder = tmp_path_factory.mktemp("graph_run")
    flags = ["--model.objective=score", "--model.memory=true", "--model.neighbours=true", "--trainer.max_epochs=1"]
    run([*command("fit", folder, "--model.backbone=DecoderBackbone", *model(*flags))])
    return TrainedRun(folder / "lightning_logs/version_0/checkpoints/last.ckpt", folder / "data/tiny", folder)


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """A fake model in service, see tests/serve_fake.py."""
    from tests.serve_fake import holder_of

    return holder_of(tmp_path)


@pytest.fixture
def client(holder: Any) -> Any:
    """A client of a server with this fake model."""
    from fastapi.testclient import TestClient

    from setrec.serve.app import create_app
    from setrec.serve.options import ServeOptions
    from tests.serve_fake import TOKEN

    app = create_app(holder, TOKEN, ServeOptions(max_wait_ms=0))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
