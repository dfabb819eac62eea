"""The project's way against the naive way (naive.py), in one process, on the same weights.

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/efficiency.py --shape tiny|small|qwen_tiny --json FILE

Checks that losses, gradients and scores agree, then measures both in turn: training prefixes a second, test users a second
over all betas, and peak memory. The naive way trains in float32, 128 prefixes a step; the project's as its configurations
do, 512 prefixes a step, in bfloat16 (configs/model/t5_tiny.yaml) and in float32, all prefixes of a user in a row, shared out to
three, or one a row. Without dropout, which is better for both on little data (quality.py); `--dropout 0.1` is the paper's.
"""

import argparse
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import naive
import numpy as np
import torch
from measure import clock, peak, reset_peak, resident, tell
from torch import Tensor
from tqdm import tqdm
from world import N_TOYS, TEST_LENGTH, made_up_catalogue, made_up_rows

from setrec.backbones import Backbone, DecoderBackbone, T5Backbone
from setrec.data.batches import EvalPlan, EvalRows, TrainPlan, TrainRows
from setrec.data.catalogue import Catalogue
from setrec.evaluation.metrics import RankingMetrics
from setrec.files.ragged import Ragged
from setrec.model import SETRec
from setrec.module import SETRecModule
from setrec.recipe import Recipe
from setrec.schemas import Batch
from setrec.scoring.topk import mask_seen, top_groups
from setrec.scoring.weights import BETAS, Weights
from setrec.trainer.ranking import CUTOFFS

ALPHA, HISTORY, BATCH, EVAL_BATCH = 0.7, 50, 512, 128
SHARED = 3  # rows that a user's prefixes are shared out to where a batch is to hold more users, see quality.py
NAIVE_STEPS = {"tiny": 6, "small": 2, "qwen_tiny": 4}
NAIVE_USERS = {"tiny": 24, "small": 12, "qwen_tiny": 16}
OWN_STEPS = {"tiny": 12, "small": 4, "qwen_tiny": 10}
OWN_USERS = {"tiny": 2048, "small": 1024, "qwen_tiny": 2048}

GRID = [Weights(beta) for beta in BETAS]


def backbone(shape: str, dropout: float) -> Backbone:
    if shape == "qwen_tiny":
        return DecoderBackbone(family="qwen2", shape="tiny", token_dropout=dropout)
    return T5Backbone(shape=shape, dropout=dropout, attention_dropout=0.0)  # type: ignore[arg-type]


def own_loss(model: SETRec, batch: Batch, bf16: bool = False) -> Tensor:
    """The loss of SETRecModule.training_step on one process."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        sums = model.losses(batch)
    return sums.ranking / sums.n_prefix + ALPHA * sums.reconstruction / sums.n_reconstructed.clamp(min=1e-6)


def own_batches(train: Ragged, together: bool | int = True) -> Iterator[Batch]:
    """Batches as in training; an even choice of one epoch's, so that a few steps see every length.

    together: see `prefix_parallel` of `TrainRows`.
    """
    rows = TrainRows(train, HISTORY, together)
    plan = TrainPlan(rows.prefixes, rows.history, BATCH, seed=0).batches()
    return cycle(rows[plan[i]] for i in np.random.default_rng(0).permutation(len(plan)))


class Trainer:
    """Optimiser steps of one way, with the time they took."""

    def __init__(self, model: SETRec, batches: Iterator[Batch], loss: Any, cpu: bool) -> None:
        self.model, self.batches, self.loss, self.now = model, batches, loss, clock(cpu)
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
        self.prefixes, self.seconds = 0, 0.0

    def step(self, timed: bool = True) -> None:
        batch = next(self.batches)
        start = self.now()
        self.optimizer.zero_grad()
        self.loss(self.model, batch).backward()
        self.optimizer.step()
        if timed:
            self.seconds += self.now() - start
            self.prefixes += len(batch.valid)

    @property
    def rate(self) -> float:
        """Prefixes a second."""
        return self.prefixes / self.seconds


def peak_of_training(model: SETRec, batches: Iterator[Batch], loss: Any, steps: int, base: int) -> int:
    """Bytes that some steps need at their peak, weights, optimiser and catalogue included, the libraries not."""
    model.zero_grad()
    reset_peak()
    trainer = Trainer(model, batches, loss, cpu=False)
    for _ in range(steps):
        trainer.step()
    return peak() - base


# -------------------------------------------------------------------------------------------------------- agreement
def loss_differences(model: SETRec, train: Ragged) -> tuple[float, float]:
    """Largest difference of the loss, and of a gradient relative to its largest entry, on the prefixes of some users."""
    packed, single = TrainRows(train, HISTORY), TrainRows(train, HISTORY, prefix_parallel=False)
    ends = np.cumsum(packed.prefixes)
    losses, gradients = [], []
    for first in (0, 40, 80):
        users = np.arange(first, first + 12)
        rows = np.concatenate([np.arange(ends[u] - packed.prefixes[u], ends[u]) for u in users])
        found = []
        for value in (own_loss(model, packed[users]), naive.loss(model, single[rows], ALPHA)):
            model.zero_grad()
            value.backward()
            found.append((value.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
        (one, own), (two, plain) = found
        losses.append(abs(one - two))
        largest = max(float(g.abs().max()) for g in plain.values())
        gradients += [float((own[n] - plain[n]).abs().max()) / largest for n in own]
    model.zero_grad()
    return max(losses), max(gradients)


@torch.no_grad()
def score_differences(model: SETRec, module: SETRecModule, rows: EvalRows, users: np.ndarray) -> tuple[float, float]:
    """Largest difference of a score under any beta, less what is the same for all items of a user; and the scores' spread."""
    catalogue, worst, spread = naive.expanded(model), 0.0, 0.0
    together = rows[users]
    for beta, own in zip(BETAS, module.scorer.scores(together, [Weights(beta) for beta in BETAS]), strict=True):
        for place, user in enumerate(users):
            plain = naive.scores(model, catalogue, rows[np.array([user])], beta)  # (N,)
            difference = own[place] - plain  # (N,)
            worst = max(worst, float((difference - difference.mean()).abs().max()))
            spread = max(spread, float(plain.std()))
    return worst, spread


