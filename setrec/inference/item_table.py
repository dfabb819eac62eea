"""The items of a trained model as plain arrays, with the weights of the score folded in.

The score of item i for a user is then   <user, items[i]>  +  what the item graphs add   (see `item_table`).
"""

import numpy as np
import scipy.sparse as sp
import torch

from setrec.errors import DataError
from setrec.inference.answers import Snapshot, chosen_beta
from setrec.scoring.graphs import ItemGraphs, Reach
from setrec.scoring.weights import Weights, factors

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
    cold = graphs.is_cold().cpu()  # (N,)
    found = {}
    for one in graphs.lists():
        factor = one.factor(weights)
        item = one.graph.item.cpu().long()  # (N, S)
        entries = one.graph.weight.cpu() * (cold[item] == one.of_cold) * factor  # (N, S)
        row, place = entries.nonzero(as_tuple=True)  # (entries,), (entries,)
        triples = (entries[row, place].numpy(), (row.numpy(), item[row, place].numpy()))
        found[one.name] = sp.csr_matrix(triples, shape=(len(cold), len(cold)), dtype=np.float32), one.reach
    return found


def _texts(texts: list[str]) -> np.ndarray:
    bad = next((text for text in texts if SEPARATOR in text), None)
    if bad is not None:
        raise DataError(
            f"the id or title {bad!r} holds a zero byte, so it can't be exported: remove the item, or rename it."
        )
    return np.frombuffer(SEPARATOR.join(texts).encode(), np.uint8)
