"""SETRec `best` beside what a user would pick instead, SASRec with the sampled softmax, on one core: cost and quality.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/against_sasrec.py --raw DIR [--image docs/images/cpu_minutes.png]

DIR is the release's folder of Toys; --text names the file of text vectors in it. SASRec has 2 blocks of width 128, as many choose;
its best epoch on validation is tested. Printed: CPU minutes of `fit` with validation, users a second of `predict`, test figures.
The picture shows validation Recall@10 of all items after so many CPU minutes.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from measure import tell, write_json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

mpl.use("Agg")
import matplotlib.pyplot as plt

RECALL = "validation/all/recall@10"
BEST = ["--config", "model/best"]
SASREC = [
    *("--config", "model/sasrec_sampled", "--data.name", "toys_sasrec", "--early_stopping.patience", "4"),
    *("--model.width", "128", "--model.n_blocks", "2", "--model.n_heads", "2", "--model.inner", "128"),
]
RUNS = {"SETRec best": BEST, "SASRec, sampled softmax": SASREC}


def cpu_seconds(process: int) -> float:
    """Of a process that runs: user and system time."""
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / 100


def fit(options: argparse.Namespace, name: str, flags: list[str]) -> dict[str, Any]:
    """Train and test in a process of its own, and watch its clock."""
    folder = options.folder / name.split(",")[0].replace(" ", "_")
    flags = [*flags, "--data.text.file", options.text] if flags is BEST else flags
    words = ["fit", "--config", "data/toys", *flags, "--data.raw", str(options.raw), "--data.root", str(options.folder / "data"),
             "--seed_everything", str(options.seed), "--data.seed", str(options.seed), "--trainer.enable_progress_bar", "false",
             "--trainer.default_root_dir", str(folder)]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "setrec", *words])
    clock: list[tuple[float, float]] = []  # wall, CPU
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            clock.append((time.time(), cpu_seconds(process.pid)))

    thread = threading.Thread(target=watch)
    thread.start()
    time.sleep(0.5)
    while process.poll() is None:
        time.sleep(0.2)
        if Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
    done.set()
    thread.join()
    if process.wait():
        raise SystemExit(f"{name}: fit failed")
    run = sorted(folder.glob("lightning_logs/version_*"))[-1]
    events = [EventAccumulator(str(path)).Reload() for path in sorted(run.glob("events*"))]
    points = [point for one in events if RECALL in one.Tags()["scalars"] for point in one.Scalars(RECALL)]
    walls, cpus = np.array(clock).T
    curve = [(float(np.interp(point.wall_time, walls, cpus)) / 60, point.value) for point in points]
    best = sorted((run / "checkpoints").glob("epoch-*.ckpt"))[-1]
    return {"CPU minutes of fit": cpus[-1] / 60, "curve": curve, "checkpoint": str(best)}


def answer(options: argparse.Namespace, name: str, checkpoint: str) -> dict[str, Any]:
    """Users a second of predict, and the figures of test, on the best checkpoint."""
    from lightning.pytorch import Trainer

    from setrec.module import SETRecModule
    from setrec.sasrec import SASRecModule

    module = (SETRecModule if RUNS[name] is BEST else SASRecModule).load_from_checkpoint(checkpoint)
    trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", default_root_dir=options.folder)
    trainer.predict(module, datamodule=module.data)  # warm
    start = time.process_time()
    trainer.predict(module, datamodule=module.data)
    seconds = time.process_time() - start
    trainer.test(module, datamodule=module.data, verbose=False)
    figures = json.loads((options.folder / "results.json").read_text())["metrics"]["all"]
    test = {f"test {metric}": figures[metric] for metric in ("recall@10", "ndcg@10")}
    return {"users a second of predict": len(module.data.histories.ids) / seconds} | test


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, one in found.items():
        axis.plot(*zip(*one["curve"], strict=True), marker=".", label=name)
    axis.set(xlabel="CPU minutes, validations included", ylabel="Recall@10, validation, all items", ylim=(0, None))
    axis.legend()
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument(
        "--folder", type=Path, default=Path("/tmp/against_sasrec"), help="for everything that is written"
    )
    parser.add_argument("--text", default="toys.emb-t5-tdcb.npy", help="a file in DIR")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--answer", help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        write_json(options.folder / "answer.json", answer(options, options.answer, options.checkpoint))
        return
    found: dict[str, dict[str, Any]] = {}
    for name, flags in RUNS.items():
        one = fit(options, name, flags)
        words = [sys.executable, __file__, *sys.argv[1:], "--answer", name, "--checkpoint", one["checkpoint"]]
        subprocess.run(words, check=True)
        found[name] = one | json.loads((options.folder / "answer.json").read_text())
        tell(
            {f"{name}, {key}": value for key, value in found[name].items() if key not in ("curve", "checkpoint")}, None
        )
    if options.json:
        write_json(options.json, found)
    if options.image:
        draw(found, options.image)


if __name__ == "__main__":
    main()
