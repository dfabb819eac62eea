"""What `python main.py estimate` says against what is measured: seconds of a training step and of a batch of evaluation, memory.

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/estimates.py [--json FILE]

The same batches as the estimate has in mind, every history of one length; each case in a process of its own, so that its
peak of memory is its own. Ratios are estimate / measured: below 1, it takes longer than was said.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from efficiency import module_of, own_loss
from measure import clock, peak, reset_peak, resident, write_json
from tqdm import tqdm
from world import equal_rows, made_up_catalogue

from setrec.backbones import Backbone, DecoderBackbone, T5Backbone
from setrec.commands.estimate import Workload, estimate_workload, measured_speeds
from setrec.data.batches import EvalRows, TrainRows
from setrec.evaluation.metrics import RankingMetrics
from setrec.model import SETRec
from setrec.recipe import Recipe
from setrec.scoring.weights import BETAS, Weights
from setrec.trainer.ranking import CUTOFFS


class Case(NamedTuple):
    """One size to estimate and to measure."""

    backbone: Backbone
    workload: Workload
    steps: int = 6


CASES = {
    "tiny T5": Case(T5Backbone(shape="tiny", attention_dropout=0.0), Workload()),
    "tiny T5, 50 items": Case(T5Backbone(shape="tiny", attention_dropout=0.0), Workload(history=50)),
    "tiny T5, sampled": Case(T5Backbone(shape="tiny", attention_dropout=0.0), Workload(items=200_000, sampled=2048)),
    "small T5": Case(T5Backbone(shape="small", attention_dropout=0.0), Workload(), steps=3),
    "tiny Qwen2": Case(DecoderBackbone(family="qwen2", shape="tiny"), Workload(objective="score", n_cf=2)),
}


def measured(case: Case) -> tuple[float, int, float]:
    """Seconds of a training step, bytes at its peak, and seconds of a batch of evaluation; the best of some, both."""
    w, base, now = case.workload, resident(), clock(cpu=False)
    torch.manual_seed(0)
    catalogue = made_up_catalogue(w.items, w.text_width, w.cf_width, w.n_cf)
    model = SETRec(catalogue, case.backbone, Recipe(w.n_cf, w.n_sem, sampled=w.sampled, objective=w.objective)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    users = max(1, round(w.batch_size / w.history))
    rows, times = TrainRows(equal_rows(users * (case.steps + 1), w.items, w.history), w.history), []
    reset_peak()
    for i in range(case.steps + 1):
        batch = rows[np.arange(i * users, (i + 1) * users)]
        start = now()
        optimizer.zero_grad()
        own_loss(model, batch, bf16=True).backward()
        optimizer.step()
        times.append(now() - start)
    most = peak() - base
    module = module_of(model.eval(), catalogue)
    module.scorer.refresh()
    history, targets = equal_rows(w.eval_batch_size, w.items, w.history), equal_rows(w.eval_batch_size, w.items, 1)
    batch, reading = EvalRows(history, targets, w.history)[np.arange(w.eval_batch_size)], []
    for _ in range(3):
        metrics, start = [RankingMetrics(CUTOFFS) for _ in BETAS], now()
        with torch.no_grad():
            for metric, scores in zip(
                metrics, module.scorer.scores(batch, [Weights(beta) for beta in BETAS]), strict=True
            ):
                metric.update(batch.user, module.rank(scores, batch), batch.target, catalogue.warm)
        reading.append(now() - start)
    return min(times[1:]), most, min(reading)


def compare(name: str) -> dict[str, Any]:
    """Both sides of one case."""
    case = CASES[name]
    step, most, batch = measured(case)
    found = estimate_workload(case.workload, case.backbone, True, measured_speeds("cpu", bf16=True))
    return {
        "step_seconds": [found.step_seconds, step],
        "train_bytes": [found.train_bytes, most],
        "batch_seconds": [found.batch_seconds, batch],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), help="only this one, as JSON, in this process")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(compare(options.case)))
        return
    results = {}
    for name in tqdm(CASES, desc="cases", unit="case"):
        command = [sys.executable, __file__, "--case", name]
        out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        results[name] = json.loads(out.splitlines()[-1])
    print(f"{'estimate / measured':22}{'training step':>24}{'memory':>22}{'evaluation':>24}")
    for name, found in results.items():
        parts = [f"{e:.3g} / {m:.3g} s = {e / m:.2f}" for e, m in (found["step_seconds"], found["batch_seconds"])]
        e, m = (b / 2**30 for b in found["train_bytes"])
        print(f"{name:22}{parts[0]:>24}{f'{e:.2f} / {m:.2f} GiB':>22}{parts[1]:>24}")
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
