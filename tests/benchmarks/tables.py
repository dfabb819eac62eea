"""Preparing a table of vectors: what the process holds in memory while it is made.

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/tables.py [--items 1000000] [--width 768] [--json FILE]

Raw files are items with a title, a few events, and a file of vectors (float16, .npy). Memory: `own` leaves out mapped files, which
the system can drop at any time; `own without vectors` is the same data set prepared without the table.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from measure import OwnMemory, peak, tell, write_json

BLOCK = 1 << 14


def write_raw(folder: Path, n_items: int, width: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = [f"{i:08d},item number {i}\n" for i in range(n_items)]
    (folder / "items.csv").write_text("item_id,title\n" + "".join(rows))
    events = [
        f"u{user},{item:08d},{when}\n" for user in range(100) for when, item in enumerate(rng.permutation(200)[:9])
    ]
    (folder / "events.csv").write_text("user_id,item_id,timestamp\n" + "".join(events))
    table = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float16, (n_items, width))
    for start in range(0, n_items, BLOCK):
        table[start : start + BLOCK] = rng.standard_normal(table[start : start + BLOCK].shape, np.float32)


def prepare(options: argparse.Namespace, vectors: bool) -> None:
    from setrec.data import Cleaning, LeaveOneOut, SETRecDataModule, TableFiles
    from setrec.text import TextFile

    data = SETRecDataModule(
        f"tables{vectors}",
        TableFiles("events.csv", "items.csv", keep_unreviewed=True),
        TextFile("vectors.npy") if vectors else None,
        [],
        cleaning=Cleaning(k_core=0),
        split=LeaveOneOut(),
        raw=str(options.folder),
        root=str(options.folder / "data"),
        vector_dtype=options.dtype,
    )
    with OwnMemory() as own:
        start = time.process_time()
        data.prepare_data()
    found = {"own GiB": own.most / 2**30, "peak GiB": peak() / 2**30, "CPU seconds": time.process_time() - start}
    write_json(options.folder / "found.json", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="of the prepared table")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/tables"), help="for everything that is written")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", choices=["with", "without"], help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    if options.step:
        prepare(options, options.step == "with")
        return
    write_raw(options.folder, options.items, options.width)
    everything = {"items": options.items, "float32 GiB": options.items * options.width * 4 / 2**30}
    for step in ("without", "with"):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--step", step], check=True)
        found = json.loads((options.folder / "found.json").read_text())
        everything |= {f"{name}, {step} vectors": value for name, value in found.items()}
    tell(everything, options.json)


if __name__ == "__main__":
    main()
