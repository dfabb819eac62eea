"""The events before a split: everything that may be counted when the split is evaluated."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from setrec.data.catalogue import Histories
from setrec.errors import DataError
from setrec.files.ragged import Ragged
from setrec.files.times import TICKS, UNKNOWN
from setrec.schemas import EvalSplit

DAY = 86_400 * TICKS  # microseconds


class PastEvents(NamedTuple):
    """What may be counted when a split is evaluated."""

    sequences: Ragged  # each user's items, oldest first
    newest: Tensor  # (N,) float32: the number of users whose newest item it is
    times: Ragged | None = None  # of every event, int64 microseconds, beside `sequences`; None: none is known
    worth: Ragged | None = None  # float32: how many times every event counts; None: once

    def recency(self, half_life: float) -> Tensor:
        """How often each item occurred lately, (N,) float32.

        Args:
            half_life: days after which an event counts half, before the newest of all events, which is now; events without a time
                count nothing. 0: the number of users whose newest item it is.

        Raises:
            DataError: there is a half-life, and no event has a time.
        """
        if not half_life:
            return self.newest
        known = None if self.times is None else self.times.items != UNKNOWN  # (events,)
        if self.times is None or known is None or not known.any():
            raise DataError(
                "the model counts recent events by their times, and the prepared data holds none: prepare it with times, or train "
                "again with --model.half_lives '[]'."
            )
        when = self.times.items[known]  # (events with a time,)
        counts = 0.5 ** ((when.max() - when) / (half_life * DAY))  # (events with a time,)
        if self.worth is not None:
            counts = counts * self.worth.items[known]
        recent = np.bincount(self.sequences.items[known], counts, minlength=len(self.newest))  # (N,)
        return torch.from_numpy(recent.astype(np.float32))


def past_events(histories: Histories, n_items: int, split: EvalSplit) -> PastEvents:
    """Return the events before a split: training for validation; training and validation for test.

    Args:
        histories: all users.
        n_items: the number of items, N.
        split: the split that is evaluated.
    """
    h = histories
    sequences, times, worth = h.past(split), h.facts("times", split), h.facts("worth", split)
    last = sequences.offsets[1:][sequences.lengths > 0] - 1  # (users with items,)
    counts = None if worth is None else worth.items[last]  # (users with items,)
    newest = np.bincount(sequences.items[last], counts, minlength=n_items).astype(np.float32)  # (N,)
    return PastEvents(sequences, torch.from_numpy(newest), times, worth)
