"""Collects ranked lists over batches and processes, and computes a RankingTable."""

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

    It keeps rows of users, with the user's index in each. The processes' rows are concatenated and sorted by user; a user that
    a padded sampler repeats is counted once. So 1, 2 and 3 processes give the same numbers to the bit. (torchmetrics' own
    RetrievalRecall ignores hits with scores <= 0, and counts only the targets it is given.)

    Args:
        cutoffs: Lengths k of the lists; the ranked lists must be as long as the longest.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    hit_dtype = torch.uint8

    user: list[Tensor]
    hits: list[Tensor]
    targets: list[Tensor]

    def __init__(self, cutoffs: Sequence[int] = (5, 10, 20)) -> None:
        super().__init__()
        self.cutoffs = tuple(sorted(int(k) for k in cutoffs))
        for name in ("user", "hits", "targets"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, user: Tensor, ranked: Tensor, target: Tensor, warm: Tensor) -> None:
        """Add a batch of users.

        Args:
            user: (B,) int64, row in the table of users.
            ranked: (G, B, k) int64 item ids, best first, padded with -1, see `top_groups`. The lists of warm and cold hold
                warm and cold items only.
            target: (B, any) int64, padded with -1.
            warm: (N,) bool.

        Raises:
            ValueError: the lists are shorter than the longest cutoff.
        """
        k = max(self.cutoffs)
        if ranked.shape[-1] < k:
            raise ValueError(f"ranked lists have {ranked.shape[-1]} items, but {k} are needed")
        lists = ranked[..., :k].transpose(0, 1)  # (B, G, k)
        flat = lists.reshape(len(user), -1)  # (B, G*k)
        target, member = group_targets(target, warm)  # (B, R), (G, B, R)
        if target.shape[1]:
            place = torch.searchsorted(target, flat).clamp(max=target.shape[1] - 1)  # (B, G*k)
            hit = (target.gather(1, place) == flat) & mask_of(flat)  # (B, G*k)
        else:
            hit = torch.zeros_like(flat, dtype=torch.bool)  # (B, G*k)
        self._add(user, hit.view(lists.shape), member)

    def _add(self, user: Tensor, hits: Tensor, member: Tensor) -> None:
        """Add rows: user (B,), hits (B, G, k), member (G, B, R)."""
        self.user.append(user.long())  # (B,)
        self.hits.append(hits.to(self.hit_dtype))  # (B, G, k)
        self.targets.append(member.sum(-1).T.to(torch.int32))  # (B, G)

    def empty_states(self) -> dict[str, Tensor]:
        """See `DistributedMetric.empty_states`."""
        shape = (0, len(GROUPS), max(self.cutoffs))
        return {
            "user": torch.empty(0, dtype=torch.int64, device=self.device),
            "hits": torch.empty(shape, dtype=self.hit_dtype, device=self.device),
            "targets": torch.empty(0, len(GROUPS), dtype=torch.int32, device=self.device),
        }

    def compute(self) -> RankingTable:
        """The table of all users that were added, on the CPU; empty (no users, every metric 0) if there are none."""
        if isinstance(self.user, list) and not self.user:
            none = {name: state.cpu() for name, state in self.empty_states().items()}
            return RankingTable(np.zeros(0, np.int64), none["hits"], None, none["targets"], self.cutoffs)
        user, keep = self._unique_users()
        hits, targets = (dim_zero_cat(state).cpu()[keep] for state in (self.hits, self.targets))
        return RankingTable(user.numpy(), hits, None, targets, self.cutoffs)

    def _unique_users(self) -> tuple[Tensor, Tensor]:
        """Users ascending, each once, and their places in the states: (n,) int64 twice, on the CPU."""
        user, order = dim_zero_cat(self.user).cpu().sort(stable=True)  # (n with repeats,)
        once = torch.ones_like(user, dtype=torch.bool)  # (n with repeats,)
        once[1:] = user[1:] != user[:-1]
        return user[once], order[once]  # (n,), (n,)


