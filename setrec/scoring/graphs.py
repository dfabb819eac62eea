"""Item graphs: every item's most similar items, counted and not learned, as a part of the score beside the slots.

The answers of the model are smooth: 12,000 items share one space of a few hundred dimensions. Two items that were always bought
together, or whose texts are almost the same, stand out of such a space less than they should. A graph says just that and is
sparse, so it costs almost nothing:

    co-occurrence  cosine of co-occurrence (similarity.py), of items that stand near each other or anywhere in one history
    transitions    what comes in the next three steps (similarity.py): the order of two items counts
    text           sharpened cosine of the text vectors + similarity of character n-grams / 2 (char_ngrams.py)
    recency        log(1 + users whose newest item it is), the same for every user

Nobody has bought a cold item yet. Its co-occurrence is inferred: the mean row of the warm items with the most similar texts.

A user's score from a graph is the sum over the last items of the history of decay^age times the row of the item. Every item keeps
its most similar neighbours only, and its most similar cold ones apart: with nothing but text to go by, more of the text counts for
a cold item, so it has more neighbours and a longer memory.

What may be counted is what the histories hold before the split that is answered (data/past.py). Not in the paper.
"""

from typing import NamedTuple

import scipy.sparse as sp
import torch
from torch import Tensor

from setrec.data.past import PastEvents
from setrec.schemas import PAD
from setrec.scoring.neighbours import Graph, empty, now_at, strongest
from setrec.scoring.similarity import WINDOW, cooccurrence_cosine, faded_items, transition_cosine
from setrec.scoring.text_graphs import COLD_NEIGHBOURS, NEIGHBOURS, TextGraphs
from setrec.scoring.weights import Weights, factors


class Reach(NamedTuple):
    """How far a graph reaches."""

    neighbours: int  # that an item keeps
    last: int  # items of a history that count
    decay: float  # a step back from the newest item


class Pairs(NamedTuple):
    """What counts as co-occurrence."""

    window: int  # steps within which two items of a history are a pair
    reach: Reach


PAIRS = {  # docs/ledger.md
    "near": Pairs(WINDOW, Reach(neighbours=100, last=10, decay=0.9)),  # as in the baselines
    "history": Pairs(50, Reach(neighbours=100, last=50, decay=1.0)),
}
TRANSITIONS = Reach(neighbours=100, last=3, decay=0.7)  # docs/ledger.md
STEPS, FADING = 3, 0.7  # of a transition: the most steps, and what a step further counts
TEXT = Reach(neighbours=NEIGHBOURS, last=10, decay=0.85)
COLD_TEXT = Reach(neighbours=COLD_NEIGHBOURS, last=20, decay=0.9)
SIMILAR = 10  # warm items with similar texts that the co-occurrence of a cold item is inferred from; docs/ledger.md
INFERRED = 100  # cold items that an item keeps


class HistoryStatistics(NamedTuple):
    """What histories say about items: all that a trained model needs of them, and nobody's history can be read from it."""

    cooccurrence: Graph
    transitions: Graph
    recency: Tensor  # (N,) float32, log(1 + users whose newest item it is)

    def moved(self, rows: Tensor) -> "HistoryStatistics":
        """The same for another version of the catalogue. rows: (N',) int64, an item's row here, -1 where it has none."""
        new = now_at(rows, len(self.recency))  # (N,)

        def moved(graph: Graph) -> Graph:
            item = new[graph.item[rows]]  # (N', S)
            weight = graph.weight[rows] * (item >= 0) * (rows >= 0)[:, None]  # (N', S)
            return Graph(item.clamp(min=0), weight)

        return HistoryStatistics(moved(self.cooccurrence), moved(self.transitions), self.recency[rows] * (rows >= 0))


class Inferred(NamedTuple):
    """Co-occurrence of cold items, whose row is the mean of the rows of warm items with similar texts."""

    graph: Graph  # (N, S): the cold items that stand beside an item
    similar: Graph  # (N, SIMILAR): warm items with the most similar texts, and their shares; all 0 for a warm item; on the CPU


