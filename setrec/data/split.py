"""Splits of events into training, validation and test, and the official order of item ids.

A user with fewer than `min_train` training items is dropped with all events, before ids are given. So an item that only
dropped users have is not in the catalogue. An item that the other users have only after training is in the catalogue and is cold.
The official release is made this way: each of its items is in the history of a user who was kept.
"""

import math
import random
from abc import ABC, abstractmethod

import polars as pl

from setrec.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2


class Split(ABC):
    """A way to split events. A subclass keeps its arguments in attributes of the same names."""

    min_train: int

    @abstractmethod
    def parts(self, events: pl.DataFrame) -> pl.Expr:
        """Return an expression over `events` (user, item, time, row) that gives TRAIN, VALIDATION or TEST for each event.

        Raises:
            DataError: the events cannot be split this way.
        """

    def apply(self, events: pl.DataFrame) -> pl.DataFrame:
        """Add a column `part` to events, and drop the users with too few training items.

        Raises:
            DataError: no user is left, or the events cannot be split this way.
        """
        events = events.with_columns(self.parts(events).cast(pl.UInt8).alias("part"))
        kept = events.filter((pl.col("part") == TRAIN).sum().over("user") >= self.min_train)
        if not len(kept):
            raise DataError(f"no user has {self.min_train} training items; give more events or lower min_train.")
        return kept


class TimeRatioSplit(Split):
    """Global time split by shares, exactly as in the paper.

    Let t be the sorted times of all n events, and test_num = int(test_share * n). Events from time t[-test_num] on are test
    events. Of the events before, those from t[-ceil(validation_factor * test_num)] on are validation events. The rest are
    training events.

    Args:
        test_share: share of all events that become test events (paper: 0.17).
        validation_factor: validation and test events together, as a multiple of the test events (paper: 1.8).
        min_train: users with fewer training items are dropped (paper: 2).
    """

    def __init__(self, test_share: float = 0.17, validation_factor: float = 1.8, min_train: int = 2) -> None:
        self.test_share, self.validation_factor, self.min_train = test_share, validation_factor, min_train

    def parts(self, events: pl.DataFrame) -> pl.Expr:
        """See `Split.parts`."""
        times = events["time"].sort()
        test_num = int(self.test_share * len(times))
        later_num = math.ceil(self.validation_factor * test_num)
        if not 1 <= test_num <= later_num <= len(times):
            raise DataError(
                f"{len(times)} events are too few for test_share {self.test_share} and validation_factor "
                f"{self.validation_factor}; give more events or change the shares."
            )
        return _by_time(times[-later_num], times[-test_num])


class TimestampSplit(Split):
    """Global time split at two given times.

    Args:
        validation_from: events before this time (Unix seconds) are training events, events from it on validation events.
        test_from: events from this time on are test events.
        min_train: users with fewer training items are dropped.
    """

    def __init__(self, validation_from: int, test_from: int, min_train: int = 2) -> None:
        self.validation_from, self.test_from, self.min_train = validation_from, test_from, min_train

    def parts(self, events: pl.DataFrame) -> pl.Expr:
        """See `Split.parts`."""
        if self.validation_from > self.test_from:
            raise DataError(
                f"validation_from ({self.validation_from}) is after test_from ({self.test_from}); swap them."
            )
        return _by_time(self.validation_from, self.test_from)


class LeaveOneOut(Split):
    """Each user's last event is for test, the one before for validation, the rest for training.

    Training then holds events of other users that happened after a user's test event.

    Args:
        min_train: users with fewer training items are dropped.
    """

    def __init__(self, min_train: int = 2) -> None:
        self.min_train = min_train

    def parts(self, events: pl.DataFrame) -> pl.Expr:
        """See `Split.parts`."""
        from_end = pl.struct("time", "row").rank("ordinal", descending=True).over("user")  # 1 is the user's last
        return pl.when(from_end == 1).then(TEST).when(from_end == 2).then(VALIDATION).otherwise(TRAIN)


def _by_time(validation_from: int, test_from: int) -> pl.Expr:
    later = pl.when(pl.col("time") >= test_from).then(TEST)
    return later.when(pl.col("time") >= validation_from).then(VALIDATION).otherwise(TRAIN)


def paper_item_ids(own_ids: list[str], seed: int = 2023) -> list[str]:
    """Return own ids in the official order: sorted, then shuffled by Python's random with this seed. The place is the item id."""
    order = sorted(own_ids)
    random.Random(seed).shuffle(order)  # the same stream as random.seed(seed); random.shuffle(order)
    return order
