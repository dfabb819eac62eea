"""Reads histories for answers, and keeps what it read: a history that has grown by one item costs one item.

    history -> its longest beginning that is kept -> only the items after it go through the backbone -> kept in turn

What is kept of a history: keys and values of its items' tokens in every layer, as in the prefix cache of vLLM. The key is the
item ids of the history. A reader belongs to one model and one version of the catalogue. Its memory is bounded; what was used
least recently goes first.
"""

import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from setrec.backbones.past import past_of
from setrec.layers.grounding import Index, UserVector
from setrec.model import SETRec
from setrec.schemas import Batch


class Reading(NamedTuple):
    """Histories, read."""

    user: UserVector
    outputs: (
        Tensor | None
    )  # (B, K, D) float, the query outputs; None: the backbone can't read on, so they are not known
    kept: list[int]  # items of each history that need not be read again


class HistoryReader:
    """The user vectors of histories, equal to those of `SETRec.user_vectors` but for rounding.

    Args:
        model: in evaluation mode.
        index: the model's, of the catalogue as it is.
        max_bytes: of what is kept; 0: nothing is kept.
    """

    def __init__(self, model: SETRec, index: Index, max_bytes: int = 0) -> None:
        self.model, self.index, self.max_bytes = model, index, max_bytes
        with torch.no_grad():
            self.text = model.backbone.read_text() if model.backbone.reads_on else None  # (C, 2, heads, n_text, d)
        self.bytes = 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()  # item ids -> (C, 2, heads, items * K, d)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @torch.no_grad()
    def read(self, batch: Batch) -> Reading:
        """Read a batch of histories, one prefix a user."""
        if self.text is None:
            return Reading(self.model.user_vectors(batch, self.index), None, [0] * len(batch.history))
        history = batch.history.cpu().numpy()  # (B, L)
        rows = [row[:length] for row, length in zip(history, batch.prefix[:, 0].tolist(), strict=True)]
        found = [self._longest(row) for row in rows]
        kept = [length for length, _ in found]
        fresh = np.array([len(row) for row in rows]) - kept  # (B,)
        outputs = self.text.new_empty(len(rows), *self.model.queries.shape, dtype=self.model.queries.dtype)  # (B, K, D)
        for group in group_by_length(fresh):
            outputs[group] = self._read(
                [rows[i][kept[i] :] for i in group], [found[i][1] for i in group], [rows[i] for i in group]
            )
        return Reading(self.model.user_vectors_of(outputs, batch), outputs, kept)

    def _read(self, new: list[np.ndarray], before: list[Tensor | None], whole: list[np.ndarray]) -> Tensor:
        """The query outputs, (b, K, D), of histories that end with the items `new`; keeps the histories."""
        assert self.text is not None
        n_slots, device = len(self.model.queries), self.text.device
        counts = torch.tensor([len(items) for items in new])  # (b,)
        padded = np.zeros((len(new), int(counts.amax())), np.int64)
        for place, items in enumerate(new):
            padded[place, : len(items)] = items
        tokens = self.model.tokens_of(torch.from_numpy(padded).to(device), self.index)  # (b, n, K, D)
        past = past_of(self.text, before, n_slots)
        outputs, states = self.model.backbone.read(tokens, counts.to(device), self.model.queries, past)
        if self.max_bytes:
            for row, count, ids, old in zip(states, counts.tolist(), whole, before, strict=True):
                if count:
                    here = row[:, :, :, : count * n_slots]  # (C, 2, heads, count * K, d)
                    joined = here.clone() if old is None else torch.cat([old, here], dim=3)
                    self._keep(ids, joined, count)
        return outputs

    def _longest(self, ids: np.ndarray) -> tuple[int, Tensor | None]:
        """How many items of the longest beginning that is kept, and what is kept of it."""
        with self._lock:
            for length in range(len(ids) if self._kept else 0, 0, -1):
                key = ids[:length].tobytes()
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return length, self._kept[key]
        return 0, None

    def _keep(self, ids: np.ndarray, states: Tensor, new: int) -> None:
        """Keep a history in place of its beginning that it was read on from."""
        with self._lock:
            for key in (ids[: len(ids) - new].tobytes(), ids.tobytes()):
                old = self._kept.pop(key, None)
                self.bytes -= 0 if old is None else old.nbytes
            self._kept[ids.tobytes()] = states
            self.bytes += states.nbytes
            while self.bytes > self.max_bytes:
                self.bytes -= self._kept.popitem(last=False)[1].nbytes


def group_by_length(length: np.ndarray) -> list[np.ndarray]:
    """Group histories with similar numbers of new items, so that they are read with little padding.

    The longest of a group is at most 1.5 times as long as its shortest (or 4 items longer).

    Args:
        length: (users,) int64.

    Returns:
        The places of the histories of each group, (group,) int64.
    """
    order = np.argsort(length, kind="stable")  # (users,)
    groups, start = [], 0
    while start < len(order):
        shortest = int(length[order[start]])
        longest = max(shortest + 4, shortest * 3 // 2)
        end = int(np.searchsorted(length[order], longest, side="right"))
        groups.append(order[start:end])
        start += len(groups[-1])
    return groups
