"""Intervals and tests over users: bootstrap, paired sign flips, Wilcoxon, Holm. Functions of numpy arrays.

Users are resampled, not targets: two targets of one user are not independent, two users are. Everything is drawn from a seed, so
the same report comes out twice.
"""

from collections.abc import Sequence

import numpy as np
from rich.progress import track
from scipy import stats

BLOCK = 200  # resamples drawn at once
EXACT = 16  # up to this many users with a difference, all 2^n sign flips are computed
TINY = 1e-12  # sums of the same numbers in another order count as equal


def bootstrap(
    numerator: np.ndarray, denominator: np.ndarray, resamples: int, seed: int, what: str = "bootstrap"
) -> np.ndarray:
    """Ratios of sums over users drawn with replacement; for a mean, the denominator is 1 for every user.

    All columns share the drawn users, so the difference of two columns is a paired one.

    Args:
        numerator: (n, C) float64.
        denominator: (n, C) float64.
        resamples: How many times n users are drawn.
        seed: Seed of the draws.
        what: Label of the progress bar.

    Returns:
        (resamples, C) float64; NaN where the drawn users' denominator is 0.
    """
    n, n_columns = numerator.shape
    rng = np.random.default_rng(seed)
    both = np.concatenate([numerator, denominator], axis=1)  # (n, 2C)
    sums = np.empty((resamples, 2 * n_columns))  # (resamples, 2C)
    for start in track(range(0, resamples, BLOCK), what, transient=True, disable=resamples * n < 1 << 24):
        rows = min(BLOCK, resamples - start)
        drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n  # (rows, n)
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)  # (rows, n): draws of each user
        sums[start : start + rows] = times.astype(np.float64) @ both  # (rows, 2C)
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, :n_columns] / sums[:, n_columns:]  # (resamples, C)


def interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The percentile interval of bootstrap samples, (resamples,); NaN if all of them are."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def sign_flip_p(difference: np.ndarray, permutations: int, seed: int) -> float:
    """Two-sided p of the paired permutation test: how often is the mean as far from 0 if methods are exchanged at random?

    Exchanging the two methods for a user flips the sign of the difference. With few users all combinations of signs are computed
    (the exact p, as in scipy.stats.permutation_test with permutation_type "samples"). With more, combinations are drawn, and p is
    never below 1 / (permutations + 1).

    Args:
        difference: (n,) float64, one method's metric minus the other's for each user. Zeros change nothing.
        permutations: How many combinations are drawn.
        seed: Seed of the draws.
    """
    difference = difference[difference != 0]
    n = len(difference)
    if not n:
        return 1.0
    least = abs(difference.sum()) - TINY * np.abs(difference).sum()
    if n <= EXACT:
        flips = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1  # (2^n, n)
        sums = (1 - 2 * flips) @ difference  # (2^n,)
        return float((np.abs(sums) >= least).mean())
    rng = np.random.default_rng(seed)
    extreme, done = 0, 0
    while done < permutations:
        rows = min(BLOCK * 10, permutations - done)
        bits = np.unpackbits(rng.integers(256, size=(rows, (n + 7) // 8), dtype=np.uint8), axis=1, count=n)  # (rows, n)
        sums = difference.sum() - 2 * (bits.astype(np.float64) @ difference)  # (rows,)
        extreme += int((np.abs(sums) >= least).sum())
        done += rows
    return (extreme + 1) / (permutations + 1)


def wilcoxon_p(difference: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test over the users with a difference; 1 if there are none."""
    difference = difference[difference != 0]
    return float(stats.wilcoxon(difference).pvalue) if len(difference) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the i-th smallest p of m, i from 0, is multiplied by m - i; it stays in order and at most 1."""
    p = np.asarray(p_values, np.float64)  # (m,)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected.tolist()
