"""Ranked lists of any number of batches and processes -> a RankingTable."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from setrec.evaluation.distributed_metric import DistributedMetric
from setrec.evaluation.ranking_table import RankingTable, group_targets
from setrec.schemas import GROUPS, mask_of


class RankingMetrics(DistributedMetric):
    """Collects ranked lists batch by batch, on any number of processes; compute() returns a RankingTable.

    What is kept is per user and keyed by the user's index: processes' states are concatenated, sorted by user, and a
    user that a padded sampler showed twice is counted once. So 1, 2 and 3 processes give the same numbers to the bit.
    (torchmetrics' own RetrievalRecall drops hits with scores <= 0 and counts only the targets it is given.)

    Args:
        variants: Labels of the V scorings that are ranked at once, e.g. the grid of beta; one by default.
        cutoffs: Lengths k at which the figures are taken; lists must be as long as the longest.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    hit_dtype = torch.uint8

    user: list[Tensor]
    hits: list[Tensor]
    targets: list[Tensor]

    def __init__(self, variants: Sequence[float] = (0.0,), cutoffs: Sequence[int] = (5, 10, 20)) -> None:
        super().__init__()
        self.variants = tuple(float(v) for v in variants)
        self.cutoffs = tuple(sorted(int(k) for k in cutoffs))
        for name in ("user", "hits", "targets"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, user: Tensor, ranked: Tensor, target: Tensor, warm: Tensor) -> None:
        """Add a batch of users.

        Args:
            user: (B,) int64, row in the table of users.
            ranked: (V, G, B, k) int64 item ids, best first, padded with -1: `top_groups` of each variant. The lists of
                warm and cold hold only such items.
            target: (B, any) int64, padded with -1.
            warm: (N,) bool.

        Raises:
            ValueError: the lists are shorter than the longest cutoff, or their number is not that of the variants.
        """
        k = max(self.cutoffs)
        if ranked.shape[0] != len(self.variants) or ranked.shape[-1] < k:
            need = f"({len(self.variants)}, {len(GROUPS)}, users, {k} or more)"
            raise ValueError(f"ranked lists have shape {tuple(ranked.shape)}, but {need} is needed")
        lists = ranked[..., :k].permute(2, 0, 1, 3)  # (B, V, G, k)
        flat = lists.reshape(len(user), -1)  # (B, V*G*k)
        target, member = group_targets(target, warm)  # (B, R), (G, B, R)
        if target.shape[1]:
            place = torch.searchsorted(target, flat).clamp(max=target.shape[1] - 1)  # (B, V*G*k)
            hit = (target.gather(1, place) == flat) & mask_of(flat)  # (B, V*G*k)
        else:
            hit = torch.zeros_like(flat, dtype=torch.bool)  # (B, V*G*k)
        self._add(user, hit.view(lists.shape), member)  # of (B, V, G, k)

    def _add(self, user: Tensor, hits: Tensor, member: Tensor) -> None:
        self.user.append(user.long())  # (B,)
        self.hits.append(hits.to(self.hit_dtype))  # (B, V, G, k)
        self.targets.append(member.sum(-1).T.to(torch.int32))  # (B, G)

    def empty_states(self) -> dict[str, Tensor]:
        shape = (0, len(self.variants), len(GROUPS), max(self.cutoffs))
        return {
            "user": torch.empty(0, dtype=torch.int64, device=self.device),
            "hits": torch.empty(shape, dtype=self.hit_dtype, device=self.device),
            "targets": torch.empty(0, len(GROUPS), dtype=torch.int32, device=self.device),
        }

    def compute(self) -> RankingTable:
        """The table of all users that were added, on the CPU. Empty (every figure 0, no users) if none was."""
        if isinstance(self.user, list) and not self.user:
            k = max(self.cutoffs)
            none = torch.zeros(0, len(self.variants), len(GROUPS), k, dtype=self.hit_dtype)  # (0, V, G, k)
            targets = torch.zeros(0, len(GROUPS), dtype=torch.int32)  # (0, G)
            return RankingTable(np.zeros(0, np.int64), none, None, targets, self.cutoffs, self.variants)
        user, keep = self._unique_users()
        hits, targets = (dim_zero_cat(state).cpu()[keep] for state in (self.hits, self.targets))
        return RankingTable(user.numpy(), hits, None, targets, self.cutoffs, self.variants)

    def _unique_users(self) -> tuple[Tensor, Tensor]:
        """Users ascending, each once, and where the states hold them: (n,) int64 twice, on the CPU."""
        user, order = dim_zero_cat(self.user).cpu().sort(stable=True)  # (n with repeats,)
        once = torch.ones_like(user, dtype=torch.bool)  # (n with repeats,)
        once[1:] = user[1:] != user[:-1]
        return user[once], order[once]  # (n,), (n,)


class RandomTieMetrics(RankingMetrics):
    """The same figures for scores with many ties: their expected value if tied items stood in random order.

    For popularity on cold items every candidate is tied, and any fixed order (by item id, say) would report the order
    instead of the method. Within a block of m tied items, t of them targets, each rank of the block holds a target with
    probability t / m; recall, precision and DCG are linear in that, so their expectation is exact. For MRR, the first
    hit is at the i-th rank of the first block with targets with probability C(m-i, t-1) / C(m, t). One variant.
    """

    hit_dtype = torch.float64

    first: list[Tensor]

    def __init__(self, variants: Sequence[float] = (0.0,), cutoffs: Sequence[int] = (5, 10, 20)) -> None:
        super().__init__(variants, cutoffs)
        self.add_state("first", default=[], dist_reduce_fx="cat")

    def update(self, user: Tensor, scores: Tensor, target: Tensor, warm: Tensor) -> None:  # type: ignore[override]
        """Add a batch.

        user: (B,) int64; scores: (B, N) float, -inf = not a candidate; target: (B, any) int64, padded; warm: (N,) bool.
        """
        target, member = group_targets(target, warm)  # (B, R), (G, B, R)
        at_target = scores.gather(1, target.clamp(min=0))  # (B, R)
        pairs = []
        for group, allowed in enumerate((torch.ones_like(warm), warm, ~warm)):
            candidates = scores.index_select(1, allowed.nonzero().squeeze(1))  # (B, n)
            wanted = at_target.masked_fill(~member[group], -torch.inf)  # (B, R)
            pairs.append(_hit_probabilities(candidates, wanted, max(self.cutoffs)))
        hits, first = (torch.stack(of, 1)[:, None] for of in zip(*pairs, strict=True))  # (B, V = 1, G, k)
        self._add(user, hits, member)
        self.first.append(first)  # (B, 1, G, k)

    def empty_states(self) -> dict[str, Tensor]:
        rows = super().empty_states()
        return rows | {"first": torch.empty_like(rows["hits"])}

    def compute(self) -> RankingTable:
        """As for exact lists, with the first hit's probability."""
        table = super().compute()
        return (
            table._replace(first=dim_zero_cat(self.first).cpu()[self._unique_users()[1]]) if len(table.user) else table
        )


def _hit_probabilities(scores: Tensor, at_target: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Probability of a target, and of the first target, at each rank if ties are in random order.

    scores: (B, n) of the candidates; at_target: (B, R), -inf where there is none; returns twice (B, k) float64.
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).values  # (B, min(k, n))
    best = torch.nn.functional.pad(best, (0, k - best.shape[1]), value=-torch.inf)  # (B, k)
    filled = best > -torch.inf  # (B, k)
    block = best[:, :, None] == best[:, None, :]  # (B, k, k): ranks of one tied block
    last = (scores == best[:, -1:]).sum(1)  # (B,): the block at the border goes on beyond rank k
    size = torch.where(best == best[:, -1:], last[:, None], block.sum(2)).double()  # (B, k)
    inside = (best[:, :, None] == at_target[:, None, :]).sum(2) * filled  # (B, k): targets in the rank's block
    hits = inside / size.clamp(min=1)  # (B, k)

    top = at_target.amax(1, keepdim=True) if at_target.shape[1] else best.new_full((len(best), 1), -torch.inf)  # (B, 1)
    here = filled & (best == top)  # (B, k): ranks of the first block with targets
    before = here.cumsum(1) - here.long()  # (B, k): ranks of that block already passed without a hit
    left = (size - before).clamp(min=1)  # (B, k)
    chance = torch.where(here, (inside / left).clamp(max=1), 0.0)  # (B, k): of a hit now, if there was none yet
    survived = torch.cat([torch.ones_like(chance[:, :1]), (1 - chance).cumprod(1)[:, :-1]], 1)  # (B, k)
    return hits, chance * survived
