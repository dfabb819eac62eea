"""Is a new model worse than the one that is served? The same users, the same candidates, the newest events."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from setrec.data.catalogue import Catalogue
from setrec.evaluation.metrics import RankingMetrics
from setrec.evaluation.ranking_table import RankingTable
from setrec.inference.restore import Restored, Trained, build, rows_of
from setrec.report.statistics import bootstrap, interval
from setrec.schemas import Batch
from setrec.scoring.topk import CUTOFFS, mask_seen, top_groups

METRIC, CONFIDENCE, RESAMPLES = "ndcg@10", 0.95, 2000


class Verdict(NamedTuple):
    """Figures of both models over the users of the comparison."""

    users: int
    served: dict[str, float]  # recall@10 and ndcg@10, all items
    updated: dict[str, float]
    difference: float  # of NDCG@10, updated less served
    low: float  # of its interval
    high: float
    worse: bool


def is_gate_user(ids: list[str]) -> np.ndarray:
    """Which users compare the models; the others choose the weights of the score and the epoch. (users,) bool, by id.

    A model that may choose on the users that it is compared on would look better than it is.
    """
    return np.array([crc32(own.encode("utf8", "surrogatepass")) % 2 == 0 for own in ids], dtype=bool)


def as_served(trained: Trained, catalogue: Catalogue) -> Restored:
    """The served model over a newer catalogue, as if its new items had just been added: it knows their texts alone."""
    rows = rows_of(trained.catalogue, catalogue)  # (N',)
    known = rows >= 0  # (N',)

    def moved(table: Tensor) -> Tensor:
        table = table[rows.clamp(min=0)].clone()
        table[~known] = 0
        return table

    cf, present = (tuple(map(moved, tables)) for tables in (trained.catalogue.cf, trained.catalogue.present))
    seen = replace(catalogue, cf=cf, present=present, count=moved(trained.catalogue.count))
    return build(trained, seen, torch.device("cpu"))


@torch.inference_mode()
def measure(score: Callable[[Batch], Tensor], batches: Iterable[Batch], warm: Tensor) -> RankingTable:
    """Rank all items for every user, those of the history left out. score: batch -> (B, N); warm: (N,) bool."""
    metrics = RankingMetrics(CUTOFFS)
    for batch in batches:
        ranked = top_groups(mask_seen(score(batch), batch.seen), warm, max(CUTOFFS))  # (G, B, k)
        metrics.update(batch.user, ranked, batch.target, warm)
    return metrics.compute()


def judge(served: RankingTable, updated: RankingTable, tolerance: float) -> Verdict:
    """Compare two models over the same users.

    The updated one is worse if its mean NDCG@10 is lower by more than `tolerance` of the served model's, and that beyond chance:
    the 95% interval of the paired difference lies below 0.
    """
    before, after = (table.per_user(METRIC)[1].numpy() for table in (served, updated))  # (n,) each
    both = np.stack([before, after], axis=1)  # (n, 2)
    means = bootstrap(both, np.ones_like(both), RESAMPLES, seed=0)  # (resamples, 2)
    low, high = interval(means[:, 1] - means[:, 0], CONFIDENCE)
    difference = float((after - before).mean())
    worse = high < 0 and difference < -tolerance * float(before.mean())
    figures = [{name: table.value(name) for name in ("recall@10", METRIC)} for table in (served, updated)]
    return Verdict(len(before), figures[0], figures[1], difference, low, high, worse)
