"""The items of a trained model as plain arrays, with the weights of the score folded in.

The score of item i for a user is then   <user, items[i]>  +  what the item graphs add   (see `item_table`).
"""

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from setrec.errors import DataError
from setrec.inference.answers import Snapshot, chosen_beta
from setrec.scoring.graphs import COLD_TEXT, COOCCURRENCE, TEXT, TRANSITIONS, ItemGraphs, Reach
from setrec.scoring.neighbours import Graph
from setrec.scoring.weights import FACTORS, Weights, factors

SEPARATOR = "\0"  # between texts


def item_table(snapshot: Snapshot) -> dict[str, np.ndarray]:
    """The items, as safetensors holds them.

    Returns:
        items: (N, W) float32, y_i. The score's weights are folded in, and what a cold item is not scored by is 0.
        ids, titles: uint8, UTF-8, N texts with a zero byte between them.
        max_history: (1,) int64: the model reads this many items of a history, the last ones.
        And of every item graph that adds something: NAME.start (N + 1,) int64, NAME.item int32 and NAME.weight float32, its
        rows in CSR form; NAME.fading, float32: the factors of the last items, newest first. Item i of age a adds
        fading[a] * weight[e] to item[e], for e from start[i] to start[i + 1].

    Raises:
        DataError: an id or a title holds a zero byte.
    """
    catalogue, graphs = snapshot.catalogue, snapshot.restored.scorer.graphs
    weights = snapshot.restored.weights._replace(beta=chosen_beta(snapshot))
    index = snapshot.restored.scorer.index
    widths = {name: part.shape[1] for name, part in index.parts.items()} | ({} if graphs is None else {"recency": 1})
    factor = torch.cat([torch.full((width,), factors(name).warm(weights)) for name, width in widths.items()])  # (W,)
    table = {
        "items": (
            snapshot.retriever.table.cpu().float() * factor
        ).numpy(),  # its cold rows lack what they are not scored by
        "ids": _texts(catalogue.ids),
        "titles": _texts(catalogue.titles),
        "max_history": np.array([snapshot.max_history]),
    }
    for name, (rows, reach) in ({} if graphs is None else folded_graphs(graphs, weights)).items():
        if rows.nnz:
            fading = (reach.decay ** np.arange(reach.last)).astype(np.float32)  # (last,)
            parts = {"start": rows.indptr.astype(np.int64), "item": rows.indices, "weight": rows.data, "fading": fading}
            table |= {f"{name}.{part}": array for part, array in parts.items()}
    return table


def folded_graphs(graphs: ItemGraphs, weights: Weights) -> dict[str, tuple[sp.csr_matrix, Reach]]:
    """The rows of every graph, each entry times the factor of the item that it adds to, and how far the graph reaches."""
    cold = torch.zeros(len(graphs.recency), dtype=torch.bool)  # (N,)
    cold[graphs.cold.cpu()] = True

    def folded(graph: Graph, name: str, of: Tensor | None = None) -> sp.csr_matrix:
        factor = torch.where(cold, FACTORS[name].cold(weights), FACTORS[name].warm(weights))  # (N,)
        item = graph.item.cpu().long()  # (N, S)
        entries = graph.weight.cpu() * (factor if of is None else factor * of)[item]  # (N, S)
        row, place = entries.nonzero(as_tuple=True)  # (entries,), (entries,)
        found = (entries[row, place].numpy(), (row.numpy(), item[row, place].numpy()))
        return sp.csr_matrix(found, shape=(len(cold), len(cold)), dtype=np.float32)

    found = {
        "cooccurrence": (folded(graphs.cooccurrence, "cooccurrence"), COOCCURRENCE),
        "transitions": (folded(graphs.transitions, "transitions"), TRANSITIONS),
    }
    if graphs.text is not None:  # each item from one of the two graphs
        found["text"] = folded(graphs.text.all, "text", ~cold), TEXT
        found["cold_text"] = folded(graphs.text.cold, "text", cold), COLD_TEXT
    return found


def _texts(texts: list[str]) -> np.ndarray:
    bad = next((text for text in texts if SEPARATOR in text), None)
    if bad is not None:
        raise DataError(
            f"the id or title {bad!r} holds a zero byte, so it can't be exported: remove the item, or rename it."
        )
    return np.frombuffer(SEPARATOR.join(texts).encode(), np.uint8)
