"""Order of a user's events of the same time: by chance, the same on every machine and for every order of the rows.

The order of the ids, or that of the file, may tell something about an item: a file is often sorted. If tied events followed it, the
last ones of a basket, which are what is tested, would be the same items again and again.
"""

from hashlib import blake2b
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of splitmix64


def tie_keys(users: list[str], items: list[str], events: pl.DataFrame, ticks: int = 1) -> np.ndarray:
    """Return a number for each event that looks random and depends on user, item and time only.

    Args:
        users: own ids.
        items: own ids.
        events: user (place in `users`), item (place in `items`), time int64.
        ticks: of the time in a second; whole seconds count, whatever the unit of the file.

    Returns:
        (events,) uint64.
    """
    user, item = events["user"].to_numpy(), events["item"].to_numpy()  # (events,)
    time = (events["time"].to_numpy() // ticks).astype(np.uint64)  # (events,)
    return mixed(mixed(mixed(id_hashes(users)[user]) ^ id_hashes(items)[item]) ^ time)  # (events,)


def share_of_ties(events: pl.DataFrame) -> float:
    """The share of events that have the user and the time in common with an event of another item."""
    counts: tuple[int, int] = tied_events(nw.from_native(events.lazy())).collect().row(0)
    return counts[0] / max(counts[1], 1)


def tied_events(events: "nw.LazyFrame[Any]") -> "nw.LazyFrame[Any]":
    """Count the events, each user, time and item once: `tied` with another of the user, and `items`, all of them."""
    of_moment = events.select("user", "time", "item").unique().group_by("user", "time").agg(items=nw.len())
    of_moment = of_moment.with_columns(tied=nw.when(nw.col("items") > 1).then(nw.col("items")).otherwise(0))
    return of_moment.select(nw.col("tied", "items").sum().cast(nw.Int64))


def id_hashes(ids: list[str]) -> np.ndarray:
    """What `tie_keys` takes from ids, (ids,) uint64."""
    digests = b"".join(blake2b(own.encode("utf8", "surrogatepass"), digest_size=8).digest() for own in ids)
    return np.frombuffer(digests, "<u8").astype(np.uint64)  # (ids,)


def mixed(number: np.ndarray) -> np.ndarray:
    """The mixing function of splitmix64: every bit of the input changes half of the output."""
    number = number + np.uint64(MIX[0])
    number = (number ^ (number >> np.uint64(30))) * np.uint64(MIX[1])
    number = (number ^ (number >> np.uint64(27))) * np.uint64(MIX[2])
    last: np.ndarray = number ^ (number >> np.uint64(31))
    return last
