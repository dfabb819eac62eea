"""The score of every item for a history: slots from the model, item graphs beside them, weighed together."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from setrec.layers.grounding import Index, UserVector, part_scores
from setrec.model import SETRec
from setrec.schemas import Batch
from setrec.scoring.choosing import Corners, corners, hits_of_weightings
from setrec.scoring.graphs import ItemGraphs, graph_parts
from setrec.scoring.weights import BETAS, Weights, factors, source_grid, weightings

KEPT_BYTES = 256 << 20  # of user vectors, between the two passes of a validation


class Scorer:
    """Scores histories against the catalogue of a model.

    Scores are always in the weights' own precision: rankings must not depend on how training was sped up.

    Args:
        model: the layers, over a catalogue.
        graphs: of the same catalogue; None: the slots are all there is.
    """

    index: Index  # the catalogue under the weights as they were at the last `refresh`

    def __init__(self, model: SETRec, graphs: ItemGraphs | None = None) -> None:
        self.model, self.graphs = model, graphs
        self._corners: tuple[tuple[Weights, ...], Corners] | None = None  # of the last grid that was asked for
        self._kept: dict[bytes, UserVector] = {}  # of the batches that `hits` has read since the last `refresh`

    @property
    def betas(self) -> tuple[float, ...]:
        """Values of beta that validation tries; one kind of slot leaves nothing to weigh."""
        n_cf, n_sem = self.model.n_cf, self.model.n_sem
        return BETAS if n_sem and n_cf else (float(n_sem > 0),)

    @property
    def source_grid(self) -> list[dict[str, float]]:
        """Weights of the further sources that validation tries, those of training first."""
        fixed = {name: one.weight for name, one in self.model.chosen_tokens.items()}
        if not self.model.n_cf and not self.model.n_sem:  # the first is what the others are weighed against
            first = next(iter(fixed))
            fixed[first] = 1.0 if fixed[first] is None else fixed[first]
        return source_grid(fixed, 0.5 if self.model.n_cf and self.model.n_sem else 1.0)

    def weightings(self) -> list[Weights]:
        """Every weighting that validation tries."""
        return weightings(self.betas, self.model.recipe.neighbours, bool(self.model.n_sem), self.source_grid)

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the index of the catalogue from the weights as they are now."""
        self._kept = {}
        with torch.autocast(self.model.queries.device.type, enabled=False):
            self.index = self.model.index()

    def hits(self, batch: Batch, target: Tensor, seen: Tensor, grid: Sequence[Weights], k: int) -> Tensor:
        """Targets of each user among the first k items under every weighting, (B, V) int64; see `hits_of_weightings`.

        Keeps the user vectors, so that `scores` need not read the same batch again before the next `refresh`.
        """
        if self._corners is None or self._corners[0] != tuple(grid):
            self._corners = tuple(grid), corners(grid)
        user = self._user(batch)
        if (len(self._kept) + 1) * sum(
            part.numel() * part.element_size() for part in user.parts.values()
        ) <= KEPT_BYTES:
            self._kept[_name(batch)] = user
        return hits_of_weightings(
            self._parts(batch, user), self._cold, seen, target, grid, self._corners[1], k
        )  # (B, V)

    def scores(self, batch: Batch, grid: Sequence[Weights]) -> Iterator[Tensor]:
        """Scores (B, N) under each weighting in turn, from one forward pass. batch: one prefix a user."""
        parts = self._parts(batch)  # of (B, N) or (N,)
        cold = self._cold  # (cold,)
        cold_parts = {name: part[..., cold] for name, part in parts.items()}  # of (B, cold) or (cold,)
        for weights in grid:
            scores = _sum({name: (factors(name).warm(weights), part) for name, part in parts.items()})  # (B, N)
            if len(cold):
                by_text = _sum({name: (factors(name).cold(weights), part) for name, part in cold_parts.items()})
                scores.index_copy_(1, cold, by_text)  # (B, N)
            yield scores

    def explain(
        self, batch: Batch, weights: Weights, items: Tensor, outputs: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the score of some items is made of; the contributions of an item add up to its score.

        Args:
            batch: one prefix a user.
            weights: as in `scores`.
            items: (B, k) int64 item ids.
            outputs: (B, K, D) float, the query outputs of the histories, where they are known.

        Returns:
            name -> (B, k) float: cf_0, memory_cf_0, ..., sem_0, ..., memory_text; source:NAME, memory:NAME, ...; neighbours_cf,
            transitions, neighbours_text, recent.
        """
        with torch.autocast(batch.history.device.type, enabled=False):
            named = self.model.parts(batch, self.index, items, outputs)
        if self.graphs is not None:
            shown = {
                "cooccurrence": "neighbours_cf",
                "transitions": "transitions",
                "text": "neighbours_text",
                "recency": "recent",
            }
            for kind, part in graph_parts(self.graphs, batch.history).items():
                at_items = part.expand(len(items), -1).gather(1, items)  # (B, k)
                named.append((shown[kind], kind, at_items))
        is_cold = torch.isin(items, self._cold)  # (B, k)
        return {
            name: part * torch.where(is_cold, factors(kind).cold(weights), factors(kind).warm(weights))  # (B, k)
            for name, kind, part in named
        }

    @property
    def _cold(self) -> Tensor:
        """(cold,) int64: the items that are scored by their text alone."""
        if self.graphs is None:
            return torch.empty(0, dtype=torch.int64, device=self.model.queries.device)
        return self.graphs.cold

    def _user(self, batch: Batch) -> UserVector:
        """The user vectors of a batch, one prefix a user."""
        kept = self._kept.get(_name(batch)) if self._kept else None
        if kept is not None:
            return kept
        with torch.autocast(batch.history.device.type, enabled=False):
            return self.model.user_vectors(batch, self.index)

    def _parts(self, batch: Batch, user: UserVector | None = None) -> dict[str, Tensor]:
        """The parts of the score before they are weighed, (B, N) each; recency (N,)."""
        with torch.autocast(batch.history.device.type, enabled=False):
            slots = part_scores(user if user is not None else self._user(batch), self.index)  # of (B, N)
        counted = {} if self.graphs is None else graph_parts(self.graphs, batch.history)  # of (B, N) or (N,)
        return slots | counted


def _name(batch: Batch) -> bytes:
    """What tells a batch of a validation from its other batches."""
    return batch.user.cpu().numpy().tobytes()


def _sum(parts: dict[str, tuple[float, Tensor]]) -> Tensor:
    """Sum of factor * part; the first part has the full shape. Parts with factor 0 are left out."""
    (first, part), *others = parts.values()
    total = part * first  # (B, any)
    for factor, other in others:
        if factor:
            total.add_(other, alpha=factor)  # (B, any)
    return total
