"""The events before a split: everything that may be counted when the split is evaluated."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from setrec.data.catalogue import Histories
from setrec.files.ragged import Ragged
from setrec.schemas import EvalSplit


class PastEvents(NamedTuple):
    """What may be counted when a split is evaluated."""

    sequences: Ragged  # each user's items, oldest first
    newest: Tensor  # (N,) float32: the number of users whose newest item it is
    worth: object = None
    times: object = None

    def decayed(self, n_items, days):
        t = self.times.items
        now = t.max()
        w = 0.5 ** ((now - t) / (days * 86_400e6))
        return torch.from_numpy(np.bincount(self.sequences.items, w, minlength=n_items).astype(np.float32))


def past_events(histories: Histories, n_items: int, split: EvalSplit) -> PastEvents:
    """Return the events before a split: training for validation; training and validation for test.

    Not all prepared data has times. So the recent items are those at the end of the users' histories.

    Args:
        histories: all users.
        n_items: the number of items, N.
        split: the split that is evaluated.
    """
    h = histories
    sequences = h.train if split == "validation" else h.train.joined(h.validation)
    last = sequences.items[sequences.offsets[1:][sequences.lengths > 0] - 1]  # (users with items,)
    newest = np.bincount(last, minlength=n_items).astype(np.float32)  # (N,)
    b = h.beside(split)
    return PastEvents(sequences, torch.from_numpy(newest), b.worth, b.times)
