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
    newest: Tensor  # (N,) float32: the users whose newest item it is, each as many times as that counts
    worth: Ragged | None = None  # float32, beside `sequences`: how many times every event counts; None: once


def past_events(histories: Histories, n_items: int, split: EvalSplit) -> PastEvents:
    """Return the events before a split: training for validation; training and validation for test.

    Not all prepared data has times. So the recent items are those at the end of the users' histories.

    Args:
        histories: all users.
        n_items: the number of items, N.
        split: the split that is evaluated.
    """
    h = histories
    sequences, worth = h.past(split), h.beside("worth", split)
    last = sequences.offsets[1:][sequences.lengths > 0] - 1  # (users with items,)
    counts = None if worth is None else worth.items[last]  # (users with items,)
    newest = np.bincount(sequences.items[last], counts, minlength=n_items).astype(np.float32)  # (N,)
    return PastEvents(sequences, torch.from_numpy(newest), worth)
