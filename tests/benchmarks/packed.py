"""Training speed of packed prefixes against one row per prefix, in one run: python tests/benchmarks/packed.py [seconds]

A tiny Qwen2 from random weights, forward and backward, on batches of 512 prefixes as training makes them, rows of like
length together. Lengths are drawn like those of Toys' training histories (mean 7.4 items, a long tail).
"""

import sys
import time
from itertools import cycle

import numpy as np
import torch

from setrec.backbones import DecoderBackbone
from setrec.data.batches import TrainPlan, TrainRows
from setrec.files.ragged import Ragged
from setrec.schemas import mask_of

SLOTS, BATCH = 5, 512  # K; prefixes in a batch


class Way:
    """One way of making rows, and the time it has taken so far."""

    def __init__(self, name: str, train: Ragged, packed: bool) -> None:
        rows = TrainRows(train, max_history=50, prefix_parallel=packed)
        batches = TrainPlan(rows.prefixes, rows.history, BATCH, seed=0).batches()
        self.name, self.batches = name, cycle([rows[each] for each in batches[:: max(1, len(batches) // 16)]])
        self.prefixes, self.seconds = 0, 0.0

    def step(self, backbone: DecoderBackbone, table: torch.Tensor, queries: torch.Tensor, timed: bool) -> None:
        batch = next(self.batches)
        start = time.perf_counter()
        items = table[batch.history.clamp(min=0)]  # (B, L, K, D)
        outputs = backbone(items, mask_of(batch.history), batch.prefix, queries)  # (B, P, K, D)
        outputs.flatten(0, 1)[batch.valid].square().mean().backward()
        if timed:
            self.seconds += time.perf_counter() - start
            self.prefixes += len(batch.valid)


def main(seconds: float) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    lengths = 1 + rng.geometric(1 / 6.4, 4000)  # 2 or more
    train = Ragged(np.concatenate([[0], np.cumsum(lengths)]), rng.integers(0, 1000, lengths.sum()).astype(np.int32))
    backbone = DecoderBackbone(family="qwen2", shape="tiny")
    backbone.build()
    table = torch.randn(1000, SLOTS, backbone.width)  # (N, K, D)
    queries = torch.randn(SLOTS, backbone.width, requires_grad=True)  # (K, D)
    ways = [Way("one row per prefix", train, False), Way("packed", train, True)]
    for way in ways:
        way.step(backbone, table, queries, timed=False)
    while sum(way.seconds for way in ways) < seconds:  # in turn: a busy machine slows both
        for way in ways:
            way.step(backbone, table, queries, timed=True)
    single, packed = (way.prefixes / way.seconds for way in ways)
    print(f"one row per prefix {single:7.0f} prefixes a second")
    print(f"packed             {packed:7.0f} prefixes a second, {packed / single:.2f} times as fast")
    print(f"{len(lengths)} histories of {lengths.mean():.1f} items in the mean, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