# ------------------------------------------------------------------------------------------------------- evaluation
@torch.no_grad()
def naive_evaluation(model: SETRec, warm: Tensor, rows: EvalRows, users: np.ndarray, cpu: bool) -> float:
    """Users a second over all betas. The trunk's codes are kept; what they expand to is made anew for every user."""
    codes, now = model.codes(), clock(cpu)  # (N, H)
    start = now()
    for beta in tqdm(BETAS, desc="naive evaluation", unit="beta"):
        metrics = RankingMetrics(CUTOFFS)
        for user in users:
            batch = rows[np.array([user])]
            catalogue = model.tokens(codes).transpose(0, 1).contiguous()  # (K, N, D)
            scores = mask_seen(naive.scores(model, catalogue, batch, beta)[None], batch.seen)  # (1, N)
            metrics.update(batch.user, top_groups(scores, warm, max(CUTOFFS)), batch.target, warm)
        metrics.compute()
    return len(users) / (now() - start)


@torch.no_grad()
def own_evaluation(module: SETRecModule, rows: EvalRows, users: np.ndarray, cpu: bool) -> float:
    """Users a second over all betas, in the batches of the data module; the index is made within the time."""
    now = clock(cpu)
    metrics = [RankingMetrics(CUTOFFS) for _ in BETAS]
    start = now()
    module.scorer.refresh()
    for some in tqdm(EvalPlan(users, rows.shown[users], EVAL_BATCH).batches(), desc="evaluation", unit="batch"):
        batch = rows[some]
        for metric, scores in zip(metrics, module.scorer.scores(batch, [Weights(beta) for beta in BETAS]), strict=True):
            metric.update(batch.user, module.rank(scores, batch), batch.target, module.warm)
    for metric in metrics:
        metric.compute()
    return len(users) / (now() - start)


def even_choice(lengths: np.ndarray, n: int) -> np.ndarray:
    """n users at even steps from the shortest to the longest history."""
    order = np.argsort(lengths, kind="stable")
    return np.sort(order[((np.arange(n) + 0.5) * len(order) / n).astype(np.int64)])


def module_of(model: SETRec, catalogue: Catalogue) -> SETRecModule:
    """The LightningModule around a model, ready to evaluate without a trainer."""
    module = SETRecModule(backbone=model.backbone)
    module.model, module.warm = model, catalogue.warm
    return module.eval()