class PartGraph(NamedTuple):
    """A graph, and what it adds to."""

    name: str
    part: str  # of the score, see weights.py
    graph: Graph
    reach: Reach
    of_cold: bool  # it adds to the items that are scored by their text alone; False: to all others

    def factor(self, weights: Weights) -> float:
        """What its entries are multiplied by."""
        both = factors(self.part)
        return both.cold(weights) if self.of_cold else both.warm(weights)


class ItemGraphs(NamedTuple):
    """What is counted about the items of a catalogue, on the device where it is needed."""

    cooccurrence: Graph
    transitions: Graph
    inferred: Inferred | None  # None without text vectors
    pairs: Pairs  # what was counted as co-occurrence
    text: TextGraphs | None  # None without text vectors
    recency: Tensor  # (N,) float32
    cold: Tensor  # (cold,) int64, the items that are scored by their text alone; none without text

    def lists(self) -> list[PartGraph]:
        """Every graph; of two for one part, the one of cold items comes second."""
        found = [
            PartGraph("cooccurrence", "cooccurrence", self.cooccurrence, self.pairs.reach, False),
            PartGraph("transitions", "transitions", self.transitions, TRANSITIONS, False),
        ]
        if self.inferred is not None:
            found.append(PartGraph("inferred", "cooccurrence", self.inferred.graph, self.pairs.reach, True))
        if self.text is not None:
            found.append(PartGraph("text", "text", self.text.all, TEXT, False))
            found.append(PartGraph("cold_text", "text", self.text.cold, COLD_TEXT, True))
        return found

    def is_cold(self) -> Tensor:
        """(N,) bool: which items are scored by their text alone."""
        return torch.zeros_like(self.recency, dtype=torch.bool).index_fill_(0, self.cold, True)


class Before(NamedTuple):
    """The graphs of the catalogue before a change, and where its items are now."""

    graphs: ItemGraphs
    rows: Tensor  # (N',) int64, an item's row before, -1 for an added item


def item_graphs(
    statistics: HistoryStatistics,
    pairs: Pairs,
    text: TextGraphs | None,
    warm: Tensor,
    device: torch.device,
    before: Before | None = None,
) -> ItemGraphs:
    """The graphs and the counts on one device.

    Args:
        statistics: what was counted.
        pairs: what was counted as co-occurrence.
        text: the text graphs; None without text vectors.
        warm: (N,) bool, the items seen in training.
        device: where the graphs are needed.
        before: what changes; None: all is made anew.
    """
    by_text = ~warm if text is not None else torch.zeros_like(warm)  # (N,)
    inferred = None if text is None else infer_cooccurrence(statistics.cooccurrence, text.all, warm, before)
    return ItemGraphs(
        statistics.cooccurrence.to(device),
        statistics.transitions.to(device),
        None if inferred is None else Inferred(inferred.graph.to(device), inferred.similar),
        pairs,
        None if text is None else TextGraphs(text.all.to(device), text.cold.to(device)),
        statistics.recency.to(device),
        by_text.nonzero().squeeze(1).to(device),
    )


def history_statistics(past: PastEvents, n_items: int, pairs: Pairs) -> HistoryStatistics:
    """Count what the histories hold, on the CPU. pairs: what counts as co-occurrence."""
    worth = None if past.worth is None else past.worth.items
    together = cooccurrence_cosine(past.sequences, n_items, pairs.window, worth)  # (N, N) sparse
    after = transition_cosine(past.sequences, n_items, STEPS, FADING, worth)  # (N, N) sparse
    return HistoryStatistics(
        strongest(together, pairs.reach.neighbours), strongest(after, TRANSITIONS.neighbours), torch.log1p(past.newest)
    )


