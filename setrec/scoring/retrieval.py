"""Top-k out of a large catalogue: the exact index, and an approximate one (faiss) behind the same call.

The score of an item, but for what item graphs add, is one inner product (grounding.py). So a catalogue is one matrix (N, W), made
once and kept until a weight of the trunk changes, and a user under some weights is one row of the same width:

    retriever = Retriever(module)                                   # exact
    retriever = Retriever(module, FaissSearch("IVF4096,Flat"))      # approximate: pip install 'setrec[faiss]'
    items, scores = retriever.top(batch, Weights(beta=0.5), k=10)
"""

from abc import ABC, abstractmethod
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from setrec.errors import ConfigError
from setrec.schemas import PAD, Batch, mask_of
from setrec.scoring.graphs import ItemGraphs, touched_items
from setrec.scoring.scorer import Scorer
from setrec.scoring.topk import best_first, mask_seen, top_scored
from setrec.scoring.weights import FACTORS, Weights

TOUCHED = 1 << 24  # numbers of gathered rows held at once
GRAPH_ITEMS = 4096  # items that the graphs touch for a user, about
_ANY = Weights(*[0.5] * len(Weights._fields))


class Found(NamedTuple):
    """The best items of some users."""

    item: Tensor  # (B, k) int64, best first, -1 where there are fewer
    score: Tensor  # (B, k) float, -inf where there are fewer


class Search(ABC):
    """Finds the rows of a matrix with the largest inner products."""

    @abstractmethod
    def build(self, table: Tensor) -> None:
        """Take the catalogue in. table: (N, W) float."""

    @abstractmethod
    def top(self, rows: Tensor, k: int, seen: Tensor) -> Found:
        """The k best items of each row but those it has seen.

        rows: (B, W) float; seen: (B, any) int64 item ids, padded with -1.
        """


class ExactSearch(Search):
    """All inner products, a block of users against a block of items at a time; ties go to the lower item id.

    Args:
        items: Items in a block.
        users: Users in a block; users x items scores are held at once.
    """

    def __init__(self, items: int = 8_192, users: int = 256) -> None:
        self.items, self.users = items, users

    def build(self, table: Tensor) -> None:
        """See `Search.build`."""
        self.table = table

    def top(self, rows: Tensor, k: int, seen: Tensor) -> Found:
        """See `Search.top`."""
        blocks = zip(rows.split(self.users), seen.split(self.users), strict=True)
        found = [self._top(few, k, theirs) for few, theirs in blocks]
        return Found(torch.cat([f.item for f in found]), torch.cat([f.score for f in found]))

    def _top(self, rows: Tensor, k: int, seen: Tensor) -> Found:
        scores = rows.new_full((len(rows), k), -torch.inf)  # (b, k): the best so far
        ids = seen.new_full((len(rows), k), -1)  # (b, k)
        for start in range(0, len(self.table), self.items):
            block = self.table[start : start + self.items]  # (n, W)
            part = rows @ block.T  # (b, n)
            # only users for whom this block holds something better; of equals, the earlier item stays
            hot = (~(part.amax(dim=1) <= scores[:, -1])).nonzero().squeeze(1)  # (h,); NaN too, to be refused
            theirs = seen[hot]  # (h, any)
            here = (theirs >= start) & (theirs < start + len(block))  # (h, any)
            best, place = top_scored(mask_seen(part[hot], torch.where(here, theirs - start, -1)), k)  # (h, k)
            place = torch.where(mask_of(place), place + start, -1)  # (h, k)
            best, place = best_first(torch.cat([scores[hot], best], 1), torch.cat([ids[hot], place], 1))  # (h, 2k)
            scores[hot], ids[hot] = best[:, :k], place[:, :k]
        return Found(ids, scores)


