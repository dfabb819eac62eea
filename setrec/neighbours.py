"""Neighbours: what stands next to a history, counted and not learned, as a part of the score beside the slots.

The answers of the model are smooth: 12,000 items share one space of a few hundred dimensions. Two items that were always
bought together, or whose texts are almost the same, stand out of such a space less than they should. A graph of item
neighbours says just that and is sparse, so it costs almost nothing:

    pairs    cosine of co-occurrence: C(i, j) / sqrt(n_i n_j), C = times i and j stand within 5 steps of one history
    text     max(cosine of the text vectors, 0)^6 + likeness of the texts' letters / 2 (letters.py)
    recent   log(1 + users whose newest item it is), the same for every user: what is bought lately

A user's score from a graph is the sum over the newest items of the history of decay^age times the row of the item. With the
weights g, r and c, chosen on validation beside beta, the whole score of an item is

    warm   (1 - beta) (CF slots + g pairs) + beta (semantic slots + g text) + r recent
    cold                                     beta (semantic slots + c text)

A cold item, absent from training, is known by its text alone. What pairs and counts are worth to it nothing before test can
say, as it has none when validation is answered; so it has none when test is. With nothing else to go by, more of the text
counts for it: more neighbours, and a longer memory.

Every item keeps its strongest neighbours only, and its strongest cold ones apart. What may be counted is what the histories of
the split hold: training when validation is answered, training and validation when test is (`Known`). Not in the paper.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from setrec.baselines import BLOCK, ItemCF, TextSimilarity, faded
from setrec.data.known import Known
from setrec.letters import SHARE, Letters


class Reach(NamedTuple):
    """How far a graph reaches."""

    strongest: int  # neighbours that an item keeps
    last: int  # items of a history that count
    decay: float  # a step back from the newest item


PAIRS = Reach(strongest=100, last=10, decay=0.9)  # last and decay as in the baselines
TEXT = Reach(strongest=100, last=10, decay=0.85)
COLD = Reach(strongest=200, last=20, decay=0.9)  # docs/ledger.md


class Weights(NamedTuple):
    """What the parts of the score are weighed by; chosen on validation."""

    beta: float
    neighbours: float = 0.0  # g
    recency: float = 0.0  # r
    cold: float = 0.0  # c


class Graph(NamedTuple):
    """Every item's strongest neighbours."""

    item: Tensor  # (N, S) int64; where an item has fewer than S, any item with weight 0
    weight: Tensor  # (N, S) float32


class Counted(NamedTuple):
    """What histories say about items: all that a model needs of them once it is trained, and nobody's history."""

    pairs: Graph
    recent: Tensor  # (N,) float32, log(1 + users whose newest item it is)

    def moved(self, rows: Tensor) -> "Counted":
        """The same for another version of the catalogue. rows: (N',) int64, an item's row here, -1 where it has none."""
        new = torch.full((len(self.recent) + 1,), -1)  # (N + 1,) where an item went; the last: those that have no row
        new[rows] = torch.arange(len(rows))
        new[-1] = -1
        item = new[self.pairs.item[rows]]  # (N', S)
        weight = self.pairs.weight[rows] * (item >= 0) * (rows >= 0)[:, None]  # (N', S)
        return Counted(Graph(item.clamp(min=0), weight), self.recent[rows] * (rows >= 0))


class TextGraphs(NamedTuple):
    """The items with the most similar texts."""

    any: Graph  # of all items
    cold: Graph  # of the cold ones


class Near(NamedTuple):
    """What is counted about the items of a catalogue, on the device where it is needed."""

    pairs: Graph
    text: TextGraphs | None  # None without text vectors
    recent: Tensor  # (N,) float32, log(1 + count)
    cold: Tensor  # (cold,) int64, the items that are known by their text alone; none without text


def near(counted: Counted, text: TextGraphs | None, warm: Tensor, device: torch.device) -> Near:
    """The graphs and the counts on one device. warm: (N,) bool, the items seen in training."""
    pairs = moved_to(counted.pairs, device)
    text = TextGraphs(*(moved_to(graph, device) for graph in text)) if text is not None else None
    by_text = ~warm if text is not None else torch.zeros_like(warm)  # (N,)
    return Near(pairs, text, counted.recent.to(device), by_text.nonzero().squeeze(1).to(device))


