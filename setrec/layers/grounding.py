"""Grounding: from the K query outputs of the backbone to scores of the whole catalogue, without expanding the catalogue.

The score of an item sums, slot by slot, the inner product of the query output and the item's token (paper, section 3.3).
Both kinds of token are linear in a narrow vector: the CF vector e(v), or the trunk code a(v). So the query output can be
projected to that narrow width once, instead of widening every item:

    <q, U a(v) + u> = <U^T q, a(v)> + <q, u>

The last term is the same for every item. It changes neither the softmax nor the ranking, and is dropped. The catalogue is
needed only as (N, E) and (N, H), never as (N, K, D). Differs from the released code, which expands (N, K, D).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from setrec.layers.tokens import ItemTokens


class ProjectedQueries(NamedTuple):
    """Query outputs projected to the widths E and H: W^T q of the CF slots, U^T q of the semantic slots."""

    cf: list[Tensor]  # n_cf of (M, E_c) float
    sem: Tensor | None  # (M, n_sem, H) float
    text: Tensor | None = None  # (M, F) float: the memory of raw text vectors, where the model has one


def project_queries(outputs: Tensor, tokens: ItemTokens) -> ProjectedQueries:
    """Project query outputs, so that their inner products with items are taken at widths E and H instead of D.

    Args:
        outputs: (M, K, D) float, the query outputs of the backbone.
        tokens: The item tokenizers, whose weights W_c and U_k project.
    """
    cf = [outputs[:, c] @ layer.get_parameter("weight") for c, layer in enumerate(tokens.cf)]  # n_cf of (M, E_c)
    if not tokens.n_sem:
        return ProjectedQueries(cf, None)
    sem = [
        outputs[:, tokens.n_cf + k] @ head.get_parameter("weight") for k, head in enumerate(tokens.heads)
    ]  # n_sem of (M, H)
    return ProjectedQueries(cf, torch.stack(sem, dim=1))  # (M, n_sem, H)


class UserVector(NamedTuple):
    """What a user's history gives to the score: it is multiplied with the `Index`."""

    cf: Tensor  # (M, sum(E)) float
    sem: Tensor  # (M, H or H + F) float: the sum of the semantic slots, and the memory of text


def user_vector(projected: ProjectedQueries) -> UserVector:
    """Join the slots: CF slots side by side, semantic slots summed (they share the item's code)."""
    some = projected.sem if projected.sem is not None else projected.cf[0]
    cf = torch.cat(projected.cf, dim=1) if projected.cf else some.new_zeros(some.shape[0], 0)  # (M, sum(E))
    sem = projected.sem.sum(dim=1) if projected.sem is not None else some.new_zeros(some.shape[0], 0)  # (M, H)
    if projected.text is not None:
        sem = torch.cat([sem, projected.text.to(sem.dtype)], dim=1)  # (M, H + F)
    return UserVector(cf, sem)


class Index(NamedTuple):
    """The catalogue, ready to be scored: one row an item, [e_1(v) ... e_n(v) | a(v)].

    The score of an item under any beta is one inner product of this width, sum(E) + H (192 for the paper's shapes,
    against K * D = 2,560), plus constants of the user that change no ranking. A memory of raw text adds F columns.
    """

    cf: Tensor  # (N, sum(E)) float, width 0 without CF slots
    sem: Tensor  # (N, H or H + F) float, width 0 without semantic slots
    codes: Tensor  # (N, H) float: the trunk codes alone, from which history tokens are made


def part_scores(user: UserVector, index: Index) -> tuple[Tensor, Tensor]:
    """CF and semantic scores of every item, (M, N) each. The score under any beta is a weighted sum of the two."""
    return user.cf @ index.cf.T, user.sem @ index.sem.T  # (M, N), (M, N)
