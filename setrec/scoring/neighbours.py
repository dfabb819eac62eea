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
    """The largest entries of every row of a table, (N, N) sparse float32, none below 0; of equals the lower column.

    Entries are sorted as whole numbers, which is three times as fast as by row, weight and column:

        row | bits of the weight, inverted | place in the row

    The bits of positive float32 numbers are in the order of the numbers.
    """
    longest = int(np.diff(table.indptr).max(initial=1))
    graph = empty(table.shape[0], max(1, min(neighbours, longest)))  # (N, S)
    bits = np.uint64(max(1, longest - 1).bit_length())  # of a place
    step = min(ROWS, 1 << (32 - int(bits)))  # rows: a number has 64 bits, a weight 32
    for start in range(0, table.shape[0], step):
        part = table[start : start + step].sorted_indices()  # (n, N) sparse
        length = np.diff(part.indptr)  # (n,)
        row = np.repeat(np.arange(len(length)), length)  # (entries,)
        place = np.arange(len(row)) - part.indptr[row]  # (entries,): in its row
        weight = (part.data.astype(np.float32) + 0).view(np.uint32)  # (entries,): + 0 makes 0 of -0
        key = row.astype(np.uint64) << np.uint64(32) | ~weight
        key = key << bits | place.astype(np.uint64)  # (entries,)
        key.sort()
        kept = place < neighbours
        row, place = row[kept], place[kept]  # a row's entries stay together
        chosen = part.indptr[row] + (key[kept] & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
        at = (torch.from_numpy(start + row), torch.from_numpy(place))
        graph.item[at] = torch.from_numpy(part.indices[chosen].astype(np.int32))
        graph.weight[at] = torch.from_numpy(part.data[chosen].astype(np.float32))
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
