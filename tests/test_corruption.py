"""Every file that a trained model is loaded from, damaged in many ways: refused with one sentence, or it changes nothing.

`pytest tests/test_corruption.py` prints a table. SETREC_TRIES sets the number of damages of each kind and file (default 1).
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from setrec import Recommender
from setrec.errors import SETRecError
from setrec.inference.journal import Journal
from setrec.trainer.checkpoints import WholeCheckpointIO
from tests.conftest import TrainedRun, train_tiny

pytestmark = pytest.mark.fault  # trains, and loads a model hundreds of times

TRIES = int(os.environ.get("SETREC_TRIES", "1"))


def flip(data: bytearray, rng: random.Random, times: int = 1) -> bytes:
    for _ in range(times):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def at(data: bytes | list[bytes], rng: random.Random) -> int:
    return rng.randrange(len(data))


def digit(data: bytes, rng: random.Random) -> bytes:
    """Another digit in place of one of the text; a flip where there is none."""
    places = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return flip(bytearray(data), rng)
    place = rng.choice(places)
    return data[:place] + bytes([48 + (data[place] - 47) % 10]) + data[place + 1 :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a bit": lambda data, rng: flip(bytearray(data), rng),
    "two bits": lambda data, rng: flip(bytearray(data), rng, 2),
    "twenty bits": lambda data, rng: flip(bytearray(data), rng, 20),
    "a bit of the first 100 bytes": lambda data, rng: flip(bytearray(data[:100]), rng) + data[100:],
    "a bit of the last 100 bytes": lambda data, rng: data[:-100] + flip(bytearray(data[-100:]), rng),
    "a digit": digit,
    "emptied": lambda data, rng: b"",
    "cut off": lambda data, rng: data[: at(data, rng)],
    "cut behind a line": lambda data, rng: b"".join((lines := data.splitlines(keepends=True))[: at(lines, rng)]),
    "the last byte lost": lambda data, rng: data[:-1],
    "the first byte lost": lambda data, rng: data[1:],
    "a byte lost": lambda data, rng: data[: (place := at(data, rng))] + data[place + 1 :],
    "a byte more": lambda data, rng: data[: (place := at(data, rng))] + b"0" + data[place:],
    "zeros inside": lambda data, rng: data[: (place := at(data, rng))] + bytes(64) + data[place + 64 :],
    "zeros to the end": lambda data, rng: data[: (place := at(data, rng))] + bytes(len(data) - place),
    "a block twice": lambda data, rng: data[: (place := at(data, rng))] + data[max(place - 512, 0) :],
    "garbage behind": lambda data, rng: data + rng.randbytes(50),
    "all garbage": lambda data, rng: rng.randbytes(len(data)),
    "another file": lambda data, rng: b'{"x": 1}\n' * 30,
}


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


def answers(path: Path) -> Any:
    """All that a loaded model says: answers with reasons, what it is, and what it makes of a new item."""
    folder = next((above / "data/tiny" for above in path.parents if (above / "data/tiny").is_dir()), None)
    recommender = Recommender.load(path, data=folder if path.suffix == ".ckpt" else None)
    own = [item.id for item in recommender.search("", limit=40)]
    histories = [[], own[:1], own[3:20], own[::3]]
    said = [recommender.recommend(histories, k=100, explain=True), recommender.info(), recommender.search("a", 100)]
    recommender.add_items([{"id": "NEW", "title": "wooden train", "text": "wooden train set"}])
    return [*said, recommender.recommend([["NEW"], own[:5]], k=100)]


def journal(path: Path) -> Any:
    read = Journal(path, writable=False)
    return read.added, read.removed


def resumed(path: Path) -> Any:
    content = WholeCheckpointIO().load_checkpoint(path)
    return [content["state_dict"], content["optimizer_states"], content["global_step"], content["hyper_parameters"]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run with everything: item graphs, a published folder, a version of the catalogue, a journal."""
    folder = tmp_path_factory.mktemp("place")
    flags = ["--model.objective=score", "--model.neighbours=true", "--model.memory=true", "--model.missing_cf=zero"]
    run = train_tiny(folder, *flags)
    recommender = Recommender.load(run.checkpoint)
    recommender.save_pretrained(folder / "published")
    recommender.add_items([{"id": "B1", "title": "road bike", "text": "bike"}, {"id": "B2", "title": "milk frother"}])
    recommender.remove_items([recommender.search("", 1)[0].id])
    recommender.save(folder / "version")
    kept = Journal(folder / "items.jsonl")
    for i in range(20):
        kept.add([{"id": f"N{i}", "title": f"wooden crane {i}", "vector": [0.5, i / 7]}])
        kept.remove([f"N{i}" if i % 3 == 0 else f"A{i}"])
    return run


def test_damaged_files(place: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside, data = "lightning_logs/version_0/checkpoints/" + place.checkpoint.name, "data/tiny/"
    loaders: list[tuple[str, str, Callable[[Path], Any]]] = [  # file, what is loaded, how
        *((inside, inside, how) for how in (answers, resumed)),
        *((data + name, inside, answers) for name in (
            "manifest.json", "items.parquet", "users.parquet", "text.safetensors", "cf.safetensors", "encoder.safetensors",
        )),
        *(("published/" + name, "published", answers) for name in (
            "config.json", "model.safetensors", "catalogue.parquet", "neighbours.safetensors", "results.json",
            "encoder/config.json", "encoder/encoder.safetensors",
        )),
        *(("version/" + name, "version", answers) for name in ("version.json", "added.parquet")),
        *((name, "items.jsonl", journal) for name in ("items.jsonl", "items.jsonl.head")),
    ]  # fmt: skip
    copy, rng, table, bad = tmp_path / "copy", random.Random(5), {}, []
    shutil.copytree(place.folder, copy)
    for file, loaded, how in loaders:
        whole = (place.folder / file).read_bytes()
        path = copy / loaded
        expected = how(path)
        found: Counter[str] = Counter()
        for kind, damage in DAMAGES.items():
            for _ in range(TRIES):
                damaged = damage(whole, rng)
                (copy / file).write_bytes(damaged)
                try:
                    outcome = "as before" if same(how(path), expected) else "silently other"
                except SETRecError as error:
                    outcome = "refused" if "\n" not in str(error) else "many lines"
                except Exception as error:
                    outcome = f"traceback {type(error).__name__}"
                found[outcome] += 1
                if outcome not in ("as before", "refused"):
                    bad.append((file, how.__name__, kind, outcome))
        (copy / file).write_bytes(whole)
        table[f"{file.replace(inside, 'model.ckpt')} ({how.__name__})"] = found
    total = sum(table.values(), Counter())
    with capsys.disabled():
        print()
        for name, found in table.items():
            print(f"{name:60} {dict(found)}")
        print(f"{len(table)} files and loaders, {len(DAMAGES)} damages, {sum(total.values())} tries: {dict(total)}")
    assert not bad, bad
