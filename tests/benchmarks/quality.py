"""Is anything paid for speed? The quickstart world, the naive way against the project's, equal epochs, several seeds.

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/quality.py [--epochs 16] [--dropout 0] [--seeds 3] [--json FILE]

Tiny T5, the paper's loss, batches of 128 prefixes for all, one learning rate: the naive way's best. Naive: one row per prefix
in random order, float32. Ours, rows of like length together, in bfloat16: `exact`, all prefixes of a user in a row, the whole
catalogue in the softmax; `sampled`, the same with a sample of 256 of its 800 items; `shared` and `shared_sampled`, a user's
prefixes shared out to three rows, so that a batch holds more users; `single`, one row per prefix. Validation Recall@10, all
items, beta chosen among eleven, seen items masked.

16 epochs without dropout are where the naive way is best. With `--dropout 0.1` a row's prefixes share what is dropped of their
history, and packed rows fall behind: docs/scaling.md.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import naive
import numpy as np
import torch
from efficiency import ALPHA, EVAL_BATCH, HISTORY, module_of, own_loss
from measure import write_json
from torch import Tensor
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from setrec.backbones import T5Backbone
from setrec.data import SETRecDataModule, SyntheticWorld
from setrec.data.batches import EvalPlan, EvalRows, TrainPlan, TrainRows
from setrec.evaluation.metrics import RankingMetrics
from setrec.model import SETRec
from setrec.recipe import Recipe
from setrec.schemas import Batch
from setrec.scoring.weights import BETAS, Weights

WAYS = {
    "naive": False,
    "exact": True,
    "shared": 3,
    "sampled": True,
    "shared_sampled": 3,
    "single": False,
}  # prefix_parallel


def batches(data: SETRecDataModule, way: str, epoch: int, seed: int, size: int) -> Iterator[Batch]:
    """One epoch, every prefix once. size: prefixes in a batch of ours."""
    rows = TrainRows(data.histories.train, HISTORY, prefix_parallel=WAYS[way])
    if way == "naive":
        order = np.random.default_rng((seed, epoch)).permutation(len(rows))
        yield from (rows[order[i : i + naive.BATCH]] for i in range(0, len(order), naive.BATCH))
    else:
        plan = TrainPlan(rows.prefixes, rows.history, size, seed)
        plan.set_epoch(epoch)
        yield from (rows[some] for some in plan.batches())


def loss_of(way: str, model: SETRec, batch: Batch) -> Tensor:
    return naive.loss(model, batch, ALPHA) if way == "naive" else own_loss(model, batch, bf16=True)


@torch.no_grad()
def recall(model: SETRec, data: SETRecDataModule) -> float:
    """Validation Recall@10 under the best beta."""
    module = module_of(model.eval(), data.catalogue)
    module.scorer.refresh()
    rows = EvalRows(data.histories.train, data.histories.validation, HISTORY)
    users, metrics = np.flatnonzero(data.histories.validation.lengths), [RankingMetrics((10,)) for _ in BETAS]
    for some in EvalPlan(users, rows.shown[users], EVAL_BATCH).batches():
        batch = rows[some]
        for metric, scores in zip(metrics, module.scorer.scores(batch, [Weights(beta) for beta in BETAS]), strict=True):
            metric.update(batch.user, module.rank(scores, batch), batch.target, module.warm)
    return max(metric.compute().value("recall@10") for metric in metrics)


def train(data: SETRecDataModule, way: str, epochs: int, seed: int, lr: float, size: int, dropout: float) -> float:
    """Train one model one way; its validation Recall@10."""
    torch.manual_seed(seed)
    recipe = Recipe(n_sem=2, missing_cf="zero", sampled=256 if "sampled" in way else None)
    model = SETRec(data.catalogue, T5Backbone(shape="tiny", dropout=dropout, attention_dropout=0.0), recipe).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    steps = epochs * sum(1 for _ in batches(data, way, 0, seed, size))
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, steps // 2), steps)
    with tqdm(total=steps, desc=f"{way}, seed {seed}", unit="step") as bar:
        for epoch in range(epochs):
            for batch in batches(data, way, epoch, seed, size):
                optimizer.zero_grad()
                loss_of(way, model, batch).backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return recall(model, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=800)
    parser.add_argument(
        "--lr", type=float, default=5e-4, help="of all ways; the naive way's best of 3e-4, 5e-4, 1e-3, 2e-3"
    )
    parser.add_argument("--dropout", type=float, default=0.0, help="of all ways")
    parser.add_argument("--batch", type=int, default=128, help="prefixes in a batch of ours")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        data = SETRecDataModule(
            name="quickstart", reader=SyntheticWorld(users=options.users, items=options.items), root=root
        )
        data.prepare_data()
        data.setup()
        found = {
            way: [
                train(data, way, options.epochs, seed, options.lr, options.batch, options.dropout)
                for seed in range(options.seeds)
            ]
            for way in options.ways
        }
    print(f"validation Recall@10 after {options.epochs} epochs, {options.seeds} seeds")
    for way, values in found.items():
        print(f"{way:11} mean {np.mean(values):.4f}, standard deviation {np.std(values, ddof=1) if len(values) > 1 else 0:.4f}: "
              + ", ".join(f"{v:.4f}" for v in values))  # fmt: skip
    if options.json:
        write_json(
            options.json, {"epochs": options.epochs, "lr": options.lr, "dropout": options.dropout, "recall@10": found}
        )


if __name__ == "__main__":
    main()
