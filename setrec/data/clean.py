"""Cleaning of events before they are split."""

from dataclasses import dataclass
from typing import Literal

import polars as pl

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
        """Clean events.

        Args:
            events: user and item (any type), time int64, row (place in the raw file), optionally rating.

        Returns:
            The rows that stay, in the same order.

        Raises:
            DataError: min_rating is set and there are no ratings, or no event is left.
        """
        before = len(events)
        if self.min_rating is not None:
            if "rating" not in events.columns:
                raise DataError("cleaning.min_rating is set but the events have no rating; leave it null.")
            events = events.filter(pl.col("rating") >= self.min_rating)
        if self.drop_duplicates:
            ordered = events.sort(
                "time", "user", "item", "row"
            )  # equal rows become neighbours: takes less memory than hashing
            repeated = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in ("time", "user", "item"))
            events = ordered.filter(~repeated.fill_null(False)).sort("row")
        if self.repeats == "first":
            events = events.filter(pl.struct("time", "row").rank("ordinal").over("user", "item") == 1)
        elif self.repeats == "last":
            events = events.with_columns(first=pl.col("row").min().over("user", "item"))
            events = events.filter(pl.col("row") == pl.col("row").max().over("user", "item"))
            events = events.with_columns(row="first").drop("first").sort("row")
        if self.max_user_events is not None:
            latest = pl.struct("time", "row").rank("ordinal", descending=True).over("user")
            events = events.filter(latest <= self.max_user_events)
        while self.k_core > 1:
            enough = (pl.len().over("user") >= self.k_core) & (pl.len().over("item") >= self.k_core)
            kept = events.filter(enough)
            if len(kept) == len(events):
                break
            events = kept
        if not len(events):
            raise DataError(f"cleaning leaves none of {before} events; lower k_core ({self.k_core}) or min_rating.")
        return events