def measure(shape: str, n_items: int, sampled: int, dropout: float, cpu: bool, seed: int = 0) -> dict[str, Any]:
    """All figures of one shape."""
    base = resident()
    catalogue = made_up_catalogue(n_items)
    train, history = made_up_rows(4000, n_items), made_up_rows(4000, n_items, TEST_LENGTH, seed=1)
    targets = made_up_rows(4000, n_items, (0.0, 0.5), seed=2)
    torch.manual_seed(seed)
    model = SETRec(catalogue, backbone(shape, dropout), Recipe())
    model_sampled = SETRec(catalogue, model.backbone, Recipe(sampled=sampled))
    model_sampled.tokens, model_sampled.queries = model.tokens, model.queries  # one set of weights
    model.train()
    model_sampled.train()

    def plain(m: SETRec, b: Batch) -> Tensor:
        return naive.loss(m, b, ALPHA)

    def fast(m: SETRec, b: Batch) -> Tensor:
        return own_loss(m, b, bf16=True)

    memory: dict[str, int] = {}
    losses = {
        "own_bf16": fast,
        "own_float32": own_loss,
        "naive": plain,
    }  # first of all: freed memory is not all given back
    sampled_memory = peak_of_training(model_sampled, own_batches(train), fast, 3, base)
    for name, loss in tqdm(losses.items(), desc="memory", unit="way"):
        batches = naive.batches(train, HISTORY, seed) if name == "naive" else own_batches(train)
        memory[name] = peak_of_training(model, batches, loss, 2 if name == "naive" else 3, base)

    model.eval()
    module = module_of(model, catalogue)
    module.scorer.refresh()
    rows = EvalRows(history, targets, HISTORY)

    print(
        f"{shape}: {n_items} items, {train.lengths.mean():.1f} training and {history.lengths.mean():.1f} test items a user"
    )
    max_loss, max_gradient = loss_differences(model, train)
    max_score, spread = score_differences(model, module, rows, even_choice(rows.shown, 4))
    print(f"loss differs by {max_loss:.1e}, gradients by {max_gradient:.1e} of the largest, scores by {max_score:.1e}")
    if max_loss > 1e-3 or max_gradient > 1e-3 or max_score > 1e-3 * spread:
        raise SystemExit("the two ways disagree: the comparison means nothing")

    model.train()
    model_sampled.train()
    ways = {
        "naive": Trainer(model, naive.batches(train, HISTORY, seed), plain, cpu),
        "own_float32": Trainer(model, own_batches(train), own_loss, cpu),
        "own_bf16": Trainer(model, own_batches(train), fast, cpu),
        "sampled_float32": Trainer(model_sampled, own_batches(train), own_loss, cpu),
        "sampled_bf16": Trainer(model_sampled, own_batches(train), fast, cpu),
        "shared_bf16": Trainer(model, own_batches(train, SHARED), fast, cpu),
        "shared_sampled_bf16": Trainer(model_sampled, own_batches(train, SHARED), fast, cpu),
        "single_bf16": Trainer(model, own_batches(train, False), fast, cpu),
        "single_sampled_bf16": Trainer(model_sampled, own_batches(train, False), fast, cpu),
    }
    for way in tqdm(ways.values(), desc="warm-up", unit="step"):
        way.step(timed=False)
    rounds = NAIVE_STEPS[shape]
    for _ in tqdm(range(rounds), desc="training, in turn", unit="round"):  # in turn: a busy machine slows all
        for name, way in ways.items():
            for _ in range(1 if name == "naive" else max(1, OWN_STEPS[shape] // rounds)):
                way.step()

    rates = {name: way.rate for name, way in ways.items()}
    del ways
    model.eval()
    model.zero_grad()
    warm = catalogue.warm
    own_users = own_evaluation(module, rows, even_choice(rows.shown, OWN_USERS[shape]), cpu)
    naive_users = naive_evaluation(model, warm, rows, even_choice(rows.shown, NAIVE_USERS[shape]), cpu)
    return {
        "shape": shape,
        "items": n_items,
        "threads": torch.get_num_threads(),
        "clock": "cpu" if cpu else "wall",
        "train_ratio": rates["own_bf16"] / rates["naive"],
        "train_ratio_float32": rates["own_float32"] / rates["naive"],
        "train_ratio_sampled": rates["sampled_bf16"] / rates["naive"],
        "train_ratio_sampled_float32": rates["sampled_float32"] / rates["naive"],
        "train_ratio_shared": rates["shared_bf16"] / rates["naive"],
        "train_ratio_shared_sampled": rates["shared_sampled_bf16"] / rates["naive"],
        "train_ratio_single": rates["single_bf16"] / rates["naive"],
        "train_ratio_single_sampled": rates["single_sampled_bf16"] / rates["naive"],
        "eval_ratio": own_users / naive_users,
        "memory_ratio": memory["own_bf16"] / memory["naive"],
        "memory_ratio_float32": memory["own_float32"] / memory["naive"],
        "max_loss_difference": max_loss,
        "max_gradient_difference": max_gradient,
        "max_score_difference": max_score,
        "score_spread": spread,
        "prefixes_per_second": rates,
        "users_per_second": {"naive": naive_users, "own": own_users, "betas": len(BETAS)},
        "peak_bytes": {**memory, "sampled_bf16": sampled_memory},
        "sampled": sampled,
        "dropout": dropout,
        "batch": {"naive": naive.BATCH, "own": BATCH},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(NAIVE_STEPS), default="tiny")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--items", type=int, default=N_TOYS, help="N")
    parser.add_argument("--sampled", type=int, default=1024, help="items drawn by the sampled softmax")
    parser.add_argument("--dropout", type=float, default=0.0, help="of both ways; never on attention weights")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: seconds of this process's computing"
    )
    options = parser.parse_args()
    found = measure(options.shape, options.items, options.sampled, options.dropout, options.clock == "cpu")
    tell(found, options.json)


if __name__ == "__main__":
    main()
