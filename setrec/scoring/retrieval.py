"""Top-k out of a large catalogue: the exact index, and an approximate one (faiss) behind the same call.

The score of an item, but for what item graphs add, is one inner product (grounding.py). So a catalogue is one matrix (N, W), made
once and kept until a weight of the trunk changes, and a user under some weights is one row of the same width:

    retriever = Retriever(module)                                   # exact
    retriever = Retriever(module, FaissSearch())                    # approximate: pip install 'setrec[faiss]'
    items, scores = retriever.top(batch, Weights(beta=0.5), k=10)
"""

from abc import ABC, abstractmethod
from copy import copy
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from setrec.errors import ConfigError
from setrec.layers.grounding import UserVector
from setrec.schemas import PAD, Batch, mask_of
from setrec.scoring.graphs import summed, touched_items
from setrec.scoring.int8 import LEAST, Int8Table, exact_products
from setrec.scoring.neighbours import Graph
from setrec.scoring.scorer import Scorer
from setrec.scoring.topk import best_first, mask_seen, top_scored
from setrec.scoring.weights import FACTORS, Weights, factors

TOUCHED = 1 << 24  # numbers of gathered rows held at once
FEW_USERS = 64  # up to which bounds are faster than all products
GRAPH_ITEMS = 4096  # items that the graphs touch for a user, about
QUANTISED = "PQ"  # the index of `FaissSearch` that suits any catalogue
ADDED = 1 << 16  # rows that an index takes in at a time
LEARNED_FROM = 1 << 14  # rows that PQ learns its codes from
_ANY = Weights.of(dict.fromkeys(Weights._fields, 0.5))


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
    def top(self, rows: Tensor, k: int, seen: Tensor, added: Graph | None = None) -> Found:
        """The k best items of each row but those it has seen.

        Args:
            rows: (B, W) float.
            k: length of the lists.
            seen: (B, any) int64 item ids, padded with -1.
            added: what some items get beside the inner product, never negative: (B, U), an item more than once, padding with
                weight 0.
        """


class ExactSearch(Search):
    """All inner products, a block of users against a block of items at a time; ties go to the lower item id.

    On a CPU, and for few users, bounds from 8-bit integers tell first which items can be among the best (int8.py). The lists are
    the same.

    Args:
        items: Items in a block.
        users: Users in a block; users x items scores are held at once.
        int8: Use bounds; None: where they are exact and faster.
    """

    def __init__(self, items: int = 16_384, users: int = 256, int8: bool | None = None) -> None:
        self.items, self.users, self.int8 = items, users, int8

    def build(self, table: Tensor) -> None:
        """See `Search.build`."""
        self.table = table
        wanted = len(table) >= LEAST and table.device.type == "cpu" if self.int8 is None else self.int8
        self.codes = Int8Table(table) if wanted and exact_products() else None

    def top(self, rows: Tensor, k: int, seen: Tensor, added: Graph | None = None) -> Found:
        """See `Search.top`."""
        found = []
        for start in range(0, len(rows), self.users):
            some = slice(start, start + self.users)
            theirs = None if added is None else Graph(added.item[some], added.weight[some])
            found.append(self._top(rows[some], k, seen[some], theirs))
        return Found(torch.cat([f.item for f in found]), torch.cat([f.score for f in found]))

    def _top(self, rows: Tensor, k: int, seen: Tensor, added: Graph | None) -> Found:
        scores = rows.new_full((len(rows), k), -torch.inf)  # (b, k): the best so far
        ids = seen.new_full((len(rows), k), -1)  # (b, k)
        user = None
        if self.codes is not None and (self.int8 or len(rows) <= FEW_USERS) and bool(rows.isfinite().all()):
            user = self.codes.user(rows)
        for start in range(0, len(self.table), self.items):
            block = self.table[start : start + self.items]  # (n, W)
            extra = rows.new_zeros(
                len(rows), len(block)
            )  # (b, n): what is added to the products; -inf for what was seen
            if added is not None:
                here = (added.item >= start) & (added.item < start + len(block))  # (b, U)
                extra.scatter_add_(1, torch.where(here, added.item - start, 0), (added.weight * here).to(extra.dtype))
            here = (seen >= start) & (seen < start + len(block))  # (b, any)
            extra = mask_seen(extra, torch.where(here, seen - start, -1))  # (b, n)
            if user is not None and self.codes is not None:
                bounds = self.codes.bounds(user, start, start + len(block))  # (b, n), (b, n)
                hot, best, place = _best_within(bounds, rows, block, extra, scores[:, -1], k)  # (h,), (h, k), (h, k)
            else:
                part = torch.addmm(extra, rows, block.T)  # (b, n)
                # only users for whom this block holds something better; of equals, the earlier item stays
                hot = (~(part.amax(dim=1) <= scores[:, -1])).nonzero().squeeze(1)  # (h,); NaN too, to be refused
                best, place = top_scored(part[hot], k)  # (h, k)
            place = torch.where(mask_of(place), place + start, -1)  # (h, k)
            best, place = best_first(torch.cat([scores[hot], best], 1), torch.cat([ids[hot], place], 1))  # (h, 2k)
            scores[hot], ids[hot] = best[:, :k], place[:, :k]
        return Found(ids, scores)


