"""Generated data of any size for the benchmarks: a catalogue of random vectors, and histories as long as Toys'."""

import numpy as np
import torch

from setrec.data.catalogue import Catalogue, Histories
from setrec.files.ragged import Ragged

N_TOYS = 12_000  # items, the size of Toys (11,908)
TRAIN_LENGTH, TEST_LENGTH = (1.19, 1.0), (1.25, 1.2)  # lognormal, fitted to Toys: medians 5, means 7.4 and 9


def made_up_catalogue(n_items: int, text_width: int = 384, cf_width: int = 64, n_cf: int = 1) -> Catalogue:
    """Random vectors; the last twentieth of the items is cold, as in Toys."""
    generator = torch.Generator().manual_seed(0)
    count = torch.ones(n_items, dtype=torch.int64)  # (N,)
    count[n_items - n_items // 20 :] = 0
    return Catalogue(
        name=f"made up, {n_items} items",
        ids=[str(i) for i in range(n_items)],
        titles=[""] * n_items,
        text=torch.randn(n_items, text_width, generator=generator).div_(text_width**0.5),
        cf=tuple(torch.randn(n_items, cf_width, generator=generator) for _ in range(n_cf)),
        present=(count > 0,) * n_cf,
        count=count,
        fingerprint="",
    )


def made_up_rows(users: int, n_items: int, length: tuple[float, float] = TRAIN_LENGTH, seed: int = 0) -> Ragged:
    """Item ids by popularity (Zipf), rows of two and more items whose lengths are lognormal.

    Args:
        length: mean and standard deviation of the logarithm of a row's length beyond two.
    """
    rng = np.random.default_rng(seed)
    lengths = 2 + rng.lognormal(*length, users).astype(np.int64)  # (users,)
    warm = n_items - n_items // 20
    popularity = np.cumsum(1.0 / (rng.permutation(warm) + 20) ** 0.8)  # (warm,)
    items = np.searchsorted(popularity, rng.random(lengths.sum()) * popularity[-1])
    return Ragged.from_lengths(lengths, items)


def equal_rows(users: int, n_items: int, length: int, seed: int = 0) -> Ragged:
    """Rows of one length, items uniform."""
    rng = np.random.default_rng(seed)
    return Ragged.from_lengths(np.full(users, length), rng.integers(0, n_items, users * length))


def histories(train: Ragged) -> Histories:
    """Histories with training rows only."""
    empty = Ragged.from_lengths(np.zeros(len(train), np.int64), np.zeros(0, np.int32))
    return Histories([str(u) for u in range(len(train))], train, empty, empty)
