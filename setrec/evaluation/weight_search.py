"""Recall of every weighting over the users of all processes."""

from torch import Tensor, empty, int32, int64
from torchmetrics.utilities.data import dim_zero_cat

from setrec.evaluation.distributed_metric import DistributedMetric


class WeightSearch(DistributedMetric):
    """Collects how many targets each weighting finds; compute() returns Recall@k (All) of each.

    Args:
        n_weightings: V.
    """

    higher_is_better = True

    user: list[Tensor]
    hits: list[Tensor]
    targets: list[Tensor]

    def __init__(self, n_weightings: int) -> None:
        super().__init__()
        self.n_weightings = n_weightings
        for name in ("user", "hits", "targets"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, user: Tensor, hits: Tensor, targets: Tensor) -> None:
        """Add a batch.

        user: (B,) int64, row in the table of users; hits: (B, V) int64, see `hits_of_weightings`; targets: (B,) int64,
        distinct targets of each user.
        """
        self.user.append(user.long())  # (B,)
        self.hits.append(hits.to(int32))  # (B, V)
        self.targets.append(targets.to(int32))  # (B,)

    def empty_states(self) -> dict[str, Tensor]:
        """See `DistributedMetric.empty_states`."""
        return {
            "user": empty(0, dtype=int64, device=self.device),
            "hits": empty(0, self.n_weightings, dtype=int32, device=self.device),
            "targets": empty(0, dtype=int32, device=self.device),
        }

    def compute(self) -> Tensor:
        """(V,) float64: the mean over users with a target; what a padded sampler showed twice counts once."""
        user, order = dim_zero_cat(self.user).cpu().sort(stable=True)  # (n with repeats,)
        once = user.diff(prepend=user[:1] - 1) != 0  # (n with repeats,)
        hits, targets = (dim_zero_cat(state).cpu()[order[once]] for state in (self.hits, self.targets))  # (n, V), (n,)
        has = targets > 0  # (n,)
        return (hits[has].double() / targets[has, None]).mean(dim=0)  # (V,)
