"""Why an item is recommended: what each part adds to its score, and the most similar items of the history."""

from typing import NamedTuple

import torch
from torch import Tensor

from setrec.layers.grounding import Index
from setrec.model import SETRec
from setrec.schemas import PAD, Batch, mask_of
from setrec.scoring.scorer import Scorer
from setrec.scoring.weights import Weights

NEAREST = 3  # most similar items of the history, for each kind of vector


class Why(NamedTuple):
    """Why one item is recommended."""

    parts: dict[str, float]  # part of the score -> what it adds; the sum is the score
    nearest_text: list[
        tuple[str, float]
    ]  # (own id, cosine) of items of the history by text vectors, most similar first
    nearest_cf: list[tuple[str, float]]  # the same by CF vectors; empty for an item without one
    like: tuple[str, float] | None = None  # with diversity: the most similar item above it, and the cosine
    left_out: tuple[tuple[str, str], ...] = ()  # (own id, column) of better items that a cap left out here


class Nearest(NamedTuple):
    """The items of the history that are most similar to each ranked item."""

    item: Tensor  # (B, k, n) int64 item ids, most similar first, n up to NEAREST
    cosine: Tensor  # (B, k, n) float, -inf for padding


def nearest_by_text(model: SETRec, batch: Batch, items: Tensor) -> Nearest:
    """Find them by the text vectors, which the semantic slots are made from. items: (B, k) int64, no padding."""
    return nearest(model.text, batch.history, items)


def nearest_by_cf(index: Index, batch: Batch, items: Tensor) -> Nearest:
    """Find them by the CF vectors as the model reads them, concatenated over CF slots. items: (B, k) int64, no padding."""
    return nearest(index.cf, batch.history, items)


def nearest(table: Tensor, history: Tensor, items: Tensor) -> Nearest:
    """Find the items of each history with the highest cosine to each ranked item.

    Args:
        table: (N, W) float, the vectors; a zero row has no direction and is never found.
        history: (B, L) int64, padded.
        items: (B, k) int64, no padding.
    """
    past, ranked = table[history.clamp(min=0)].float(), table[items].float()  # (B, L, W), (B, k, W)
    lengths = ranked.norm(dim=-1)[:, :, None] * past.norm(dim=-1)[:, None, :]  # (B, k, L)
    cosine = (ranked @ past.transpose(1, 2)) / lengths.clamp(min=1e-12)  # (B, k, L)
    later = torch.ones(history.shape[1], history.shape[1], dtype=torch.bool, device=history.device).triu(1)  # (L, L)
    repeated = ((history[:, :, None] == history[:, None, :]) & later).any(dim=-1)  # (B, L): the last occurrence counts
    valid = (mask_of(history) & ~repeated)[:, None, :] & (lengths > 0)  # (B, k, L)
    best = cosine.masked_fill(~valid, -torch.inf).topk(min(NEAREST, history.shape[1]), dim=-1)  # (B, k, n)
    item = history[:, None, :].expand_as(cosine).gather(2, best.indices)  # (B, k, n)
    return Nearest(item, best.values)


def explain(
    scorer: Scorer, batch: Batch, weights: Weights, items: Tensor, ids: list[str], outputs: Tensor | None = None
) -> list[list[Why]]:
    """Explain each ranked item.

    Args:
        scorer: what scored the items.
        batch: B histories.
        weights: the weights of the score.
        items: (B, k) int64, padded.
        ids: the own ids of the catalogue.
        outputs: (B, K, D) float, the query outputs of the histories, where they are known.

    Returns:
        B lists, one Why for each item that is not padding.
    """
    real = items.clamp(min=0)  # (B, k)
    parts = scorer.explain(batch, weights, real, outputs)
    values = torch.stack(list(parts.values()), dim=-1).float().tolist()  # B lists of k lists of parts
    text = to_own_ids(nearest_by_text(scorer.model, batch, real), ids)
    cf = to_own_ids(nearest_by_cf(scorer.index, batch, real), ids)
    return [
        [
            Why(dict(zip(parts, values[b][j], strict=True)), text[b][j], cf[b][j])
            for j, item in enumerate(row)
            if item != PAD
        ]
        for b, row in enumerate(items.tolist())
    ]


def to_own_ids(found: Nearest, ids: list[str]) -> list[list[list[tuple[str, float]]]]:
    """Turn item ids into own ids and leave out padding: B lists of k lists of up to n pairs (own id, cosine)."""
    return [
        [
            [(ids[item], cosine) for item, cosine in zip(*pair, strict=True) if cosine != -torch.inf]
            for pair in zip(items, cosines, strict=True)
        ]
        for items, cosines in zip(found.item.tolist(), found.cosine.tolist(), strict=True)
    ]
