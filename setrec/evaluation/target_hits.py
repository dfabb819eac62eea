"""Which targets a ranking found, one by one; `RankingMetrics` has only their sum for each user.

The report needs them to group recall by the popularity of the target. Only the ranking of all items is kept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from setrec.evaluation.distributed_metric import DistributedMetric
from setrec.schemas import mask_of


class TargetTable(NamedTuple):
    """Every target of every user once, sorted by user, then item; on the CPU."""

    user: np.ndarray  # (m,) int64
    item: np.ndarray  # (m,) int64
    hits: np.ndarray  # (m, C) float32: 1 where the target is among the first cutoffs[c] items, or the probability of it
    cutoffs: tuple[int, ...]


def list_hits(ranked: Tensor, target: Tensor, cutoffs: Sequence[int]) -> Tensor:
    """Which targets are in the first items of a ranked list.

    Args:
        ranked: (B, k) int64, best first.
        target: (B, R) int64.
        cutoffs: C lengths of the list.

    Returns:
        (B, R, C) float32, 1 where the list of that length holds the target.
    """
    equal = ranked[:, None, :] == target[:, :, None]  # (B, R, k)
    return torch.stack([equal[..., :k].any(-1) for k in cutoffs], dim=-1).float()  # (B, R, C)


def expected_hits(scores: Tensor, target: Tensor, cutoffs: Sequence[int]) -> Tensor:
    """The probability that each target is among the first items if tied items are in random order.

    With a better items and m tied ones, the target among them, it is (k - a) / m, limited to 0..1.

    Args:
        scores: (B, N) float, -inf = not a candidate.
        target: (B, R) int64, padded.
        cutoffs: C lengths k of the list.

    Returns:
        (B, R, C) float32.
    """
    at_target = scores.gather(1, target.clamp(min=0))  # (B, R)
    best = scores.topk(min(max(cutoffs), scores.shape[1]), dim=1).values  # (B, k)
    border = best[:, -1:]  # (B, 1)
    above = (best[:, None, :] > at_target[..., None]).sum(
        -1
    )  # (B, R): better items, k where the target is below the border
    tied = (best[:, None, :] == at_target[..., None]).sum(-1)  # (B, R)
    on_border = (scores == border).sum(1, keepdim=True)  # (B, 1): items tied with the last one, beyond the list too
    size = torch.where(at_target == border, on_border, tied).clamp(min=1)  # (B, R)
    real = at_target > -torch.inf  # (B, R)
    chances = [((k - above) / size).clamp(0, 1) * real for k in cutoffs]  # C of (B, R)
    return torch.stack(chances, dim=-1).float()  # (B, R, C)


class TargetHits(DistributedMetric):
    """Collects hits target by target, on any number of processes; compute() returns a TargetTable.

    Args:
        cutoffs: Lengths of the lists.
    """

    pairs: list[Tensor]
    hits: list[Tensor]

    def __init__(self, cutoffs: Sequence[int] = (5, 10, 20)) -> None:
        super().__init__()
        self.cutoffs = tuple(sorted(int(k) for k in cutoffs))
        for name in ("pairs", "hits"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, user: Tensor, target: Tensor, hits: Tensor) -> None:
        """Add a batch of users.

        Args:
            user: (B,) int64, row in the table of users.
            target: (B, R) int64, padded; a repeated target counts once, as in `RankingMetrics`.
            hits: (B, R, C) float32, see `list_hits` and `expected_hits`.
        """
        row, place = mask_of(target).nonzero(as_tuple=True)  # (m,), (m,)
        self.pairs.append(torch.stack([user[row], target[row, place]], dim=1))  # (m, 2)
        self.hits.append(hits[row, place])  # (m, C)

    def empty_states(self) -> dict[str, Tensor]:
        """See `DistributedMetric.empty_states`."""
        return {
            "pairs": torch.empty(0, 2, dtype=torch.int64, device=self.device),
            "hits": torch.empty(0, len(self.cutoffs), device=self.device),
        }

    def compute(self) -> TargetTable:
        """The table of all targets that were added; a user that a padded sampler repeats counts once."""
        if isinstance(self.pairs, list) and not self.pairs:
            none = np.zeros(0, np.int64)
            return TargetTable(none, none, np.zeros((0, len(self.cutoffs)), np.float32), self.cutoffs)
        pairs = dim_zero_cat(self.pairs).cpu().numpy()  # (m with repeats, 2)
        pairs, first = np.unique(pairs, axis=0, return_index=True)  # (m, 2), sorted by user, then item
        hits = dim_zero_cat(self.hits).cpu().numpy()[first]  # (m, C)
        return TargetTable(pairs[:, 0], pairs[:, 1], hits, self.cutoffs)
