"""What the histories of a split hold about the items, and what a model is fitted to."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from setrec.data.catalogue import Histories, Ragged

FitOn = Literal["train", "half_validation", "validation"]
Split = Literal["validation", "test"]


class Known(NamedTuple):
    """What may be counted when a split is answered."""

    sequences: Ragged  # everybody's items, oldest first
    recent: Tensor  # (N,) float32: occurrences in the newest period, none where no period is newer than another


def fitted(histories: Histories, fit_on: FitOn) -> np.ndarray:
    """(users,) bool: whose validation items a model with this `fit_on` is fitted to; half: every other one of those."""
    has = histories.validation.lengths > 0  # (users,)
    if fit_on == "train":
        return np.zeros_like(has)
    return has & (np.cumsum(has) % 2 == 1) if fit_on == "half_validation" else has


def known(histories: Histories, n_items: int, split: Split, fit_on: FitOn) -> Known:
    """What a model may count when it answers a split.

    Test is answered after validation: everything before it is known, and a model that was fitted to the validation period
    may count that period apart. While validation is answered, only the users that the model was fitted to are known there;
    they stand for all, so what they did in that period counts twice.
    """
    shown = fitted(histories, fit_on)  # (users,)
    counted = shown if split == "validation" else histories.validation.lengths > 0  # (users,)
    newest = kept(histories.validation, counted)
    recent = np.zeros(n_items, np.float32)
    if fit_on != "train":
        whole = len(histories.validation.items) / max(len(newest.items), 1)
        recent = (whole * np.bincount(newest.items, minlength=n_items)).astype(np.float32)  # (N,)
    return Known(histories.train.joined(newest), torch.from_numpy(recent))


def kept(rows: Ragged, which: np.ndarray) -> Ragged:
    """The same rows, empty where `which` (rows,) is False."""
    return Ragged.from_lengths(np.where(which, rows.lengths, 0), rows.items[np.repeat(which, rows.lengths)])