def infer_cooccurrence(cooccurrence: Graph, text: Graph, warm: Tensor, before: Before | None = None) -> Inferred:
    """Which cold items stand beside an item, if each cold one stands where the warm ones with similar texts do.

    The row of a cold item is the mean of the rows of the `SIMILAR` warm items with the most similar texts, weighed by similarity.

    Args:
        cooccurrence: of the warm items.
        text: neighbours among all items, the most similar first.
        warm: (N,) bool.
        before: what changes; only rows that it touches are made again. None: all.
    """
    similar = _similar_warm(text, warm)  # (N, SIMILAR)
    if before is None or before.graphs.inferred is None:
        return Inferred(_inferred_rows(cooccurrence, similar), similar)
    now = now_at(before.rows, len(before.graphs.recency))  # (N before,)
    anew = _touched(cooccurrence, similar, before, before.graphs.inferred, now)  # (N,)
    made = _inferred_rows(Graph(cooccurrence.item[anew], cooccurrence.weight[anew]), similar)  # (anew, S)
    old = before.graphs.inferred.graph
    kept, rows = ~anew, before.rows[~anew]  # (N,), (kept,)
    graph = empty(len(warm), max(made.item.shape[1], old.item.shape[1]))  # (N, S)
    weight = old.weight[rows].cpu()  # (kept, S)
    graph.item[kept, : old.item.shape[1]] = now[old.item[rows].cpu()] * (weight > 0)
    graph.weight[kept, : old.item.shape[1]] = weight
    graph.item[anew, : made.item.shape[1]], graph.weight[anew, : made.item.shape[1]] = made
    return Inferred(graph, similar)


def _similar_warm(text: Graph, warm: Tensor) -> Graph:
    """The warm items with the most similar texts and their shares, (N, SIMILAR); all 0 for a warm item."""
    cold = (~warm).nonzero().squeeze(1)  # (cold,)
    item, weight = text.item[cold].long(), text.weight[cold]  # (cold, S), (cold, S)
    weight = weight * warm[item]  # (cold, S)
    weight, place = weight.topk(min(SIMILAR, weight.shape[1]), dim=1)  # (cold, SIMILAR)
    found = empty(len(warm), weight.shape[1])  # (N, SIMILAR)
    found.item[cold] = item.gather(1, place).int() * (weight > 0)
    found.weight[cold] = weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return found


def _inferred_rows(cooccurrence: Graph, similar: Graph) -> Graph:
    """Rows of the inferred graph, (n, S), from rows of co-occurrence, (n, S), and from what all cold items are similar to."""
    n_items = len(similar.item)
    return strongest(_sparse(cooccurrence, n_items) @ _sparse(similar, n_items).T, INFERRED)


def _touched(cooccurrence: Graph, similar: Graph, before: Before, inferred: Inferred, now: Tensor) -> Tensor:
    """(N,) bool: the items with an entry, before or now, for a cold item whose similar items are others now; and added items."""
    rows, was = before.rows, inferred.similar
    there = rows >= 0  # (N,)
    width = min(similar.item.shape[1], was.item.shape[1])
    item, weight = now[was.item[rows]][:, :width], was.weight[rows, :width]  # (N, width) each
    same = (item * (weight > 0) == similar.item[:, :width]).all(dim=1)  # (N,)
    same &= (weight == similar.weight[:, :width]).all(dim=1)  # (N,)
    same &= (was.weight[rows, width:] == 0).all(dim=1) & (similar.weight[:, width:] == 0).all(dim=1)  # (N,)
    differs = ~(same & there)  # (N,)
    gone = torch.ones(len(was.item), dtype=torch.bool).index_fill_(0, rows[there & ~differs], False)  # (N before,)

    def beside(graph: Graph, of: Graph, some: Tensor) -> Tensor:
        """Items that co-occur with an item which one of `some`, (n,) bool, is similar to."""
        warm = torch.zeros(len(some), dtype=torch.bool)  # (n,)
        warm[of.item[some][of.weight[some] > 0].long()] = True
        return (warm[graph.item.cpu()] & (graph.weight > 0).cpu()).any(dim=1)  # (n,)

    return ~there | beside(cooccurrence, similar, differs) | beside(before.graphs.cooccurrence, was, gone)[rows]


