"""Splits of events into training, validation and test, and the official order of item ids.

A user with fewer than `min_train` training items is dropped with all events, before ids are given. So an item that only
dropped users have is not in the catalogue. An item that the other users have only after training is in the catalogue and is cold.
The official release is made this way: each of its items is in the history of a user who was kept.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable

import narwhals as nw
import polars as pl

from setrec.data.clean import from_end
from setrec.data.engines import Frame, collected, count_rows, in_memory
from setrec.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2
_DAY = 86_400


class Split(ABC):
    """A way to split events. A subclass keeps its arguments in attributes of the same names."""

    min_train: int

    @abstractmethod
    def parts(self, events: Frame) -> nw.Expr:
        """Return an expression over `events` (user, item, time, row) that gives TRAIN, VALIDATION or TEST for each event.

        Any engine must be able to compute it, so it is an expression of narwhals.

        Raises:
            DataError: the events cannot be split this way.
        """

    def apply(self, events: pl.DataFrame) -> pl.DataFrame:
        """Add a column `part` to events in memory, and drop the users with too few training items.

        Raises:
            DataError: no user is left, or the events cannot be split this way.
        """
        return collected(self.divided(nw.from_native(events.lazy()), in_memory)[0])

    def divided(self, events: Frame, keep: Callable[[Frame], Frame]) -> tuple[Frame, int]:
        """The same for any engine. Returns the number of the events that stay too.

        Args:
            events: user, item, time (seconds), row: an order of at least the events of a user; and further columns.
            keep: computes a frame and keeps its rows. See `setrec.data.engines.Session.keep`.

        Raises:
            DataError: see `apply`.
        """
        events = events.with_columns(part=self.parts(events).cast(nw.Int8))
        in_training = nw.when(nw.col("part") == TRAIN).then(1).otherwise(0)
        events = events.with_columns(training=in_training)
        kept = keep(events.filter(nw.col("training").sum().over("user") >= self.min_train).drop("training"))
        left = count_rows(kept)
        if not left:
            raise DataError(f"no user has {self.min_train} training items; give more events or lower min_train.")
        return kept, left


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

    def parts(self, events: Frame) -> nw.Expr:
        """See `Split.parts`."""
        n_events = count_rows(events)
        test_num = int(self.test_share * n_events)
        later_num = math.ceil(self.validation_factor * test_num)
        if not 1 <= test_num <= later_num <= n_events:
            raise DataError(
                f"{n_events} events are too few for test_share {self.test_share} and validation_factor "
                f"{self.validation_factor}; give more events or change the shares."
            )
        return _by_time(_time_from_end(events, later_num), _time_from_end(events, test_num))


class TimestampSplit(Split):
    """Global time split at two given times.

    Args:
        validation_from: events before this time (Unix seconds) are training events, events from it on validation events.
        test_from: events from this time on are test events.
        min_train: users with fewer training items are dropped.
    """

    def __init__(self, validation_from: int, test_from: int, min_train: int = 2) -> None:
        self.validation_from, self.test_from, self.min_train = validation_from, test_from, min_train

    def parts(self, events: Frame) -> nw.Expr:
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

    def parts(self, events: Frame) -> nw.Expr:
        """See `Split.parts`."""
        before_last = nw.when(from_end() == 2).then(nw.lit(VALIDATION)).otherwise(nw.lit(TRAIN))
        return nw.when(from_end() == 1).then(nw.lit(TEST)).otherwise(before_last)


def _by_time(validation_from: int, test_from: int) -> nw.Expr:
    before_test = nw.when(nw.col("time") >= validation_from).then(nw.lit(VALIDATION)).otherwise(nw.lit(TRAIN))
    return nw.when(nw.col("time") >= test_from).then(nw.lit(TEST)).otherwise(before_test)


def _time_from_end(events: Frame, place: int) -> int:
    """The time at a place of all times in descending order, counted from 1: first its day, then within the day."""
    times = events.with_columns(day=nw.col("time") - nw.col("time") % _DAY)
    for column in ("day", "time"):
        counts = collected(times.group_by(column).agg(n=nw.len())).sort(column, descending=True)
        row = int((counts["n"].cast(pl.Int64).cum_sum() < place).sum())
        place -= int(counts["n"][:row].sum())
        found = int(counts[column][row])
        times = times.filter(nw.col(column) == found)
    return found


def paper_item_ids(own_ids: list[str], seed: int = 2023) -> list[str]:
    """Return own ids in the official order: sorted, then shuffled by Python's random with this seed. The place is the item id."""
    order = sorted(own_ids)
    random.Random(seed).shuffle(order)  # the same stream as random.seed(seed); random.shuffle(order)
    return order
