"""Grounding: from the K query outputs of the backbone to scores of the whole catalogue, without expanding the catalogue.

The score of an item sums, slot by slot, the inner product of the query output and the item's token (paper, section 3.3).
Every kind of token is linear in a narrow vector: the CF vector e(v), or the trunk code a(v). So the query output can be
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
    """Query outputs projected to the codes of the items: W^T q of the CF slots, U^T q of the semantic slots."""

    slots: list[Tensor]  # of every source, (M, n, C) float
    memory: list[Tensor] | None = (
        None  # of every source, (M, W) float: sums of raw vectors, where the model has memories
    )


def project_queries(outputs: Tensor, tokens: ItemTokens) -> ProjectedQueries:
    """Project query outputs, so that their inner products with items are taken at the widths of the codes instead of D.

    Args:
        outputs: (M, K, D) float, the query outputs of the backbone.
        tokens: The item tokenizers, whose weights W_c and U_k project.
    """
    slots, place = [], 0
    for tokenizer in tokens.tokenizers:
        projected = [
            outputs[:, place + k] @ head.get_parameter("weight") for k, head in enumerate(tokenizer.heads)
        ]  # n of (M, C)
        slots.append(torch.stack(projected, dim=1))  # (M, n, C)
        place += len(projected)
    return ProjectedQueries(slots)


def source_queries(projected: ProjectedQueries, tokens: ItemTokens) -> list[tuple[Tensor, Tensor | None]]:
    """What every source's code is multiplied with, (M, C), and what its raw vectors are multiplied with, (M, W) or None.

    The slots of a source share the item's code, so they are summed. So is the memory where the code is the raw vector.
    """
    found: list[tuple[Tensor, Tensor | None]] = []
    for s, (slots, source) in enumerate(zip(projected.slots, tokens.sources, strict=True)):
        query = slots.squeeze(1) if source.slots == 1 else slots.sum(dim=1)  # (M, C)
        memory = None if projected.memory is None else projected.memory[s]  # (M, W)
        if memory is not None and not source.autoencoder:
            query, memory = query + memory, None  # (M, W)
        elif memory is not None:
            memory = memory.to(query.dtype)  # (M, W)
        found.append((query, memory))
    return found


class UserVector(NamedTuple):
    """What a user's history gives to the score: it is multiplied with the `Index`."""

    parts: dict[str, Tensor]  # part of the score -> (M, width) float

    @property
    def cf(self) -> Tensor:
        """(M, sum(E)) float."""
        return self.parts["cf"]

    @property
    def sem(self) -> Tensor:
        """(M, H or H + F) float: the sum of the semantic slots, and the memory of text."""
        return self.parts["semantic"]


def user_vector(projected: ProjectedQueries, tokens: ItemTokens) -> UserVector:
    """Join what the sources give, part by part."""
    pieces = [[one for one in both if one is not None] for both in source_queries(projected, tokens)]
    return UserVector(by_part(pieces, tokens))


def by_part(pieces: list[list[Tensor]], tokens: ItemTokens) -> dict[str, Tensor]:
    """Put the tables of all sources that add to the same part side by side: (rows, any) each -> part -> (rows, width).

    The parts cf and semantic are always there, of width 0 without a source. pieces: of every source, its tables.
    """
    parts: dict[str, list[Tensor]] = {"cf": [], "semantic": []}
    for tables, source in zip(pieces, tokens.sources, strict=True):
        parts.setdefault(source.part, []).extend(tables)
    some = pieces[0][0]
    none = some.new_zeros(some.shape[0], 0)  # (rows, 0)
    return {
        part: torch.cat([table.to(tables[0].dtype) for table in tables], dim=1) if tables else none
        for part, tables in parts.items()
    }


class Index(NamedTuple):
    """The catalogue, ready to be scored: one row an item, [e_1(v) ... e_n(v) | a(v) | ...].

    The score of an item under any weights is one inner product of this width, sum(E) + H (192 for the paper's shapes,
    against K * D = 2,560), plus constants of the user that change no ranking. A memory of raw text adds F columns, a further
    source its code's width.
    """

    parts: dict[str, Tensor]  # part of the score -> (N, width) float
    codes: list[Tensor]  # of every source, (N, C) float: from which history tokens are made

    @property
    def cf(self) -> Tensor:
        """(N, sum(E)) float, width 0 without CF slots."""
        return self.parts["cf"]

    @property
    def sem(self) -> Tensor:
        """(N, H or H + F) float, width 0 without semantic slots."""
        return self.parts["semantic"]


def part_scores(user: UserVector, index: Index) -> dict[str, Tensor]:
    """Every part of the score of every item, (M, N) each. The score under any weights is a weighted sum of the parts."""
    return {part: query @ index.parts[part].T for part, query in user.parts.items()}  # of (M, N)