class FaissSearch(Search):
    """An index of the faiss library; what it finds is scored and ordered exactly, what it misses is missed.

    Args:
        factory: What faiss's index_factory builds: "Flat" (exact), "IVF4096,Flat" (4,096 lists, a few of them looked into),
            "HNSW32" (a graph), "IVF4096,PQ48x4fs" (compressed).
        probes: Lists looked into for each user, or the breadth of the search in a graph: more finds more, slower.
        train_items: Items that lists are learned from.

    Raises:
        ConfigError: faiss isn't installed.
    """

    def __init__(self, factory: str = "IVF4096,Flat", probes: int = 64, train_items: int = 100_000) -> None:
        if find_spec("faiss") is None:
            raise ConfigError(
                'A faiss index needs the package faiss, which is not installed: pip install "setrec[faiss]".'
            )
        self.factory, self.probes, self.train_items = factory, probes, train_items

    def build(self, table: Tensor) -> None:
        """See `Search.build`."""
        import faiss

        self.table = table
        vectors = table.float().cpu().contiguous().numpy()  # (N, W)
        try:
            self.index: Any = faiss.index_factory(table.shape[1], self.factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ConfigError(
                f"faiss can't build the index {self.factory!r} ({str(error).split('Error: ')[-1]})."
            ) from None
        if not self.index.is_trained:
            step = max(1, len(vectors) // self.train_items)
            self.index.train(vectors[::step])
        self.index.add(vectors)
        if hasattr(self.index, "nprobe"):
            self.index.nprobe = self.probes
        if hasattr(self.index, "hnsw"):
            self.index.hnsw.efSearch = self.probes

    def top(self, rows: Tensor, k: int, seen: Tensor) -> Found:
        """See `Search.top`. As many more are asked for as a user of the batch has seen."""
        most_seen = int(mask_of(seen).sum(dim=1).amax()) if seen.numel() else 0
        wanted = min(k + most_seen, len(self.table))
        found = self.index.search(rows.float().cpu().contiguous().numpy(), wanted)[1]  # (B, wanted)
        ids = torch.from_numpy(found).to(rows.device)  # (B, wanted), -1 where there are fewer
        scores = torch.einsum("bw,bkw->bk", rows, self.table[ids.clamp(min=0)].to(rows.dtype))  # (B, wanted)
        gone = ~mask_of(ids) | (ids[:, :, None] == seen[:, None, :]).any(dim=2)  # (B, wanted)
        scores, ids = best_first(scores.masked_fill(gone, -torch.inf), ids)  # (B, wanted)
        short = max(0, k - wanted)
        scores = torch.nn.functional.pad(scores[:, :k], (0, short), value=-torch.inf)  # (B, k)
        return Found(torch.nn.functional.pad(ids[:, :k], (0, short), value=-1), scores)


class HasScorer(Protocol):
    """What has a scorer: SETRecModule."""

    @property
    def scorer(self) -> Scorer:
        """What scores histories."""


class Retriever:
    """A trained model and its index, which is made when first asked for and made anew when weights have changed.

    What every item has of its own is one inner product; item graphs add to few items, and never subtract. So the best k lie among
    the best k by the inner product, and the items that the graphs of the user's last items touch. Both are scored exactly.

    Args:
        model: a scorer, or a module that has one; in evaluation mode.
        search: how to search; None: `ExactSearch`.
    """

    def __init__(self, model: Scorer | HasScorer, search: Search | None = None) -> None:
        self.scorer = model if isinstance(model, Scorer) else model.scorer
        self.search = search or ExactSearch()
        self._made_of: list[tuple[int, int]] | None = None

    @torch.no_grad()
    def refresh(self) -> bool:
        """Make the index, unless it is there and belongs to the weights and the catalogue as they are. Says whether it did."""
        model, graphs = self.scorer.model, self.scorer.graphs
        sources = [*model.parameters(), *model.buffers(), *([] if graphs is None else [graphs.recency, graphs.cold])]
        stamp = [(id(source), source._version) for source in sources]  # torch counts every change in place
        if stamp == self._made_of:
            return False
        self.scorer.refresh()
        index = self.scorer.index
        columns = {"cf": index.cf, "semantic": index.sem.to(index.cf.dtype)}  # of (N, any)
        if graphs is not None:
            columns["recency"] = graphs.recency[:, None].to(index.cf.dtype)  # (N, 1)
            for name in columns:
                if FACTORS[name].cold(_ANY) == 0:  # a cold item has no such part, whatever the weights
                    columns[name] = columns[name].index_fill(0, graphs.cold, 0)
        self.table = torch.cat(list(columns.values()), dim=1)  # (N, sum(E) + H, or one more)
        self.search.build(self.table)
        self._made_of = stamp
        return True

    @torch.no_grad()
    def top(
        self, batch: Batch, weights: Weights, k: int = 10, filter_seen: bool = True, allowed: Tensor | None = None
    ) -> Found:
        """The k best items of every user of a batch.

        Args:
            batch: as evaluation makes it: one prefix a user.
            weights: of the score.
            k: length of the lists.
            filter_seen: leave out the items of the user's own history.
            allowed: (n,) int64 item ids in ascending order, the only candidates, which are then all scored; None: every item.
        """
        self.refresh()
        with torch.autocast(batch.history.device.type, enabled=False):
            user = self.scorer.model.user_vectors(batch, self.scorer.index)
        rows = [FACTORS["cf"].warm(weights) * user.cf, FACTORS["semantic"].warm(weights) * user.sem]
        graphs = self.scorer.graphs
        if graphs is not None:
            rows.append(user.cf.new_full((len(user.cf), 1), FACTORS["recency"].warm(weights)))
        row = torch.cat(rows, dim=1)  # (B, sum(E) + H, or one more)
        seen = batch.seen if filter_seen else batch.seen[:, :0]  # (B, any)
        found = self.search.top(row, k, seen) if allowed is None else _among(self.table, allowed, row, k, seen)
        if graphs is None:
            return found
        few = max(1, TOUCHED // (self.table.shape[1] * GRAPH_ITEMS))
        added = [
            self._with_graphs(graphs, Found(item, score), row, history, seen, weights, allowed)
            for item, score, row, history, seen in zip(
                *(tensor.split(few) for tensor in (found.item, found.score, row, batch.history, seen)), strict=True
            )
        ]
        return Found(torch.cat([f.item for f in added]), torch.cat([f.score for f in added]))

    def _with_graphs(
        self,
        graphs: ItemGraphs,
        found: Found,
        row: Tensor,
        history: Tensor,
        seen: Tensor,
        weights: Weights,
        allowed: Tensor | None,
    ) -> Found:
        """The best of what the search found and of what the graphs touch. Shapes: see `top`, for b of the users."""
        item, added = touched_items(graphs, history, weights)  # (b, U)
        scores = torch.einsum("bw,bnw->bn", row, self.table[item.clamp(min=0)]) + added  # (b, U)
        gone = ~mask_of(item) | (item[:, :, None] == seen[:, None, :]).any(dim=2)  # (b, U)
        if allowed is not None:
            gone |= ~torch.isin(item, allowed)
        scores.masked_fill_(gone, -torch.inf)
        again = (found.item[:, :, None] == item[:, None, :]).any(dim=2)  # (b, k): scored with its graphs already
        score = torch.cat([found.score.masked_fill(again, -torch.inf), scores], dim=1)  # (b, k + U)
        best, ids = best_first(score, torch.cat([found.item, item], dim=1))  # (b, k + U)
        k = found.item.shape[1]
        return Found(ids[:, :k], best[:, :k])


def _among(table: Tensor, allowed: Tensor, row: Tensor, k: int, seen: Tensor) -> Found:
    """The best of some items, all scored. allowed: (n,) int64, ascending; the rest: see `Search.top`."""
    if not len(allowed):
        return Found(seen.new_full((len(row), k), PAD), row.new_full((len(row), k), -torch.inf))
    exact = ExactSearch()
    exact.build(table[allowed])
    place = torch.searchsorted(allowed, seen.clamp(min=0))  # (B, any)
    there = mask_of(seen) & (allowed[place.clamp(max=len(allowed) - 1)] == seen)  # (B, any)
    found = exact.top(row, k, torch.where(there, place, PAD))  # (B, k)
    return found._replace(item=torch.where(mask_of(found.item), allowed[found.item.clamp(min=0)], PAD))  # (B, k)


def overlap(found: Found, exact: Found) -> float:
    """Share of the exact lists' items that an approximate search found: its recall."""
    real = mask_of(exact.item)  # (B, k)
    hit = (exact.item[:, :, None] == found.item[:, None, :]).any(dim=2) & real  # (B, k)
    return float(hit.sum() / real.sum().clamp(min=1))
