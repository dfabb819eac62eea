"""Grounding: from the K answers of the backbone to scores of the whole catalogue, without expanding the catalogue.

Slot by slot, the score of an item is the inner product of the answer and the item's token (paper, section 3.3). Both
kinds of token are linear in something narrow, so the product moves to the narrow side:

    <q, U a(v) + u> = <U^T q, a(v)> + <q, u>

The last term is the same for every item: it cancels in the softmax and in the ranking, and is dropped. What is left needs
the catalogue only as (N, E) and (N, H), never as (N, K, D). Differs from the released code, which expands (K, N, D).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from setrec.layers.tokens import ItemTokens


class Folded(NamedTuple):
    """Answers folded onto the narrow side of their slots."""

    cf: list[Tensor]  # n_cf of (M, E_c) float
    sem: Tensor | None  # (M, n_sem, H) float
    text: Tensor | None = None  # (M, F) float: the memory of raw text vectors, where the model has one


def fold(answers: Tensor, tokens: ItemTokens) -> Folded:
    """answers (M, K, D) -> the same inner products with items, taken at widths E and H instead of D."""
    cf = [answers[:, c] @ project.get_parameter("weight") for c, project in enumerate(tokens.cf)]  # n_cf of (M, E_c)
    if not tokens.n_sem:
        return Folded(cf, None)
    sem = [
        answers[:, tokens.n_cf + k] @ head.get_parameter("weight") for k, head in enumerate(tokens.heads)
    ]  # n_sem of (M, H)
    return Folded(cf, torch.stack(sem, dim=1))  # (M, n_sem, H)


class Index(NamedTuple):
    """The catalogue, ready to be scored: one row an item, [e_1(v) ... e_n(v) | a(v)].

    The score of an item under any beta is one inner product of this width, sum(E) + H (192 for the paper's shapes,
    against K * D = 2,560), plus constants of the user that change no ranking. A memory of raw text adds F columns.
    """

    cf: Tensor  # (N, sum(E)) float, width 0 without CF slots
    sem: Tensor  # (N, H or H + F) float, width 0 without semantic slots
    codes: Tensor  # (N, H) float: the trunk codes alone, from which history tokens are made


class UserRow(NamedTuple):
    """The users' side of the index."""

    cf: Tensor  # (M, sum(E)) float
    sem: Tensor  # (M, H or H + F) float, the semantic slots' sum, and the memory of text


def user_row(folded: Folded) -> UserRow:
    """Folded answers -> what meets an `Index`: CF slots side by side, semantic slots summed."""
    some = folded.sem if folded.sem is not None else folded.cf[0]
    cf = torch.cat(folded.cf, dim=1) if folded.cf else some.new_zeros(some.shape[0], 0)  # (M, sum(E))
    sem = folded.sem.sum(dim=1) if folded.sem is not None else some.new_zeros(some.shape[0], 0)  # (M, H)
    if folded.text is not None:
        sem = torch.cat([sem, folded.text.to(sem.dtype)], dim=1)  # (M, H + F)
    return UserRow(cf, sem)


def weigh(user: UserRow, beta: float) -> Tensor:
    """The user's row under one beta: (1 - beta) of the CF slots beside beta of the semantic ones, (M, sum(E) + H)."""
    return torch.cat([(1 - beta) * user.cf, beta * user.sem], dim=1)  # (M, sum(E) + H)


def part_scores(user: UserRow, index: Index) -> tuple[Tensor, Tensor]:
    """CF and semantic scores of every item, (M, N) each: every beta is a weighted sum of these two."""
    return user.cf @ index.cf.T, user.sem @ index.sem.T  # (M, N), (M, N)
