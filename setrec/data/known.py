"""What the histories of a split hold about the items, and what a model is fitted to."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from setrec.data.catalogue import Histories, Ragged

FitOn = Literal["train", "validation"]
Split = Literal["validation", "test"]


class Known(NamedTuple):
    """What may be counted when a split is answered."""

    sequences: Ragged  # everybody's items, oldest first
    recent: Tensor  # (N,) float32: users whose newest item it is


def known(histories: Histories, n_items: int, split: Split) -> Known:
    """Everything before the split: training for validation, training and validation for test.

    Prepared data keeps the order of a user's items and no times, so what is recent among all users is what stands at the
    end of their histories.
    """
    h = histories
    sequences = h.train if split == "validation" else h.train.joined(h.validation)
    newest = sequences.items[sequences.offsets[1:][sequences.lengths > 0] - 1]  # (users with items,)
    recent = np.bincount(newest, minlength=n_items).astype(np.float32)  # (N,)
    return Known(sequences, torch.from_numpy(recent))