def _sparse(lists: Graph, n_items: int) -> sp.csr_matrix:
    """Lists, (n, S) each, as a table, (n, N) sparse float32."""
    row = torch.arange(len(lists.item))[:, None].expand_as(lists.item)  # (n, S)
    where = (row.flatten().numpy(), lists.item.flatten().numpy())
    table = sp.csr_matrix((lists.weight.flatten().numpy(), where), shape=(len(lists.item), n_items))
    table.eliminate_zeros()
    return table


def graph_entries(graph: Graph, history: Tensor, reach: Reach) -> Graph:
    """What the last items of each history, (B, L) int64, give to which items: (B, last * S) each, an item more than once."""
    items, fading = faded_items(history, min(reach.last, history.shape[1]), reach.decay)  # (B, last)
    weight = fading[..., None] * graph.weight[items]  # (B, last, S)
    return Graph(graph.item[items].flatten(1).long(), weight.flatten(1))  # (B, last * S)


def graph_scores(graph: Graph, history: Tensor, reach: Reach) -> Tensor:
    """Scores of all items from the last items of each history: (B, L) int64 -> (B, N) float32."""
    item, weight = graph_entries(graph, history, reach)  # (B, last * S)
    return weight.new_zeros(len(history), len(graph.item)).scatter_add_(1, item, weight)  # (B, N)


def graph_parts(graphs: ItemGraphs, history: Tensor) -> dict[str, Tensor]:
    """The parts `cooccurrence`, `transitions`, `text` (with text) and `recency` of the score, (B, N) or (N,) each.

    history: (B, L) int64, padded at the end.
    """
    parts: dict[str, Tensor] = {}
    for one in graphs.lists():
        scores = graph_scores(one.graph, history, one.reach)  # (B, N)
        if one.of_cold:
            parts[one.part][:, graphs.cold] = scores[:, graphs.cold]  # (B, cold)
        else:
            parts[one.part] = scores
    return parts | {"recency": graphs.recency}  # (N,)


def touched_items(graphs: ItemGraphs, cold: Tensor, history: Tensor, weights: Weights) -> Graph:
    """The items that the graphs add to, some more than once, and what they add under the weights.

    cold: (N,) bool, what `ItemGraphs.is_cold` gives; history: (B, L) int64, padded at the end. Returns (B, U) int64 and (B, U)
    float32, 0 where nothing is added.
    """
    items, added = [], []
    for one in graphs.lists():
        factor = one.factor(weights)
        if factor:
            entries = graph_entries(one.graph, history, one.reach)  # (B, last * S)
            items.append(entries.item)
            added.append(entries.weight * (cold[entries.item] == one.of_cold) * factor)  # (B, last * S)
    if not items:
        return Graph(history.new_empty(len(history), 0), graphs.recency.new_empty(len(history), 0))
    return Graph(torch.cat(items, dim=1), torch.cat(added, dim=1))


def summed(item: Tensor, weight: Tensor) -> Graph:
    """Equal items of a row, (B, M) int64, padded, as one, with the sum of their weights, (B, M) float32; (B, U) each."""
    item, order = item.sort(dim=1, descending=True)  # (B, M): padding at the end
    first = torch.ones_like(item, dtype=torch.bool)  # (B, M)
    first[:, 1:] = item[:, 1:] != item[:, :-1]
    slot = first.cumsum(1) - 1  # (B, M)
    most = int(slot.amax()) + 1 if item.numel() else 0
    items = item.new_full((len(item), most), PAD).scatter_(1, slot, item)  # (B, U)
    sums = weight.new_zeros(len(item), most).scatter_add_(1, slot, weight.gather(1, order))  # (B, U)
    return Graph(items, sums)
