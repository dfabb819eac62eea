"""Cleaning, split, ids and co-occurrence of generated events through each engine: time, peak memory, hashes.

    python tests/benchmarks/engines.py [--events 50000000] [--engines polars duckdb] [--memory 4] [--folder DIR]

The events are written once, as parquet parts of a million rows. Each engine prepares them in a process of its own, one after the
other. The memory is that of the process and its children, twice a second.
"""

import argparse
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import psutil

_CHUNK, _CLUSTER = 1_000_000, 100
_ENGINES = {
    "polars": "PolarsEngine()",
    "duckdb": "DuckDBEngine(memory='{memory}GB', threads=2)",
    "spark": "SparkEngine('local[2]', {{'spark.driver.memory': '{memory}g', 'spark.sql.shuffle.partitions': '16'}})",
}
_PREPARE = """
import hashlib, json, sys, time
import numpy as np
from setrec.cf import CooccurrenceSVD
from setrec.data import *
from setrec.data.catalogue import read_manifest
times = {}
class Pairs(CooccurrenceSVD):  # the counts alone, without the SVD
    def vectors(self, ids, train, raw):
        times["cleaned, split and numbered"] = time.monotonic() - start
        counts = self.count(train, len(ids), self.window)
        times["co-occurrence counted"] = time.monotonic() - start
        digest = hashlib.sha256(counts.indptr.tobytes() + counts.indices.tobytes() + counts.data.tobytes()).hexdigest()
        print(json.dumps({"pairs": counts.nnz, "sha256": digest}))
        return np.zeros((len(ids), 1), np.float32), np.ones(len(ids), bool)
folder, start = sys.argv[1], time.monotonic()
data = SETRecDataModule(name=sys.argv[2], reader=TableFiles("events", None), raw=folder, root=folder + "/data", text=None,
                        cf=[Pairs()], engine=eval(sys.argv[3]), cleaning=Cleaning(k_core=5))
data.prepare_data()
times["written"] = time.monotonic() - start
manifest = read_manifest(data.folder)
print(json.dumps({"seconds": {name: round(value) for name, value in times.items()}, "counts": manifest["counts"],
                  "steps": manifest["report"]["cleaning"], "files": manifest["files"]}))
"""


def generate(folder: Path, n_events: int) -> None:
    """Parts of a million events: 25 a user, the items of neighbouring clusters, the first of a cluster most."""
    rng = np.random.default_rng(0)
    users, clusters = max(n_events // 25, 10), 2_000
    (folder / "events").mkdir(parents=True)
    home = rng.integers(clusters, size=users)
    for part in range(-(-n_events // _CHUNK)):
        n = min(_CHUNK, n_events - part * _CHUNK)
        user = (users * rng.random(n) ** 1.3).astype(np.int64)
        item = (home[user] + rng.integers(3, size=n)) % clusters * _CLUSTER + (_CLUSTER * rng.random(n) ** 2).astype(
            int
        )
        when = 1_500_000_000 + rng.integers(31_536_000, size=n) // 3600 * 3600  # some of a user are tied
        frame = pl.DataFrame({"user": user * 7919, "item": item * 104_729 % 10**9, "timestamp": when})
        ids = [pl.format("A{}", pl.col("user")).alias("user_id"), pl.format("B{}", pl.col("item")).alias("item_id")]
        frame.select(*ids, "timestamp").write_parquet(folder / f"events/part-{part:05d}.parquet")


def measured(command: list[str]) -> tuple[list[str], float, float]:
    """Run a command. Returns the lines that it prints, the peak memory of its processes in GiB, and their CPU seconds."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    tree, peak, cpu = psutil.Process(process.pid), 0, dict[int, float]()
    while process.poll() is None:
        held = 0
        for one in (tree, *tree.children(recursive=True)) if tree.is_running() else ():
            with contextlib.suppress(psutil.Error):  # it has just ended
                held += one.memory_info().rss
                cpu[one.pid] = sum(one.cpu_times()[:2])
        peak = max(peak, held)
        time.sleep(0.5)
    assert process.stdout is not None
    return process.stdout.read().splitlines(), peak / 2**30, sum(cpu.values())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=50_000_000)
    parser.add_argument("--engines", nargs="+", default=list(_ENGINES), choices=list(_ENGINES))
    parser.add_argument("--memory", type=int, default=4, help="GB that DuckDB may hold, and Spark's heap")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/events50"))
    options = parser.parse_args()
    if not (options.folder / "events").exists():
        generate(options.folder, options.events)
    for name in options.engines:
        lines, peak, cpu = measured(
            [sys.executable, "-c", _PREPARE, str(options.folder), name, _ENGINES[name].format(memory=options.memory)]
        )
        print(name, f"peak {peak:.1f} GiB, {cpu:.0f} CPU seconds", *lines, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
