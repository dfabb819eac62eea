"""A model as a folder that other programs serve: no line of this project is needed to answer from it.

user_tower/config.pbtxt      for Triton and other servers of the KServe V2 protocol, which read this form of folder
user_tower/1/model.onnx      item ids of histories -> user vectors
user_tower/1/model.pt2       the same as a program of torch.export, where asked for
item_table.safetensors       vectors, ids and titles of the items, and what the item graphs add; see item_table.py
example.py                   answers from these files
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.numpy import save_file

from setrec.errors import ConfigError
from setrec.inference.answers import Snapshot
from setrec.inference.item_table import item_table
from setrec.inference.user_tower import (
    HISTORY,
    USER,
    UserTower,
    check_packages,
    largest_difference,
    run_onnx,
    run_torch,
    torch_program,
    write_onnx,
)

Format = Literal["onnx", "torch"]
TOWER, TABLE, EXAMPLE, CONFIG = "user_tower", "item_table.safetensors", "example.py", "config.pbtxt"
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
MAX_BATCH = 256  # what the server may put together

_CONFIG = f"""\
name: "{TOWER}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
input [ {{ name: "{HISTORY}" data_type: TYPE_INT64 dims: [ -1 ] }} ]
output [ {{ name: "{USER}" data_type: TYPE_FP32 dims: [ %d ] }} ]
dynamic_batching {{ }}
"""
_IMPORTS: dict[Format, str] = {"onnx": "import onnxruntime", "torch": "import torch"}
_TOWERS: dict[Format, str] = {
    "onnx": f"""\
session = onnxruntime.InferenceSession(HERE / "{TOWER}/1/model.onnx")
tower = lambda history: session.run(None, {{"{HISTORY}": history}})[0]""",
    "torch": f"""\
program = torch.export.load(HERE / "{TOWER}/1/model.pt2").module()
tower = lambda history: program(torch.from_numpy(history)).detach().numpy()""",
}
_EXAMPLE = f'''\
"""Recommends without SETRec: python {EXAMPLE} ITEM_ID ITEM_ID ..., a history, oldest first."""

import sys
from pathlib import Path

import numpy as np
%s
from safetensors.numpy import load_file

HERE = Path(__file__).parent
table = load_file(HERE / "{TABLE}")
%s
ids, titles = (bytes(table[name]).decode().split("\\0") for name in ("ids", "titles"))
row = {{own: i for i, own in enumerate(ids)}}
graphs = [name.removesuffix(".fading") for name in table if name.endswith(".fading")]


def recommend(history, k=10):
    seen = [row[own] for own in history if own in row]
    read = seen[-table["max_history"][0] :]
    score = table["items"] @ tower(np.array([read or [-1]], np.int64))[0]
    for graph in graphs:
        start, item, weight, fading = (table[f"{{graph}}.{{part}}"] for part in ("start", "item", "weight", "fading"))
        for factor, i in zip(fading, reversed(read)):
            near = slice(start[i], start[i + 1])
            score[item[near]] += factor * weight[near]
    score[seen] = -np.inf
    best = np.argsort(-score, kind="stable")[:k]  # ties by the lower item
    return [(ids[i], titles[i], float(score[i])) for i in best if score[i] > -np.inf]


if __name__ == "__main__":
    for found in recommend(sys.argv[1:]):
        print(*found, sep="\\t")
'''


class Exported(NamedTuple):
    """What was written."""

    formats: list[Format]
    difference: float  # the largest between a program and the model, as a share of the largest number
    refused: str | None  # why there is no ONNX file although one was asked for


def write_exported(folder: Path, snapshot: Snapshot, formats: Sequence[Format]) -> Exported:
    """Fill an empty folder. Where ONNX can't express the backbone, there is a program of torch.export in its place.

    Raises:
        ConfigError: no format is asked for, a package is missing, or the backbone can't be exported at all.
        DataError: see `item_table`.
        ModelError: a program computes something else than the model.
        OSError: the folder can't be written.
    """
    if not formats:
        raise ConfigError("--formats is empty: give onnx, torch or both.")
    if "onnx" in formats:
        check_packages()
    model, table = snapshot.restored.model, item_table(snapshot)
    index = snapshot.restored.scorer.index
    width = table["items"].shape[1]  # W
    tower = UserTower(model, index, width - sum(part.shape[1] for part in index.parts.values()))
    program, refused = torch_program(tower), None
    inside = folder / TOWER / "1"
    inside.mkdir(parents=True)
    differences: dict[Format, float] = {}
    if "onnx" in formats:
        path = inside / FILES["onnx"]
        try:
            write_onnx(program, path)
            differences["onnx"] = largest_difference(tower, run_onnx(path), snapshot.max_history)
            (folder / TOWER / CONFIG).write_text(_CONFIG % width)
        except ConfigError as error:
            refused = str(error)
            for half in inside.iterdir():
                half.unlink()
    if "torch" in formats or refused:
        differences["torch"] = largest_difference(tower, run_torch(program), snapshot.max_history)
        torch.export.save(program, inside / FILES["torch"])
    save_file(table, folder / TABLE)
    (folder / TABLE).chmod(0o644)  # safetensors lets only the owner read, whatever the umask
    first: Format = "onnx" if "onnx" in differences else "torch"
    (folder / EXAMPLE).write_text(_EXAMPLE % (_IMPORTS[first], _TOWERS[first]))
    return Exported(list(differences), max(differences.values()), refused)
