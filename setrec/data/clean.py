"""Cleaning of events before they are split."""

from collections.abc import Iterator
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
        for _, kept in self.steps(events):
            events = kept
        return events

    def steps(self, events: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """Yield the name of each step and the rows that stay after it. See `apply`."""
        before = len(events)
        if self.min_rating is not None:
            if "rating" not in events.columns:
                raise DataError("cleaning.min_rating is set but the events have no rating; leave it null.")
            events = events.filter(pl.col("rating") >= self.min_rating)
            yield f"min_rating {self.min_rating:g}", events
        if self.drop_duplicates:
            ordered = events.sort(
                "time", "user", "item", "row"
            )  # equal rows become neighbours: takes less memory than hashing
            repeated = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in ("time", "user", "item"))
            events = ordered.filter(~repeated.fill_null(False)).sort("row")
            yield "drop_duplicates", events
        if self.repeats == "first":
            events = events.filter(pl.struct("time", "row").rank("ordinal").over("user", "item") == 1)
        elif self.repeats == "last":
            events = events.with_columns(first=pl.col("row").min().over("user", "item"))
            events = events.filter(pl.col("row") == pl.col("row").max().over("user", "item"))
            events = events.with_columns(row="first").drop("first").sort("row")
        if self.repeats != "keep":
            yield f"repeats {self.repeats}", events
        if self.max_user_events is not None:
            latest = pl.struct("time", "row").rank("ordinal", descending=True).over("user")
            events = events.filter(latest <= self.max_user_events)
            yield f"max_user_events {self.max_user_events}", events
        if self.k_core > 1:
            events = self._core(events)
            yield f"k_core {self.k_core}", events
        if not len(events):
            raise DataError(f"cleaning leaves none of {before} events; lower k_core ({self.k_core}) or min_rating.")

    def _core(self, events: pl.DataFrame) -> pl.DataFrame:
        enough = (pl.len().over("user") >= self.k_core) & (pl.len().over("item") >= self.k_core)
        while len(kept := events.filter(enough)) < len(events):
            events = kept
        return events
