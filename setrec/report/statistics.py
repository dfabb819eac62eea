"""Intervals and tests over users: bootstrap, paired sign flips, Wilcoxon, Holm. Plain functions of numpy arrays.

The unit of every resampling is the user: two targets of one user are not independent, two users are. Everything is drawn from a
seed, so a report made twice is the same.
"""

from collections.abc import Sequence

import numpy as np
from rich.progress import track
from scipy import stats

BLOCK = 200  # resamples drawn at once
EXACT = 16  # up to this many differing users all 2^n sign flips are gone through
TINY = 1e-12  # sums of the same differences in another order are not to count as different


def bootstrap(
    numerator: np.ndarray, denominator: np.ndarray, resamples: int, seed: int, what: str = "bootstrap"
) -> np.ndarray:
    """Ratios of sums over users drawn with replacement: for a plain mean the denominator is 1 for everyone.

    All columns share the drawn users, so that the difference of two columns is a paired one.

    Args:
        numerator: (n, C) float64.
        denominator: (n, C) float64.
        resamples: how many times n users are drawn.
        seed: of the draws.
        what: named by the progress bar.

    Returns:
        (resamples, C) float64; NaN where the drawn users' denominator is 0.
    """
    n, n_columns = numerator.shape
    rng = np.random.default_rng(seed)
    both = np.concatenate([numerator, denominator], axis=1)  # (n, 2C)
    made = np.empty((resamples, 2 * n_columns))
    for start in track(range(0, resamples, BLOCK), what, transient=True, disable=resamples * n < 1 << 24):
        rows = min(BLOCK, resamples - start)
        drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n  # (rows, n)
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(
            rows, n
        )  # (rows, n): how often each user is drawn
        made[start : start + rows] = times.astype(np.float64) @ both  # (rows, 2C)
    with np.errstate(divide="ignore", invalid="ignore"):
        return made[:, :n_columns] / made[:, n_columns:]


def interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The percentile interval of bootstrap samples (resamples,); NaN where there are none."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def sign_flip_p(difference: np.ndarray, permutations: int, seed: int) -> float:
    """Two-sided p of the paired permutation test of the mean: would it be as far from 0 if the two methods were exchangeable?

    Exchanging the two methods for a user flips the sign of the difference. All combinations of signs where they are few
    (the exact p, as scipy.stats.permutation_test with permutation_type "samples"), drawn ones else: then it is never below
    1 / (permutations + 1).

    Args:
        difference: (n,) float64, one method's figure minus the other's, a user each. Zeros change nothing.
        permutations: how many combinations are drawn.
        seed: of the draws.
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
    """Two-sided p of Wilcoxon's signed-rank test, users without a difference left out; 1 where there are no others."""
    difference = difference[difference != 0]
    return float(stats.wilcoxon(difference).pvalue) if len(difference) else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the i-th smallest of m (from 0) times m - i, never below a smaller one's, at most 1."""
    p = np.asarray(p_values, np.float64)  # (m,)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected.tolist()
