"""Lists of the most similar items: the one way to cut a row of similarities to its best S.

Of equally similar items the one with the lower rank stays, so a list is a function of what it is chosen from: it does not matter
in which order items come, nor in how many parts. So the best S of a row are also the best S of (its best S before, and new items).
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from setrec.scoring.topk import top_scored

ROWS = 1 << 16  # rows that are cut at a time


class Graph(NamedTuple):
    """Every item's most similar items."""

    item: Tensor  # (N, S) int32 or int64, most similar first; where an item has fewer than S, any item with weight 0
    weight: Tensor  # (N, S) float32, 0 or more

    def to(self, device: torch.device) -> "Graph":
        """The graph on a device."""
        return Graph(self.item.to(device), self.weight.to(device))


def empty(rows: int, width: int) -> Graph:
    """Lists without neighbours, (rows, width)."""
    return Graph(torch.zeros(rows, width, dtype=torch.int32), torch.zeros(rows, width))


def now_at(rows: Tensor, n_before: int) -> Tensor:
    """Where each item of a catalogue is after a change, (N before,) int32; -1: it is gone.

    rows: (N,) int64, the row that each item had before, -1 for an added one.
    """
    now = torch.full((n_before,), -1, dtype=torch.int32)  # (N before,)
    there = rows >= 0  # (N,)
    now[rows[there]] = there.nonzero().squeeze(1).int()
    return now


def strongest(table: sp.csr_matrix, neighbours: int) -> Graph:
    """The largest entries of every row of a table, (N, N) sparse float32, none below 0; of equals the lower column."""
    length = np.diff(table.indptr)  # (N,)
    graph = empty(table.shape[0], max(1, min(neighbours, int(length.max(initial=1)))))  # (N, S)
    for start in range(0, table.shape[0], ROWS):
        part = table[start : start + ROWS]  # (n, N) sparse
        row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))  # (entries,)
        order = np.lexsort((part.indices, -part.data, row))  # (entries,)
        place = np.arange(len(order)) - part.indptr[row]  # (entries,): in its row, whose entries stay together
        order, place = order[place < neighbours], place[place < neighbours]
        at = (torch.from_numpy(start + row[order]), torch.from_numpy(place))
        graph.item[at] = torch.from_numpy(part.indices[order].astype(np.int32))
        graph.weight[at] = torch.from_numpy(part.data[order].astype(np.float32))
    return graph


def most_similar(rows: Tensor, candidates: Tensor, most: int) -> Graph:
    """The best of some candidates for each of some items: (b, S) each.

    Args:
        rows: (b, m) float, similarity, 0 or more.
        candidates: (m,) int64, the item of each column; of equally similar ones the earlier column stays.
        most: S; fewer where there are fewer candidates.
    """
    if not len(candidates):
        return empty(len(rows), 0)
    best, place = top_scored(rows, min(most, len(candidates)))  # (b, S)
    return Graph((candidates[place] * (best > 0)).int(), best.float())


def merged(lists: Graph, more: Graph, rank: Tensor, most: int) -> Graph:
    """The best of two lists for each of some items, (b, S) and (b, n) -> (b, up to `most`); an item stands in one of the two.

    rank: (N,) int64, which of two equally similar items stays: the one with the lower rank.
    """
    item = torch.cat([lists.item, more.item], dim=1)  # (b, S + n)
    weight = torch.cat([lists.weight, more.weight], dim=1)  # (b, S + n)
    by_rank = torch.where(weight > 0, rank[item], len(rank)).argsort(dim=1)  # (b, S + n)
    weight, order = weight.gather(1, by_rank).sort(dim=1, descending=True, stable=True)  # (b, S + n)
    weight = weight[:, :most]  # (b, up to most)
    item = item.gather(1, by_rank.gather(1, order[:, :most]))  # (b, up to most)
    return Graph(item * (weight > 0), weight)
