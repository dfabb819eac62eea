"""How time and memory grow with the catalogue, the history, the slots and the width: plots, figures and fitted exponents.

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/scaling.py [--what items history slots width] [--docs docs]

Every point is one size in a process of its own: training steps of 512 prefixes in bfloat16 and evaluation over all betas, a T5 of
2 + 2 layers. Writes docs/scaling.json and docs/images/scaling_*.png; the exponents are slopes on logarithmic axes over the last
three sizes.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from efficiency import module_of, own_loss
from measure import clock, peak, reset_peak, resident, write_json
from tqdm import tqdm
from world import equal_rows, made_up_catalogue

from setrec.backbones import T5Backbone, t5
from setrec.data.batches import EvalRows, TrainRows
from setrec.model import SETRec
from setrec.recipe import Recipe
from setrec.scoring.topk import mask_seen, top_groups
from setrec.scoring.weights import BETAS, Weights

mpl.use("Agg")
import matplotlib.pyplot as plt

PREFIXES, USERS = 512, 64  # in a training step; evaluated, fewer with long histories
BASE = {"items": 12_000, "history": 8, "slots": 5, "width": 128, "sampled": 0}
SIZES = {
    "items": [1_000, 10_000, 100_000, 1_000_000],
    "history": [10, 30, 100, 300, 1_000],
    "slots": [2, 3, 5, 9, 17],
    "width": [64, 128, 256, 512],
}
NAMES = {"items": "items N", "history": "history length L", "slots": "slots K", "width": "width D"}
FULL_SOFTMAX_UP_TO = 100_000  # items


def measure(items: int, history: int, slots: int, width: int, sampled: int, cpu: bool) -> dict[str, float]:
    """Seconds and peak bytes of a training step and of evaluation at one size; in this process."""
    now, base = clock(cpu), resident()
    torch.manual_seed(0)
    t5.SHAPES["tiny"] = t5.T5Shape(d_model=width, d_kv=32, d_ff=4 * width, layers=2, heads=width // 32)
    backbone = T5Backbone(shape="tiny", attention_dropout=0.0)
    catalogue = made_up_catalogue(items)
    model = SETRec(catalogue, backbone, Recipe(n_sem=slots - 1, sampled=sampled or None)).train()
    n_rows = max(1, PREFIXES // history)
    rows = TrainRows(equal_rows(4 * n_rows, items, min(history, PREFIXES)), history)
    if history > PREFIXES:  # one row with the last 512 prefixes of a long history
        rows = TrainRows(equal_rows(4, items, history), history)
        rows.first, rows.prefixes = rows.first + rows.prefixes - PREFIXES, np.full_like(rows.prefixes, PREFIXES)
    optimizer, seconds, prefixes = torch.optim.AdamW(model.parameters()), [], 0
    reset_peak()
    for i in range(3):
        batch = rows[np.arange(i * n_rows, (i + 1) * n_rows)]
        start = now()
        optimizer.zero_grad()
        own_loss(model, batch, bf16=True).backward()
        optimizer.step()
        seconds.append((now() - start) / len(batch.valid))
        prefixes = len(batch.valid)
    train_bytes = peak() - base
    optimizer.zero_grad()
    module = module_of(model.eval(), catalogue)
    n_users = max(4, min(USERS, 6_400 // history))
    users = EvalRows(equal_rows(n_users, items, history), equal_rows(n_users, items, 2), history)[np.arange(n_users)]
    reset_peak()
    with torch.no_grad():
        module.scorer.refresh()
        start = now()
        for some in torch.arange(n_users).split(max(1, 8_000_000 // (items + 1_000 * history))):
            few = users._replace(
                **{f: getattr(users, f)[some] for f in ("user", "history", "prefix", "target", "seen", "position")},
                valid=torch.arange(len(some)),
            )
            for scores in module.scorer.scores(few, [Weights(beta) for beta in BETAS]):
                top_groups(mask_seen(scores, few.seen), module.warm, 20)
        evaluation = now() - start
    return {
        "train_seconds_per_prefix": min(seconds[1:]),
        "train_bytes": train_bytes,
        "eval_seconds_per_user": evaluation / n_users,
        "eval_bytes": peak() - base,
        "prefixes": prefixes,
    }


def sweep(what: str, cpu: bool) -> list[dict[str, Any]]:
    """All sizes of one quantity; the catalogue with the whole and with the sampled softmax."""
    points = [BASE | {what: size} for size in SIZES[what]]
    if what == "items":
        whole = [p for p in points if p["items"] <= FULL_SOFTMAX_UP_TO]
        points = whole + [p | {"sampled": 1024} for p in points if p["items"] > 1024]
    found = []
    for point in tqdm(points, desc=NAMES[what], unit="size"):
        words = [sys.executable, __file__, "--point", json.dumps(point | {"cpu": cpu})]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        found.append(point | json.loads(done.stdout.splitlines()[-1]))
    return found


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of log(value) over log(size), the last three sizes."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(values[-3:]), 1)[0])


def plot(what: str, points: list[dict[str, Any]], folder: Path) -> dict[str, float]:
    """Draw one quantity and return the fitted exponents."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    slopes = {}
    lines = [
        (axes[0], "train_seconds_per_prefix", 1e3, "training, ms a prefix"),
        (axes[0], "eval_seconds_per_user", 1e3, "evaluation, ms a user, 11 betas"),
        (axes[1], "train_bytes", 2**-20, "training, MiB"),
        (axes[1], "eval_bytes", 2**-20, "evaluation, MiB"),
    ]
    for axis, key, scale, name in lines:
        kinds = {p["sampled"] for p in points} if key.startswith("train") else {-1}
        for sampled in sorted(kinds):
            # evaluation knows no sampling: one point a size
            chosen = {p[what]: p for p in points if sampled in (-1, p["sampled"])}
            sizes, tail = list(chosen), ", sampled softmax" if sampled > 0 else ""
            values = [p[key] for p in chosen.values()]
            slopes[f"{key}{tail}"] = slope = exponent(sizes, values)
            axis.loglog(sizes, [v * scale for v in values], "o-", label=f"{name}{tail} ({slope:.2f})")
    for axis, title in zip(axes, ("time", "peak memory"), strict=True):
        axis.set_xlabel(NAMES[what])
        axis.set_title(title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / f"scaling_{what}.png", dpi=130)
    plt.close(figure)
    return slopes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(**json.loads(options.point))))
        return
    images = options.docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    path = options.docs / "scaling.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for what in options.what:
        points = sweep(what, options.clock == "cpu")
        known[what] = {"points": points, "exponents": plot(what, points, images), "clock": options.clock}
        write_json(path, known)
        print(what, {name: round(value, 2) for name, value in known[what]["exponents"].items()})


if __name__ == "__main__":
    main()
