"""What the histories hold before a split is answered: all that may be counted then."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from setrec.data.catalogue import Histories
from setrec.files.ragged import Ragged
from setrec.schemas import EvalSplit


class PastEvents(NamedTuple):
    """What may be counted when a split is answered."""

    sequences: Ragged  # everybody's items, oldest first
    newest: Tensor  # (N,) float32: users whose newest item it is


def past_events(histories: Histories, n_items: int, split: EvalSplit) -> PastEvents:
    """Everything before the split: training for validation, training and validation for test.

    Prepared data keeps the order of a user's items and no times, so what is recent among all users is what stands at the
    end of their histories.
    """
    h = histories
    sequences = h.train if split == "validation" else h.train.joined(h.validation)
    last = sequences.items[sequences.offsets[1:][sequences.lengths > 0] - 1]  # (users with items,)
    newest = np.bincount(last, minlength=n_items).astype(np.float32)  # (N,)
    return PastEvents(sequences, torch.from_numpy(newest))