class RandomTieMetrics(RankingMetrics):
    """The same metrics for scores with many ties: their expected value if tied items are in random order.

    Popularity gives every cold item the same score, so any fixed order (by item id, for example) would decide its metrics.
    In a block of m tied items with t targets, each rank holds a target with probability t / m. Recall, precision and DCG are
    linear in it, so their expected value is exact. For MRR: the first hit is at the i-th rank of the first block with targets
    with probability C(m-i, t-1) / C(m, t).
    """

    hit_dtype = torch.float64

    first: list[Tensor]

    def __init__(self, cutoffs: Sequence[int] = (5, 10, 20)) -> None:
        super().__init__(cutoffs)
        self.add_state("first", default=[], dist_reduce_fx="cat")

    def update(self, user: Tensor, scores: Tensor, target: Tensor, warm: Tensor) -> None:
        """Add a batch of users.

        Args:
            user: (B,) int64, row in the table of users.
            scores: (B, N) float; -inf = not a candidate.
            target: (B, any) int64, padded with -1.
            warm: (N,) bool.
        """
        target, member = group_targets(target, warm)  # (B, R), (G, B, R)
        at_target = scores.gather(1, target.clamp(min=0))  # (B, R)
        pairs = []
        for group, allowed in enumerate((torch.ones_like(warm), warm, ~warm)):
            candidates = scores.index_select(1, allowed.nonzero().squeeze(1))  # (B, n)
            wanted = at_target.masked_fill(~member[group], -torch.inf)  # (B, R)
            pairs.append(_hit_probabilities(candidates, wanted, max(self.cutoffs)))
        hits, first = (torch.stack(of, 1) for of in zip(*pairs, strict=True))  # (B, G, k)
        self._add(user, hits, member)
        self.first.append(first)  # (B, G, k)

    def empty_states(self) -> dict[str, Tensor]:
        """See `DistributedMetric.empty_states`."""
        rows = super().empty_states()
        return rows | {"first": torch.empty_like(rows["hits"])}

    def compute(self) -> RankingTable:
        """See `RankingMetrics.compute`; with the probability of the first hit."""
        table = super().compute()
        if len(table.user):
            table = table._replace(first=dim_zero_cat(self.first).cpu()[self._unique_users()[1]])
        return table


def _hit_probabilities(scores: Tensor, at_target: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The probability of a target, and of the first target, at each rank if ties are in random order.

    Args:
        scores: (B, n) float, of the candidates.
        at_target: (B, R) float, the scores of the targets; -inf where there is none.
        k: Number of ranks.

    Returns:
        Twice (B, k) float64.
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).values  # (B, min(k, n))
    best = torch.nn.functional.pad(best, (0, k - best.shape[1]), value=-torch.inf)  # (B, k)
    filled = best > -torch.inf  # (B, k)
    block = best[:, :, None] == best[:, None, :]  # (B, k, k): ranks of one tied block
    last = (scores == best[:, -1:]).sum(1)  # (B,): items tied with rank k, beyond it too
    size = torch.where(best == best[:, -1:], last[:, None], block.sum(2)).double()  # (B, k)
    inside = (best[:, :, None] == at_target[:, None, :]).sum(2) * filled  # (B, k): targets in the rank's block
    hits = inside / size.clamp(min=1)  # (B, k)

    top = at_target.amax(1, keepdim=True) if at_target.shape[1] else best.new_full((len(best), 1), -torch.inf)  # (B, 1)
    here = filled & (best == top)  # (B, k): ranks of the first block with targets
    before = here.cumsum(1) - here.long()  # (B, k): ranks of that block before this one
    left = (size - before).clamp(min=1)  # (B, k)
    chance = torch.where(here, (inside / left).clamp(max=1), 0.0)  # (B, k): a hit here, if none before
    survived = torch.cat([torch.ones_like(chance[:, :1]), (1 - chance).cumprod(1)[:, :-1]], 1)  # (B, k)
    return hits, chance * survived
