"""Training with tables larger than the memory that it takes: the sampled softmax over vectors in memory-mapped files.

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/mapped.py [--items 10000000] [--dtype float16] [--json FILE]

The files are written block by block, then read by a process of its own. Memory: `peak` counts everything that the process had in
memory at once, mapped files included; `own` leaves out what the system can drop at any time because it is in a file.
"""

import argparse
import json
import struct
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import OwnMemory, peak, resident, tell, write_json
from safetensors import safe_open
from world import made_up_rows

from setrec.backbones import DecoderBackbone
from setrec.data.batches import TrainPlan, TrainRows
from setrec.data.catalogue import Catalogue
from setrec.module import SETRecModule

WIDTHS = {"text": 128, "cf": 64}
BLOCK, BATCH, ALPHA = 1 << 18, 512, 0.7


def write_tables(folder: Path, n_items: int, dtype: str) -> None:
    """Write random vectors as safetensors, which needs the header first and then the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, width in WIDTHS.items():
        size = n_items * width * np.dtype(dtype).itemsize
        about = {"vectors": {"dtype": f"F{dtype[-2:]}", "shape": [n_items, width], "data_offsets": [0, size]}}
        header = json.dumps(about).encode()
        header += b" " * (-len(header) % 8)
        with (folder / f"{name}.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for start in range(0, n_items, BLOCK):
                rows = rng.standard_normal((min(BLOCK, n_items - start), width), np.float32) / width**0.5
                file.write(rows.astype(dtype).tobytes())


def mapped(path: Path) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("vectors")


def train(options: argparse.Namespace) -> dict[str, Any]:
    n_items = options.items
    begin = resident()
    rows = TrainRows(made_up_rows(20_000, n_items), 50)
    count = torch.from_numpy(np.bincount(rows.train.items, minlength=n_items))  # (N,)
    text, cf = mapped(options.folder / "text.safetensors"), mapped(options.folder / "cf.safetensors")
    names = [""] * n_items  # ids and titles take what their texts take; the model does not read them
    catalogue = Catalogue("mapped", names, names, text, (cf,), (torch.ones(n_items, dtype=torch.bool),), count, "")
    torch.manual_seed(0)
    module = SETRecModule(
        DecoderBackbone(family="qwen2", shape="tiny", token_dropout=0.1),
        objective="score",
        missing_cf="zero",
        cf_dropout=0.2,
        cf_score_dropout=0.5,
        memory=True,
        sampled=options.sampled,
        sampling="popularity",
    )
    module.model = model = module.make_model(catalogue)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found: dict[str, Any] = {"own GiB before the first step": (resident() - begin) / 2**30}
    seconds, losses = [], []
    for chosen in islice(TrainPlan(rows.prefixes, rows.history, BATCH, seed=0).batches(), options.steps):
        start = time.process_time()
        batch = rows[chosen]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sums = model.losses(batch, each_slot=False)
        loss = sums.ranking / sums.n_prefix + ALPHA * sums.reconstruction / sums.n_reconstructed.clamp(min=1e-6)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.process_time() - start)
    found |= {"steps": len(seconds), "seconds of computing a step, median": float(np.median(seconds[1:]))}
    found |= {"first loss": losses[0], "last loss": float(np.mean(losses[-5:]))}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16")
    parser.add_argument("--sampled", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/mapped"))
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)  # the process that trains
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.step:
        with OwnMemory() as own:
            found = train(options)
        write_json(
            options.folder / "found.json", found | {"peak GiB": peak() / 2**30, "own GiB, most": own.most / 2**30}
        )
        return
    write_tables(options.folder, options.items, options.dtype)
    size = sum(path.stat().st_size for path in options.folder.glob("*.safetensors"))
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--step"], check=True)
    found = json.loads((options.folder / "found.json").read_text())
    tell({"items": options.items, "files GiB": size / 2**30} | found, options.json)


if __name__ == "__main__":
    main()
