"""Intervals and tests against scipy and against numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from setrec.report.statistics import bootstrap, holm, interval, sign_flip_p, wilcoxon_p


def sparse_differences(seed: int, n: int, shift: float) -> np.ndarray:
    """Like differences of NDCG: mostly zero."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < 0.3, rng.normal(shift, 1, n), 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_sign_flips_equal_scipys_exact_test(seed: int) -> None:
    difference = np.random.default_rng(seed).normal(0.4, 1, 9)
    expected = stats.permutation_test(
        (difference, np.zeros(9)), lambda a, b, axis: (a - b).mean(axis), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(difference, 1000, 0) == pytest.approx(expected.pvalue, abs=1e-12)
    padded = np.concatenate([difference, np.zeros(40)])  # users whom both serve alike change nothing
    assert sign_flip_p(padded, 1000, 0) == pytest.approx(expected.pvalue, abs=1e-12)


def test_sign_flips_by_hand() -> None:
    assert sign_flip_p(np.array([1.0, 2.0, 3.0]), 100, 0) == 2 / 8  # only +++ and --- are as far out
    assert sign_flip_p(np.array([1.0, -1.0]), 100, 0) == 1
    assert sign_flip_p(np.zeros(5), 100, 0) == 1
    assert sign_flip_p(np.full(200, 0.1), 999, 0) == 1 / 1000  # never below


def test_drawn_sign_flips_agree_with_scipys() -> None:
    for seed, shift in ((0, 0.0), (1, 0.3), (2, 0.5)):
        difference = sparse_differences(seed, 200, shift)
        expected = stats.permutation_test(
            (difference, np.zeros(200)),
            lambda a, b, axis: (a - b).mean(axis),
            permutation_type="samples",
            n_resamples=4000,
            vectorized=True,
            rng=np.random.default_rng(7),
        )
        got = sign_flip_p(difference, 20_000, seed)
        assert got == pytest.approx(expected.pvalue, abs=0.03)
        assert got == sign_flip_p(difference, 20_000, seed)  # the same report twice


def test_wilcoxon_is_scipys() -> None:
    difference = sparse_differences(3, 100, 0.2)
    assert wilcoxon_p(difference) == stats.wilcoxon(difference[difference != 0]).pvalue
    assert wilcoxon_p(np.zeros(4)) == 1


def test_holm_by_hand() -> None:
    # ascending .005 .01 .03 .04 times 4 3 2 1 are .02 .03 .06 .04, and the last must not fall below .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_bootstrap_interval_agrees_with_scipys() -> None:
    values = np.random.default_rng(0).exponential(1.0, 300)
    ones = np.ones((300, 1))
    low, high = interval(bootstrap(values[:, None], ones, 8000, 1)[:, 0], 0.9)
    expected = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, method="percentile", n_resamples=8000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert [low, high] == pytest.approx([expected.low, expected.high], abs=0.012)  # its width is about 0.2


def test_bootstrap_columns_share_the_drawn_users() -> None:
    values = np.random.default_rng(0).random(50)
    both = np.stack([values, values + 0.25], axis=1)  # (n, 2)
    samples = bootstrap(both, np.ones_like(both), 500, 0)
    assert samples[:, 1] - samples[:, 0] == pytest.approx(0.25)
    assert samples[:, 0].std() > 0.01


def test_bootstrap_of_a_ratio_holds_users_together() -> None:
    """Users with 1 or 3 targets, of which all or none are found: the ratio's spread is that of users, not of targets."""
    found = np.array([3.0, 0.0] * 50)
    asked = np.array([3.0, 1.0] * 50)
    samples = bootstrap(found[:, None], asked[:, None], 4000, 0)[:, 0]
    drawn = np.random.default_rng(5).binomial(100, 0.5, 4000)  # users of the first kind
    expected = 3 * drawn / (3 * drawn + (100 - drawn))
    assert samples.mean() == pytest.approx(expected.mean(), abs=0.003)
    assert samples.std() == pytest.approx(expected.std(), rel=0.08)


def test_an_interval_of_nothing_is_nothing() -> None:
    samples = bootstrap(np.zeros((4, 1)), np.zeros((4, 1)), 100, 0)[:, 0]
    assert np.isnan(interval(samples, 0.95)).all()
    assert interval(np.array([np.nan, 1.0, 3.0]), 0.5) == (1.5, 2.5)
