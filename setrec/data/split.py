"""Which events train, which validate, which test; and who gets which id.

What happens to the items of dropped users: a user with fewer than `min_train` training items is dropped with all
events, and ids are given after that. So an item that only dropped users touched is not in the catalogue, and an item
that kept users touch only after training is in it and is cold. That is how the official release comes out: each of its
items is in some kept user's history.
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
        """An expression over `events` (user, item, time, row) giving TRAIN, VALIDATION or TEST per event.

        Raises:
            DataError: the events cannot be split this way.
        """

    def apply(self, events: pl.DataFrame) -> pl.DataFrame:
        """`events` with a column part, without the users that have too few training items.

        Raises:
            DataError: no user is left, or the events cannot be split.
        """
        events = events.with_columns(self.parts(events).cast(pl.UInt8).alias("part"))
        kept = events.filter((pl.col("part") == TRAIN).sum().over("user") >= self.min_train)
        if not len(kept):
            raise DataError(f"no user has {self.min_train} training items; give more events or lower min_train.")
        return kept


class TimeRatioSplit(Split):
    """Global time split by shares, the paper's recipe to the letter.

    With the times of all n events sorted as t and test_num = int(test_share * n), an event tests from time
    t[-test_num] on, validates from t[-ceil(validation_factor * test_num)] on and trains before that.

    Args:
        test_share: share of all events that test (paper: 0.17).
        validation_factor: validation and test together, in units of test (paper: 1.8).
        min_train: users with fewer training items are dropped (paper: 2).
    """

    def __init__(self, test_share: float = 0.17, validation_factor: float = 1.8, min_train: int = 2) -> None:
        self.test_share, self.validation_factor, self.min_train = test_share, validation_factor, min_train

    def parts(self, events: pl.DataFrame) -> pl.Expr:
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
        validation_from: events train before this time (Unix seconds), validate from it on.
        test_from: events test from this time on.
        min_train: users with fewer training items are dropped.
    """

    def __init__(self, validation_from: int, test_from: int, min_train: int = 2) -> None:
        self.validation_from, self.test_from, self.min_train = validation_from, test_from, min_train

    def parts(self, events: pl.DataFrame) -> pl.Expr:
        if self.validation_from > self.test_from:
            raise DataError(
                f"validation_from ({self.validation_from}) is after test_from ({self.test_from}); swap them."
            )
        return _by_time(self.validation_from, self.test_from)


class LeaveOneOut(Split):
    """Each user's last event tests, the one before validates, the rest train. Looks into the future of other users.

    Args:
        min_train: users with fewer training items are dropped.
    """

    def __init__(self, min_train: int = 2) -> None:
        self.min_train = min_train

    def parts(self, events: pl.DataFrame) -> pl.Expr:
        from_end = pl.struct("time", "row").rank("ordinal", descending=True).over("user")  # 1 is the user's last
        return pl.when(from_end == 1).then(TEST).when(from_end == 2).then(VALIDATION).otherwise(TRAIN)


def _by_time(validation_from: int, test_from: int) -> pl.Expr:
    later = pl.when(pl.col("time") >= test_from).then(TEST)
    return later.when(pl.col("time") >= validation_from).then(VALIDATION).otherwise(TRAIN)


def paper_item_ids(own_ids: list[str], seed: int = 2023) -> list[str]:
    """The official order of items: own ids sorted, then shuffled by Python's random with this seed; place = item id."""
    order = sorted(own_ids)
    random.Random(seed).shuffle(order)  # the same stream as random.seed(seed); random.shuffle(order)
    return order
