"""Metrics of rankings: recall, NDCG, precision and MRR over users, for three groups of items.

The groups:

    all    every item is a candidate, every target counts
    warm   candidates AND targets are the items seen in training
    cold   candidates AND targets are the items absent from training

A metric is the mean over the users with at least one target in the group. The ranked lists come from setrec/scoring/topk.py. With
h_j = 1 if the item at rank j is a target, and R = number of the user's targets in the group:

    recall@k = sum_{j<=k} h_j / R                          precision@k = sum_{j<=k} h_j / k
    ndcg@k   = sum_{j<=k} h_j / log2(j+1)  /  sum_{j<=min(R,k)} 1 / log2(j+1)
    mrr@k    = 1 / (rank of the first hit), 0 if there is none within k

A target that a user has twice (bought again within the test period) counts once: a list can hit it only once, so recall could
not reach 1 otherwise. A target that is masked as already seen still counts in R, as a miss.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from setrec.schemas import GROUPS, mask_of

KINDS = ("recall", "ndcg", "precision", "mrr")


def group_targets(target: Tensor, warm: Tensor) -> tuple[Tensor, Tensor]:
    """Each user's distinct targets in ascending order, and which of them belong to each group.

    Args:
        target: (B, R) int64, padded with -1.
        warm: (N,) bool.

    Returns:
        (B, R) int64, and (G, B, R) bool, False at padding and at repeated targets.
    """
    target = target.sort(dim=1).values  # (B, R), padding first
    real = mask_of(target)  # (B, R)
    real[:, 1:] &= target[:, 1:] != target[:, :-1]
    is_warm = warm[target.clamp(min=0)]  # (B, R)
    return target, torch.stack([real, real & is_warm, real & ~is_warm])  # (B, R), (G, B, R)


class RankingTable(NamedTuple):
    """Hits of every user at every rank, and the metrics computed from them. Users ascending, each once; on the CPU."""

    user: np.ndarray  # (n,) int64; not a tensor, since torchmetrics turns a tensor of one user into a scalar
    hits: Tensor  # (n, G, k): 1 where the item at a rank is a target, or the probability of it under random ties
    first: Tensor | None  # (n, G, k): probability of the first hit under random ties; None: take it from `hits`
    targets: Tensor  # (n, G) int32: distinct targets in the group
    cutoffs: tuple[int, ...]

    def metrics(self) -> list[str]:
        """Names of all metrics: recall@5, recall@10, ..."""
        return [f"{kind}@{k}" for kind in KINDS for k in self.cutoffs]

    def n_users(self) -> dict[str, int]:
        """Users with at least one target, by group."""
        return {group: int((self.targets[:, g] > 0).sum()) for g, group in enumerate(GROUPS)}

    def per_user(self, metric: str, group: str = "all") -> tuple[Tensor, Tensor]:
        """One metric of every user, for intervals and paired tests.

        Returns:
            The users with a target in the group, (n',) int64, and their values, (n',) float64.

        Raises:
            ValueError: an unknown metric, or a cutoff beyond the longest one.
        """
        kind, _, text = metric.partition("@")
        if kind not in KINDS or not text.isdigit() or not 0 < int(text) <= max(self.cutoffs):
            raise ValueError(f"unknown metric {metric!r}: take one of {', '.join(KINDS)} @ 1..{max(self.cutoffs)}")
        k, g = int(text), GROUPS.index(group)
        has = self.targets[:, g] > 0  # (n,)
        n_targets = self.targets[has, g].double()  # (n',)
        hits = self.hits[has, g, :k].double()  # (n', k)
        rank = torch.arange(1, k + 1, dtype=torch.float64)  # (k,)
        if kind == "recall":
            values = hits.sum(1) / n_targets  # (n',)
        elif kind == "precision":
            values = hits.sum(1) / k  # (n',)
        elif kind == "mrr":
            first = hits * (hits.cumsum(1) == 1) if self.first is None else self.first[has, g, :k]  # (n', k)
            values = (first / rank).sum(1)  # (n',)
        else:
            discount = 1 / (rank + 1).log2()  # (k,)
            ideal = discount.cumsum(0)[n_targets.clamp(max=k).long() - 1]  # (n',)
            values = (hits * discount).sum(1) / ideal  # (n',)
        return torch.from_numpy(self.user)[has], values

    def value(self, metric: str, group: str = "all") -> float:
        """Mean over the users with a target in the group; 0 where there is no such user (see `n_users`)."""
        values = self.per_user(metric, group)[1]
        return float(values.mean()) if len(values) else 0.0

    def table(self) -> dict[str, dict[str, float]]:
        """{"all": {"recall@5": x, ...}, "warm": {...}, "cold": {...}}."""
        return {group: {name: self.value(name, group) for name in self.metrics()} for group in GROUPS}