def moved_to(graph: Graph, device: torch.device) -> Graph:
    """The graph on a device."""
    return Graph(graph.item.to(device), graph.weight.to(device))


def count(known: Known, n_items: int) -> Counted:
    """Count what the histories hold, on the CPU."""
    return Counted(pair_graph(known, n_items), torch.log1p(known.recent))


def pair_graph(known: Known, n_items: int) -> Graph:
    """The strongest co-occurrences of every item."""
    table = ItemCF(known.sequences, n_items).similarity  # (N, N) sparse
    most = int((table.indptr[1:] - table.indptr[:-1]).max(initial=1))
    everything = torch.arange(n_items)  # (N,)
    among = [(everything, min(PAIRS.strongest, most))]
    return strongest(lambda items: torch.from_numpy(table[items.numpy()].toarray()), n_items, among)[0]


def text_graphs(text: Tensor, texts: list[str] | None, warm: Tensor) -> TextGraphs:
    """The items with the most similar texts, the item itself left out.

    Args:
        text: (N, F) float, text vectors.
        texts: the N texts; None: the vectors alone decide.
        warm: (N,) bool, the items seen in training.
    """
    similarity = TextSimilarity(text, "sharpened")
    letters = Letters(texts) if texts is not None else None

    def others(items: Tensor) -> Tensor:
        rows = similarity.sharpened(items)  # (b, N)
        if letters is not None:
            rows.add_(letters.similar(items), alpha=SHARE)  # (b, N)
        rows[torch.arange(len(items)), items] = 0  # a history's items say something about others
        return rows

    everything, cold = torch.arange(len(text)), (~warm).nonzero().squeeze(1)  # (N,), (cold,)
    return TextGraphs(*strongest(others, len(text), [(everything, TEXT.strongest), (cold, COLD.strongest)]))


def strongest(similar: Callable[[Tensor], Tensor], n_items: int, among: Sequence[tuple[Tensor, int]]) -> list[Graph]:
    """The graphs of what is most similar to every item, in blocks.

    Args:
        similar: (b,) int64 items -> (b, N) float32, 0 or more.
        n_items: N.
        among: for each graph, the candidates, (some,) int64 items, and how many of them an item keeps, S.
    """
    widths = [min(most, len(candidates)) for candidates, most in among]
    graphs = [Graph(torch.zeros(n_items, s, dtype=torch.int64), torch.zeros(n_items, s)) for s in widths]  # of (N, S)
    for start in tqdm(range(0, n_items, BLOCK), desc="neighbours", disable=n_items < 50_000, leave=False):
        own = torch.arange(start, min(start + BLOCK, n_items))  # (b,)
        rows = similar(own)  # (b, N)
        for (candidates, _), graph in zip(among, graphs, strict=True):
            best = rows[:, candidates].topk(graph.item.shape[1], dim=1)  # (b, S)
            graph.weight[own], graph.item[own] = best.values, candidates[best.indices]
    return graphs


def graph_scores(graph: Graph, history: Tensor, reach: Reach) -> Tensor:
    """Scores of all items from the newest items of each history: (B, L) int64 -> (B, N) float32."""
    items, fading = faded(history, reach.last, reach.decay)  # (B, last)
    weight = fading[..., None] * graph.weight[items]  # (B, last, S)
    scores = weight.new_zeros(len(history), len(graph.item))  # (B, N)
    return scores.scatter_add_(1, graph.item[items].flatten(1), weight.flatten(1))  # (B, N)


def near_scores(near: Near, history: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of all items by pairs and by text, (B, N) each. history: (B, L) int64, PAD at the end."""
    pairs = graph_scores(near.pairs, history, PAIRS)  # (B, N)
    if near.text is None:
        return pairs, torch.zeros_like(pairs)  # (B, N), (B, N)
    text = graph_scores(near.text.any, history, TEXT)  # (B, N)
    text[:, near.cold] = graph_scores(near.text.cold, history, COLD)[:, near.cold]  # (B, cold)
    return pairs, text  # (B, N), (B, N)
