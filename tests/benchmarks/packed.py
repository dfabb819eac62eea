"""Training speed of packed prefixes against one row per prefix, in one run: python tests/benchmarks/packed.py [seconds]

The same prefixes of the same histories, forward and backward, a tiny Qwen2 from random weights. Lengths are drawn like
those of Toys' training histories (mean 7.4 items, a long tail, at most 50).
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from setrec.backbones import DecoderBackbone

SLOTS, BATCH = 5, 256  # K; prefixes in a batch


def rows(lengths: list[int], width: int, packed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Items (B, L, K, D), real (B, L) and prefix (B, P) of histories with all their prefixes, as rows of either kind."""
    if packed:
        shown, first = [length - 1 for length in lengths], [range(length) for length in lengths]
    else:
        shown = [t for length in lengths for t in range(length)]
        first = [range(t, t + 1) for t in shown]
    n_items = max(shown)
    prefix = torch.full((len(shown), max(map(len, first))), -1)  # (B, P)
    for row, prefixes in enumerate(first):
        prefix[row, : len(prefixes)] = torch.tensor(list(prefixes))
    real = torch.arange(n_items) < torch.tensor(shown)[:, None]  # (B, L)
    return torch.randn(len(shown), n_items, SLOTS, width), real, prefix


def speed(step: Callable[[], int], seconds: float) -> float:
    """Prefixes a second of `step`, which returns how many it did."""
    step()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += step()
    return done / (time.perf_counter() - start)


def main(seconds: float) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    backbone = DecoderBackbone(family="qwen2", shape="tiny")
    backbone.build()
    queries = torch.randn(SLOTS, backbone.width, requires_grad=True)
    # batches hold rows of like length, as TrainPlan makes them
    lengths = np.sort(np.minimum(2 + rng.geometric(1 / 5.4, 4000) - 1, 51))
    batches, start = [], 0
    while start < len(lengths):
        end = start + max(1, int(np.searchsorted(np.cumsum(lengths[start:]), BATCH)))
        batches.append(lengths[start:end].tolist())
        start = end
    chosen = [batches[i] for i in rng.permutation(len(batches))[:12]]
    found = {}
    for name, packed in (("one row per prefix", False), ("packed", True), ("one row per prefix, again", False)):
        made = [rows(batch, backbone.width, packed) for batch in chosen]
        turn = iter(range(10**9))

        def step(made: list = made, turn: object = turn) -> int:
            items, real, prefix = made[next(turn) % len(made)]  # type: ignore[call-overload]
            backbone(items, real, prefix, queries)[prefix >= 0].square().mean().backward()
            return int((prefix >= 0).sum())

        found[name] = speed(step, seconds)
        print(f"{name:28s}{found[name]:9.0f} prefixes a second")
    print(
        f"packed is {found['packed'] / found['one row per prefix']:.2f} times as fast ({torch.get_num_threads()} threads)"
    )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