def _best_within(
    bounds: tuple[Tensor, Tensor], rows: Tensor, block: Tensor, extra: Tensor, worst: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best items of a block, from bounds of their products: only what can be among the k best is multiplied.

    Args:
        bounds: the middle of the bounds and the distance from it, (b, n) each.
        rows: (b, W) float.
        block: (n, W) float.
        extra: (b, n) float, added to the products.
        worst: (b,) float, the k-th best score so far.
        k: length of the lists.

    Returns:
        The users for whom the block can hold something better, (h,), and their best scores and places in it, (h, k) each.
    """
    middle, apart = bounds[0] + extra, bounds[1]  # (b, n), (b, n)
    floor = worst  # (b,)
    if middle.shape[1] >= k:
        floor = torch.maximum(worst, (middle - apart).topk(k, dim=1).values[:, -1])  # (b,)
    high = middle + apart  # (b, n)
    count = ((high >= floor[:, None]) & (high > -torch.inf)).sum(dim=1)  # (b,)
    hot = count.nonzero().squeeze(1)  # (h,)
    most = int(count.amax()) if len(hot) else 0
    scores, places = [], []
    for few in hot.split(max(1, TOUCHED // max(1, most * block.shape[1]))):
        if 4 * most > len(block):  # the bounds exclude little
            exact = torch.addmm(extra[few], rows[few], block.T)  # (f, n)
            best, place = top_scored(exact, k)  # (f, k)
        else:
            place = high[few].topk(most, dim=1).indices  # (f, most)
            exact = torch.einsum("fw,fmw->fm", rows[few], block[place]) + extra[few].gather(1, place)  # (f, most)
            best, place = _wide(*best_first(exact, place), k)  # (f, k)
        scores.append(best)
        places.append(place)
    if not scores:
        return hot, rows.new_empty(0, k), hot.new_empty(0, k)
    return hot, torch.cat(scores), torch.cat(places)


def _wide(scores: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k of sorted lists, (B, any), padded with -inf and -1 where there are fewer: (B, k) each."""
    short = max(0, k - scores.shape[1])
    pad = torch.nn.functional.pad
    return pad(scores[:, :k], (0, short), value=-torch.inf), pad(ids[:, :k], (0, short), value=PAD)


def by_length(table: Tensor, count: int) -> Tensor:
    """Rows drawn in proportion to their length, (up to count, W): long ones make the largest products. table: (N, W)."""
    length = torch.cat([part.float().norm(dim=1).double() for part in table.split(ADDED)]).cumsum(dim=0)  # (N,)
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # (count,)
    rows = torch.searchsorted(length.cpu(), drawn * float(length[-1])).clamp(max=len(table) - 1)  # (count,)
    return table[rows.unique().to(table.device)]


class FaissSearch(Search):
    """An index of the faiss library: it finds candidates, which are scored and ordered exactly; what it misses is missed.

    Args:
        factory: PQ: product quantisation, which codes two numbers of a row in 4 bits and compares every row; it needs W / 4 bytes
            an item. Or what faiss's index_factory builds: "Flat" (exact), "IVF4096,Flat" (4,096 lists, a few of them looked
            into), "HNSW32" (a graph). See docs/scaling.md for what each finds.
        probes: Lists looked into for each user, or the breadth of the search in a graph: more finds more, slower.
        train_items: Items that lists are learned from, without PQ.
        candidates: Items that are scored exactly for each user, at least.

    Raises:
        ConfigError: faiss isn't installed.
    """

    def __init__(
        self, factory: str = QUANTISED, probes: int = 64, train_items: int = 100_000, candidates: int = 1000
    ) -> None:
        if find_spec("faiss") is None:
            raise ConfigError(
                'A faiss index needs the package faiss, which is not installed: pip install "setrec[faiss]".'
            )
        self.factory, self.probes, self.train_items, self.candidates = factory, probes, train_items, candidates

    def build(self, table: Tensor) -> None:
        """See `Search.build`."""
        import faiss

        self.table = table
        width = table.shape[1] + (table.shape[1] % 2 if self.factory == QUANTISED else 0)
        factory = f"PQ{width // 2}x4fs" if self.factory == QUANTISED else self.factory
        self._more = width - table.shape[1]  # zeros after every row
        try:
            index: Any = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
            if self.factory == QUANTISED:
                index.pq.cp.max_points_per_centroid = LEARNED_FROM  # all of them
                index.train(self._numbers(by_length(table, LEARNED_FROM)))
            elif not index.is_trained:
                step = max(1, len(table) // self.train_items)
                index.train(self._numbers(table[::step]))
        except RuntimeError as error:
            raise ConfigError(
                f"faiss can't build the index {self.factory!r} of {len(table):,} items ({str(error).rpartition(': ')[2]}); give "
                "none, then lists are exact, or PQ for a large catalogue."
            ) from None
        for part in table.split(ADDED):
            index.add(self._numbers(part))
        self.index = index
        if hasattr(self.index, "nprobe"):
            self.index.nprobe = self.probes
        if hasattr(self.index, "hnsw"):
            self.index.hnsw.efSearch = self.probes

    def top(self, rows: Tensor, k: int, seen: Tensor, added: Graph | None = None) -> Found:
        """See `Search.top`. As many more candidates are asked for as a user of the batch has seen.

        What is added is never negative. So the best lie among the best products and the items that something is added to.
        """
        most_seen = int(mask_of(seen).sum(dim=1).amax()) if seen.numel() else 0
        wanted = min(max(k, self.candidates) + most_seen, len(self.table))
        found = self.index.search(self._numbers(rows), wanted)[1]  # (B, wanted)
        ids = torch.from_numpy(found).to(rows.device)  # (B, wanted), -1 where there are fewer
        blocks = []
        few = max(1, TOUCHED // (self.table.shape[1] * (wanted + (GRAPH_ITEMS if added is not None else 0))))
        for start in range(0, len(rows), few):
            some = slice(start, start + few)
            item, weight = ids[some], rows.new_zeros(ids[some].shape)  # (b, wanted)
            if added is not None:
                item = torch.cat([added.item[some].masked_fill(added.weight[some] == 0, PAD), item], dim=1)  # (b, any)
                item, weight = summed(item, torch.cat([added.weight[some].to(weight.dtype), weight], dim=1))  # (b, U)
            blocks.append(self._scored(rows[some], item, weight, seen[some], k))
        return Found(torch.cat([f.item for f in blocks]), torch.cat([f.score for f in blocks]))

    def _numbers(self, rows: Tensor) -> np.ndarray:
        """Rows as faiss takes them, (n, width) float32."""
        padded = torch.nn.functional.pad(rows.float(), (0, self._more))  # (n, width)
        return padded.cpu().contiguous().numpy()

    def _scored(self, rows: Tensor, ids: Tensor, added: Tensor, seen: Tensor, k: int) -> Found:
        """The k best of some items, each once, scored exactly. ids, added: (B, U); the rest: see `Search.top`."""
        scores = torch.einsum("bw,bkw->bk", rows, self.table[ids.clamp(min=0)].to(rows.dtype)) + added  # (B, U)
        gone = ~mask_of(ids) | (ids[:, :, None] == seen[:, None, :]).any(dim=2)  # (B, U)
        best, ids = _wide(*best_first(scores.masked_fill(gone, -torch.inf), ids), k)  # (B, k)
        return Found(ids, best)


class HasScorer(Protocol):
    """What has a scorer: SETRecModule."""

    @property
    def scorer(self) -> Scorer:
        """What scores histories."""


class Retriever:
    """A trained model and its index, which is made when first asked for and made anew when weights have changed.

    What every item has of its own is one inner product; item graphs add to few items, and never subtract.

    Args:
        model: a scorer, or a module that has one; in evaluation mode.
        search: how to search; None: `ExactSearch`.
        fixed: the weights will not change once the index is made, so that nobody need look.
    """

    def __init__(self, model: Scorer | HasScorer, search: Search | None = None, fixed: bool = False) -> None:
        self.scorer = model if isinstance(model, Scorer) else model.scorer
        self.search = search or ExactSearch()
        self.fixed = fixed
        self._made_of: list[tuple[int, int]] | None = None

    @torch.no_grad()
    def refresh(self) -> bool:
        """Make the index, unless it is there and belongs to the weights and the catalogue as they are. Says whether it did."""
        model, graphs = self.scorer.model, self.scorer.graphs
        sources: list[Tensor] = []
        if not self.fixed:
            sources = [
                *model.parameters(),
                *model.buffers(),
                *([] if graphs is None else [graphs.recency, graphs.cold]),
            ]
        stamp = [(id(source), source._version) for source in sources]  # torch counts every change in place
        if stamp == self._made_of:
            return False
        if not (self.fixed and hasattr(self.scorer, "index")):
            self.scorer.refresh()
        index = self.scorer.index
        columns = {name: part.to(index.cf.dtype) for name, part in index.parts.items()}  # of (N, any)
        if graphs is not None:
            columns["recency"] = graphs.recency[:, None].to(index.cf.dtype)  # (N, 1)
            for name in columns.keys() & FACTORS.keys():
                if FACTORS[name].cold(_ANY) == 0:  # a cold item has no such part, whatever the weights
                    columns[name] = columns[name].index_fill(0, graphs.cold, 0)
            self._cold = graphs.is_cold()  # (N,): a millisecond for a million items, so not for every user
        self.table = torch.cat(list(columns.values()), dim=1)  # (N, W)
        self.search.build(self.table)
        self._made_of = stamp
        return True

    def exact(self) -> "Retriever":
        """A retriever with the same index that misses nothing."""
        other = copy(self)
        other.search = ExactSearch(int8=False)
        other.search.build(self.table)
        return other

    @torch.no_grad()
    def top(
        self,
        batch: Batch,
        weights: Weights,
        k: int = 10,
        filter_seen: bool = True,
        allowed: Tensor | None = None,
        user: UserVector | None = None,
    ) -> Found:
        """The k best items of every user of a batch.

        Args:
            batch: as evaluation makes it: one prefix a user.
            weights: of the score.
            k: length of the lists.
            filter_seen: leave out the items of the user's own history.
            allowed: (n,) int64 item ids in ascending order, the only candidates, which are then all scored; None: every item.
            user: the user vectors of the batch, if they are known; None: they are computed.
        """
        self.refresh()
        if user is None:
            with torch.autocast(batch.history.device.type, enabled=False):
                user = self.scorer.model.user_vectors(batch, self.scorer.index)
        rows = [factors(name).warm(weights) * part for name, part in user.parts.items()]  # of (B, any)
        graphs, added = self.scorer.graphs, None
        if graphs is not None:
            rows.append(user.cf.new_full((len(user.cf), 1), FACTORS["recency"].warm(weights)))
            added = touched_items(graphs, self._cold, batch.history, weights)  # (B, U)
        row = torch.cat(rows, dim=1)  # (B, W)
        seen = batch.seen if filter_seen else batch.seen[:, :0]  # (B, any)
        if allowed is None:
            return self.search.top(row, k, seen, added)
        return _among(self.table, allowed, row, k, seen, added)


def _among(table: Tensor, allowed: Tensor, row: Tensor, k: int, seen: Tensor, added: Graph | None) -> Found:
    """The best of some items, all scored. allowed: (n,) int64, ascending; the rest: see `Search.top`."""
    if not len(allowed):
        return Found(seen.new_full((len(row), k), PAD), row.new_full((len(row), k), -torch.inf))

    def places(items: Tensor) -> Tensor:
        """Where items stand among the allowed ones, -1 for the others. Any shape."""
        place = torch.searchsorted(allowed, items.clamp(min=0)).clamp(max=len(allowed) - 1)
        return torch.where(mask_of(items) & (allowed[place] == items), place, PAD)

    if added is not None:
        place = places(added.item)  # (B, U)
        added = Graph(place.clamp(min=0), added.weight * mask_of(place))  # (B, U)
    exact = ExactSearch(int8=False)
    exact.build(table[allowed])
    found = exact.top(row, k, places(seen), added)  # (B, k)
    return found._replace(item=torch.where(mask_of(found.item), allowed[found.item.clamp(min=0)], PAD))  # (B, k)


def overlap(found: Found, exact: Found) -> float:
    """Share of the exact lists' items that an approximate search found: its recall."""
    real = mask_of(exact.item)  # (B, k)
    hit = (exact.item[:, :, None] == found.item[:, None, :]).any(dim=2) & real  # (B, k)
    return float(hit.sum() / real.sum().clamp(min=1))
