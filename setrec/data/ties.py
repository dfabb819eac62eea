"""Order of a user's events of the same time: by chance, the same on every machine and for every order of the rows.

The order of the ids, or that of the file, may tell something about an item: a file is often sorted. If tied events followed it, the
last ones of a basket, which are what is tested, would be the same items again and again.
"""

from hashlib import blake2b

import numpy as np
import polars as pl


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
    return _mixed(_mixed(_mixed(_hashes(users)[user]) ^ _hashes(items)[item]) ^ time)  # (events,)


def share_of_ties(events: pl.DataFrame) -> float:
    """The share of events that have the user and the time in common with an event of another item."""
    different = events.select("user", "time", "item").unique()
    tied = different.select(pl.struct("user", "time").is_duplicated().sum()).item()
    return float(tied) / max(len(different), 1)


def _hashes(ids: list[str]) -> np.ndarray:
    digests = b"".join(blake2b(own.encode("utf8", "surrogatepass"), digest_size=8).digest() for own in ids)
    return np.frombuffer(digests, "<u8").astype(np.uint64)  # (ids,)


def _mixed(number: np.ndarray) -> np.ndarray:
    """The mixing function of splitmix64: every bit of the input changes half of the output."""
    number = number + np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = number ^ (number >> np.uint64(31))
    return mixed
