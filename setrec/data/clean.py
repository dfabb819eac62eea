"""Cleaning of events before they are split."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import narwhals as nw
import numpy as np
import polars as pl

from setrec.data.engines import Frame, collected, count_rows, in_memory
from setrec.errors import DataError


@dataclass(frozen=True)
class Cleaning:
    """What happens to raw events before the split. A data set that comes with its splits is not cleaned.

    Args:
        min_rating: drop events with a lower rating (paper: null, keep all).
        drop_duplicates: of events with the same user, item and second, keep the first.
        repeats: what to do if a user has several events with the same item: keep all, or only the first or the last (paper:
            last; it takes the first one's place among events of the same second. The paper's raw files have no repeats).
        k_core: drop users and items with fewer events than this, again and again until none is left (paper: 5; 0: off).
        max_user_events: keep only each user's last events, this many, before the k-core (paper: null, keep all).
    """

    min_rating: float | None = None
    drop_duplicates: bool = True
    repeats: Literal["keep", "first", "last"] = "keep"
    k_core: int = 5
    max_user_events: int | None = None

    def apply(self, events: pl.DataFrame) -> pl.DataFrame:
        """Clean events in memory.

        Args:
            events: user and item (any type), time int64, row (place in the raw file), optionally rating.

        Returns:
            The rows that stay, in order of `row`.

        Raises:
            DataError: min_rating is set and there are no ratings, or no event is left.
        """
        frame = nw.from_native(events.lazy())
        *_, (_, kept, _) = [("", frame, 0), *self.steps(frame, in_memory)]
        return collected(kept).sort("row")

    def steps(self, events: Frame, keep: Callable[[Frame], Frame]) -> Iterator[tuple[str, Frame, int]]:
        """Yield the name of each step, the rows that stay after it, and how many. No result depends on the order of the rows.

        Args:
            events: user, item, time, row: an order of at least the events of a user; optionally rating, and further columns.
            keep: computes a frame and keeps its rows. See `setrec.data.engines.Session.keep`.

        Raises:
            DataError: see `apply`.
        """
        before = left = count_rows(events)
        if self.min_rating is not None:
            types = events.collect_schema()
            if "rating" not in types:
                raise DataError("cleaning.min_rating is set but the events have no rating; leave it null.")
            least = float(np.float32(self.min_rating)) if types["rating"] == nw.Float32 else self.min_rating
            events = keep(events.filter(nw.col("rating") >= least))
            left = count_rows(events)
            yield f"min_rating {self.min_rating:g}", events, left
        if self.drop_duplicates:
            events = keep(events.filter(nw.col("row") == nw.col("row").min().over("user", "item", "time")))
            left = count_rows(events)
            yield "drop_duplicates", events, left
        if self.repeats == "first":
            earliest = nw.when(nw.col("time") == nw.col("time").min().over("user", "item")).then(nw.col("row"))
            events = events.with_columns(earliest=earliest)
            events = keep(
                events.filter(nw.col("row") == nw.col("earliest").min().over("user", "item")).drop("earliest")
            )
        elif self.repeats == "last":
            first, last = (end.over("user", "item") for end in (nw.col("row").min(), nw.col("row").max()))
            events = events.with_columns(first=first, last=last).filter(nw.col("row") == nw.col("last"))
            events = keep(events.with_columns(row=nw.col("first")).drop("first", "last"))
        if self.repeats != "keep":
            left = count_rows(events)
            yield f"repeats {self.repeats}", events, left
        if self.max_user_events is not None:
            events = events.with_columns(from_end=from_end())
            events = keep(events.filter(nw.col("from_end") <= self.max_user_events).drop("from_end"))
            left = count_rows(events)
            yield f"max_user_events {self.max_user_events}", events, left
        if self.k_core > 1:
            enough = (nw.len().over("user") >= self.k_core) & (nw.len().over("item") >= self.k_core)
            while True:
                events, more = keep(events.filter(enough)), left
                if (left := count_rows(events)) == more:
                    break
            yield f"k_core {self.k_core}", events, left
        if not left:
            raise DataError(f"cleaning leaves none of {before} events; lower k_core ({self.k_core}) or min_rating.")


def from_end() -> nw.Expr:
    """1 for the last event of a user, 2 for the one before, and so on: by time, then by row."""
    return nw.col("row").cum_count(reverse=True).over("user", order_by=["time", "row"])
