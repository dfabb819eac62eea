"""Prepare a generated CSV of 20 million events, 500 thousand users and 200 thousand items: seconds and peak memory.

    python tests/benchmarks/prepare.py [--events 20000000] [--users 500000] [--items 200000] [--folder DIR] [--events_only]

The tables are written once, streaming, and prepared through the data module in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

_CHUNK = 1_000_000
_PREPARE = """
import json, resource, sys, time
from setrec.data import SETRecDataModule, TableFiles
folder, start = sys.argv[1], time.monotonic()
reader = TableFiles(events="events.csv", items="items.csv", rating="rating")
vectors = {"text": None, "cf": []} if sys.argv[2] == "True" else {}
data = SETRecDataModule(name="big", reader=reader, raw=folder, root=folder + "/data", **vectors)
data.prepare_data()
first, peak = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
start = time.monotonic()
data.prepare_data()
again = time.monotonic() - start
data.setup()
print(json.dumps({"seconds": round(first, 1), "peak_gib": round(peak, 2), "second_start_seconds": round(again, 1),
                  "counts": json.load(open(data.folder / "manifest.json"))["counts"]}))
"""


def generate(folder: Path, events: int, users: int, items: int) -> None:
    """events.csv and items.csv: skewed popularity, every user active from some day on, ratings 1 to 5."""
    rng = np.random.default_rng(0)
    fame = np.cumsum(1.0 / (rng.permutation(items) + 50) ** 0.7)
    begin = rng.integers(1_300_000_000, 1_590_000_000, users)
    with (folder / "events.csv").open("w") as file:
        file.write("user_id,item_id,timestamp,rating\n")
        for start in range(0, events, _CHUNK):
            n = min(_CHUNK, events - start)
            user = rng.integers(users, size=n)
            item = np.searchsorted(fame, rng.random(n) * fame[-1])
            when = begin[user] + (rng.random(n) * (1_600_000_000 - begin[user])).astype(np.int64)
            rows = zip(user.tolist(), item.tolist(), when.tolist(), rng.integers(1, 6, n).tolist(), strict=True)
            file.writelines(f"A{u * 7919:011d},B{i * 104729 % 10**9:09d},{t},{r}\n" for u, i, t, r in rows)
    words = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "pe", "ri", "so") for b in ("bat", "der", "fil", "gom", "hun")]
    with (folder / "items.csv").open("w") as file:
        file.write("item_id,title,description\n")
        for i in range(items):
            chosen = [words[w] for w in rng.integers(len(words), size=24)]
            file.write(f'B{i * 104729 % 10**9:09d},{" ".join(chosen[:4])},"{" ".join(chosen[4:])}"\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, default=500_000)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="where the tables go; they stay there. Default: a temporary folder")
    parser.add_argument("--events_only", action="store_true", help="no text and no CF vectors")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "items.csv").exists():
            start = time.monotonic()
            generate(folder, options.events, options.users, options.items)
            size = (folder / "events.csv").stat().st_size / 2**20
            print(f"generated {options.events:,} events, {size:,.0f} MiB, in {time.monotonic() - start:.0f} s")
        done = subprocess.run(
            [sys.executable, "-c", _PREPARE, str(folder), str(options.events_only)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        print(json.dumps(json.loads(done.stdout), indent=2))


if __name__ == "__main__":
    main()
