"""Strong rivals without a neural network, which take minutes and stand in the table when they are asked for by name.

    ease    EASE (Steck, WWW 2019): the linear item-item model with a zero diagonal, in closed form
    ials    iALS (Hu, Koren, Volinsky, ICDM 2008), matrix factorisation by the package implicit

Their options are chosen on validation by Recall@10 over all items, seen masked, from training alone. They count what the other
baselines count (baselines.py). All work is on the CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from setrec.data.catalogue import Catalogue, Histories
from setrec.errors import ConfigError
from setrec.evaluation.baselines import CHOSEN, Baseline, Counted, validation_recall, what_counts
from setrec.files.ragged import Ragged
from setrec.schemas import EvalSplit, mask_of
from setrec.scoring.topk import mask_seen

Rival = Literal["ease", "ials"]
STRENGTHS = (10.0, 30.0, 100.0, 300.0, 1000.0)  # EASE's lambda
ALPHA, REGULARIZATION = (10.0, 40.0, 100.0), (0.1, 10.0)
FACTORS, ITERATIONS, SEED = 256, 15, 2023
MOST_ITEMS = 50_000  # EASE holds two matrices of N x N float32: 20 GB


def purchases(sequences: Ragged, n_items: int) -> sp.csr_matrix:
    """Who has which item, (users, N) sparse float32 of ones."""
    place = (np.repeat(np.arange(len(sequences)), sequences.lengths), sequences.items)
    table = sp.csr_matrix((np.ones(len(sequences.items), np.float32), place), (len(sequences), n_items))
    table.sum_duplicates()
    table.data[:] = 1
    return table


def histories_of(history: Tensor, n_items: int) -> sp.csr_matrix:
    """The same of a batch of histories (B, L): (B, N)."""
    real = mask_of(history)  # (B, L)
    return purchases(Ragged.from_lengths(real.sum(1).numpy(), history[real].numpy()), n_items)


class Ease(Baseline):
    """The linear model x B of least squares with penalty `strength` on B, and a diagonal of zeros.

    Args:
        counted: Histories to count in.
        strength: Lambda.
        n_items: N.
    """

    def __init__(self, counted: Counted, strength: float, n_items: int) -> None:
        self.where, self.strength = counted.where, strength
        table = purchases(counted.sequences, n_items)  # (users, N)
        gram = torch.from_numpy((table.T @ table).toarray())  # (N, N)
        gram.diagonal().add_(strength)
        lower = torch.linalg.cholesky(gram)  # (N, N)
        del gram
        inverse = torch.cholesky_inverse(lower).mT.contiguous()  # (N, N), symmetric: the transpose saves a copy
        inverse /= -inverse.diagonal().clone()  # column j by its own diagonal
        self.weights: np.ndarray = inverse.fill_diagonal_(0).numpy()  # (N, N)

    def score(self, history: Tensor) -> Tensor:
        """See `Baseline.score`."""
        return torch.from_numpy(histories_of(history, len(self.weights)) @ self.weights)  # (B, N)

    def describe(self) -> str:
        """See `Baseline.describe`."""
        return f"closed form, counted in {self.where}; lambda {self.strength:g} {CHOSEN}"


class Ials(Baseline):
    """Matrix factorisation of who has which item; the user's factors follow from the history.

    Args:
        counted: Histories to count in.
        alpha: Confidence in a purchase.
        regularization: Penalty on the factors.
        n_items: N.
    """

    def __init__(self, counted: Counted, alpha: float, regularization: float, n_items: int) -> None:
        from implicit.als import AlternatingLeastSquares  # here: an extra, see `check_rivals`
        from threadpoolctl import threadpool_limits

        self.where, self.alpha, self.regularization = counted.where, alpha, regularization
        with threadpool_limits(1, "blas"):  # implicit has threads of its own, and warns of others
            self.model: Any = AlternatingLeastSquares(
                FACTORS, regularization, alpha, iterations=ITERATIONS, random_state=SEED, use_gpu=False
            )
            self.model.fit(purchases(counted.sequences, n_items), show_progress=False)

    def score(self, history: Tensor) -> Tensor:
        """See `Baseline.score`."""
        items = self.model.item_factors  # (N, factors)
        users = self.model.recalculate_user(np.arange(len(history)), histories_of(history, len(items)))  # (B, factors)
        return torch.from_numpy(users @ items.T)  # (B, N)

    def describe(self) -> str:
        """See `Baseline.describe`."""
        return (
            f"{FACTORS} factors, {ITERATIONS} iterations, counted in {self.where}; alpha {self.alpha:g} and "
            f"regularisation {self.regularization:g} {CHOSEN}"
        )


def check_rivals(rivals: Sequence[Rival], n_items: int | None = None) -> None:
    """Check that rivals can be computed here.

    Args:
        rivals: Their names.
        n_items: N; None: not known yet.

    Raises:
        ConfigError: a package is missing, or the catalogue is too large.
    """
    if "ials" in rivals and find_spec("implicit") is None:
        raise ConfigError("--compare ials needs the package implicit: run pip install 'setrec[ials]', or leave it out.")
    if "ease" in rivals and n_items is not None and n_items > MOST_ITEMS:
        raise ConfigError(
            f"--compare ease inverts a matrix of {n_items:,} x {n_items:,}; it is meant for up to {MOST_ITEMS:,} items, so leave "
            "it out."
        )


def fit_rivals(
    rivals: Sequence[Rival], catalogue: Catalogue, histories: Histories, split: EvalSplit, train_alone: bool = False
) -> dict[str, Baseline]:
    """The rivals for a split, by name, with the options that validation chose. Arguments: see `fit_baselines`."""
    n = catalogue.n_items
    check_rivals(rivals, n)
    train = Counted(histories.train, "train")
    found: dict[str, Baseline] = {}
    for name in get_args(Rival):
        if name not in rivals:
            continue
        best, make = _CHOICES[name](catalogue, histories, train)
        for ending, counted in what_counts(histories, n, split, train_alone).items():
            found[name + ending] = best if counted.where == "train" else make(counted)
    return found


Make = Callable[[Counted], Baseline]  # with the options that validation chose


def _choose_ease(catalogue: Catalogue, histories: Histories, train: Counted) -> tuple[Baseline, Make]:
    n = catalogue.n_items
    return _choose_by_fitting([(strength,) for strength in STRENGTHS], partial(Ease, n_items=n), histories, train, n)


def _choose_ials(catalogue: Catalogue, histories: Histories, train: Counted) -> tuple[Baseline, Make]:
    n = catalogue.n_items
    options = [(alpha, strength) for alpha in ALPHA for strength in REGULARIZATION]
    return _choose_by_fitting(options, partial(Ials, n_items=n), histories, train, n)


def _choose_by_fitting(
    options: Sequence[tuple[float, ...]],
    kind: Callable[..., Baseline],
    histories: Histories,
    train: Counted,
    n_items: int,
) -> tuple[Baseline, Make]:
    """Fit a method with every option and keep the best on validation; one after another, since one may be large."""
    best: tuple[float, tuple[float, ...], Baseline] | None = None
    for option in options:
        fitted = kind(train, *option)

        def tried(history: Tensor, seen: Tensor, fitted: Baseline = fitted) -> Iterator[tuple[str, Tensor]]:
            yield "it", mask_seen(fitted.score(history), seen)  # (B, N)

        recall = validation_recall(["it"], tried, histories, n_items)["it"]
        if best is None or recall > best[0]:
            best = recall, option, fitted
    assert best is not None
    chosen = best[1]
    return best[2], lambda counted: kind(counted, *chosen)


_CHOICES: dict[Rival, Callable[[Catalogue, Histories, Counted], tuple[Baseline, Make]]] = {
    "ease": _choose_ease,
    "ials": _choose_ials,
}
