"""Compares the model with the baselines on one split, with seen items masked and not masked."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from setrec.data.catalogue import Catalogue, Histories
from setrec.evaluation.baselines import Popularity, fit_baselines
from setrec.evaluation.list_metrics import LENGTH, ListFacts, ListMetrics
from setrec.evaluation.metrics import RandomTieMetrics, RankingMetrics
from setrec.evaluation.ranking_table import RankingTable
from setrec.evaluation.results import MODEL, TRAIN_ALONE
from setrec.evaluation.rivals import Rival, fit_rivals
from setrec.evaluation.target_hits import TargetHits, TargetTable, expected_hits, list_hits
from setrec.schemas import Batch, EvalSplit
from setrec.scoring.topk import mask_seen, top_groups, top_items


class MethodFigures(NamedTuple):
    """What one method reached under one filter."""

    table: RankingTable
    targets: TargetTable
    lists: dict[str, float]  # figures of the lists themselves, see list_metrics.py


class Comparison:
    """Collects the figures of the model and of every baseline, batch by batch, on any number of processes.

    Args:
        catalogue: The items.
        histories: The histories that baselines count in.
        split: The split that is evaluated.
        cutoffs: Lengths of the lists.
        device: Device of the scores.
        train_alone: What is counted stands in a second row, counted in train alone: baselines, and the model if `counts`.
        counts: The model's score has counted parts.
        rivals: Methods to compare with beside the baselines.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        histories: Histories,
        split: EvalSplit,
        cutoffs: tuple[int, ...],
        device: torch.device,
        train_alone: bool = False,
        counts: bool = False,
        rivals: Sequence[Rival] = (),
    ) -> None:
        self.split, self.cutoffs = split, cutoffs
        self.warm = catalogue.warm.to(device)  # (N,)
        self.model_twice = train_alone and counts and split == "test"
        self.models = (MODEL, MODEL + TRAIN_ALONE) if self.model_twice else (MODEL,)
        self.baselines = fit_baselines(catalogue, histories, split, train_alone)
        self.baselines |= fit_rivals(rivals, catalogue, histories, split, train_alone)
        self.facts = ListFacts(catalogue, histories, split)
        self.metrics: dict[tuple[bool, str], tuple[RankingMetrics, TargetHits, ListMetrics]] = {}
        for filtered in (True, False):
            for name in (*self.models, *self.baselines):
                kind = RandomTieMetrics if self.random_ties(name) else RankingMetrics
                every = (kind(cutoffs).to(device), TargetHits(cutoffs).to(device), ListMetrics().to(device))
                self.metrics[filtered, name] = every

    def random_ties(self, name: str) -> bool:
        """Whether a method is reported at its expected value under random ties: popularity, which ties all cold items."""
        return isinstance(self.baselines.get(name), Popularity)

    def update(self, batch: Batch, scores: Tensor, in_train: Tensor | None = None) -> None:
        """Add a batch of users with the model's scores, (B, N); the baselines score the same histories.

        in_train: the model's scores counted in train alone, (B, N), where `model_twice`.
        """
        self._add(MODEL, batch, scores)
        if in_train is not None:
            self._add(MODEL + TRAIN_ALONE, batch, in_train)
        for name, baseline in self.baselines.items():
            self._add(name, batch, baseline.score(batch.history.cpu()).to(scores.device))

    def _add(self, name: str, batch: Batch, scores: Tensor) -> None:
        """Add one method's scores, (B, N), with seen items masked and not masked."""
        for filtered in (True, False):
            ranking = mask_seen(scores, batch.seen) if filtered else scores  # (B, N)
            metric, targets, lists = self.metrics[filtered, name]
            if self.random_ties(name):
                metric.update(batch.user, ranking, batch.target, self.warm)
                hits = expected_hits(ranking, batch.target, self.cutoffs)  # (B, R, C)
                lists.update(batch.user, top_items(ranking, LENGTH))
            else:
                ranked = top_groups(ranking, self.warm, max(self.cutoffs))  # (G, B, k)
                metric.update(batch.user, ranked, batch.target, self.warm)
                hits = list_hits(ranked[0], batch.target, self.cutoffs)  # (B, R, C)
                lists.update(batch.user, ranked[0])
            targets.update(batch.user, batch.target, hits)

    def compute(self) -> dict[bool, dict[str, MethodFigures]]:
        """The figures over the users of all processes: filter_seen -> name of the model or baseline -> figures."""
        figures = {
            key: MethodFigures(metric.compute(), hits.compute(), self.facts.figures(lists.compute()))
            for key, (metric, hits, lists) in self.metrics.items()
        }
        return {
            filtered: {name: figures[filtered, name] for name in (*self.models, *self.baselines)}
            for filtered in (True, False)
        }
