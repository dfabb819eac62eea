"""Why an item is recommended: what each slot contributes, and what in the history it resembles."""

from typing import NamedTuple

import torch
from torch import Tensor

from setrec.model import SETRec
from setrec.schemas import PAD, Batch, mask_of
from setrec.scoring.scorer import Scorer
from setrec.scoring.weights import Weights

NEAREST = 3  # history items named for each kind of vector


class Why(NamedTuple):
    """One recommendation explained."""

    parts: dict[str, float]  # slot or memory -> what it adds to the score; they add up to it
    nearest_text: list[tuple[str, float]]  # own ids of history items by cosine of the text vectors, closest first
    nearest_cf: list[tuple[str, float]]  # the same by the CF vectors; empty for an item without any


class Nearest(NamedTuple):
    """The history items closest to each ranked item."""

    item: Tensor  # (B, k, n) int64 item ids, closest first, n up to NEAREST
    cosine: Tensor  # (B, k, n) float, -inf where there is no such item


def nearest_by_text(model: SETRec, batch: Batch, items: Tensor) -> Nearest:
    """By the text vectors that the semantic slots are made from. items: (B, k) int64, no padding."""
    return nearest(model.text, batch.history, items)


def nearest_by_cf(model: SETRec, batch: Batch, items: Tensor) -> Nearest:
    """By the CF vectors as the model sees them, all CF slots side by side. items: (B, k) int64, no padding."""
    tables = model.cf
    return nearest(torch.cat(tables, dim=1) if tables else model.text[:, :0], batch.history, items)


def nearest(table: Tensor, history: Tensor, items: Tensor) -> Nearest:
    """Cosines between ranked items and the distinct items of each history.

    Args:
        table: (N, W) float; a zero row has no direction and is close to nothing.
        history: (B, L) int64, padded.
        items: (B, k) int64.
    """
    shown, asked = table[history.clamp(min=0)].float(), table[items].float()  # (B, L, W), (B, k, W)
    lengths = asked.norm(dim=-1)[:, :, None] * shown.norm(dim=-1)[:, None, :]  # (B, k, L)
    cosine = (asked @ shown.transpose(1, 2)) / lengths.clamp(min=1e-12)  # (B, k, L)
    later = torch.ones(history.shape[1], history.shape[1], dtype=torch.bool, device=history.device).triu(1)  # (L, L)
    repeated = ((history[:, :, None] == history[:, None, :]) & later).any(dim=-1)  # (B, L): the last occurrence counts
    there = (mask_of(history) & ~repeated)[:, None, :] & (lengths > 0)  # (B, k, L)
    best = cosine.masked_fill(~there, -torch.inf).topk(min(NEAREST, history.shape[1]), dim=-1)
    item = history[:, None, :].expand_as(cosine).gather(2, best.indices)  # (B, k, n)
    return Nearest(item, best.values)


def explain(scorer: Scorer, batch: Batch, weights: Weights, items: Tensor, ids: list[str]) -> list[list[Why]]:
    """Why each item of each list.

    Args:
        scorer: what scored them.
        batch: B histories.
        weights: under which they were scored.
        items: (B, k) int64, padded.
        ids: the catalogue's own ids.

    Returns:
        B lists, one Why for each item that is no padding.
    """
    real = items.clamp(min=0)  # (B, k)
    parts = scorer.explain(batch, weights, real)
    values = torch.stack(list(parts.values()), dim=-1).float().tolist()  # B lists of k lists of parts
    text = named(nearest_by_text(scorer.model, batch, real), ids)
    cf = named(nearest_by_cf(scorer.model, batch, real), ids)
    return [
        [
            Why(dict(zip(parts, values[b][j], strict=True)), text[b][j], cf[b][j])
            for j, item in enumerate(row)
            if item != PAD
        ]
        for b, row in enumerate(items.tolist())
    ]


def named(found: Nearest, ids: list[str]) -> list[list[list[tuple[str, float]]]]:
    """In own ids, without the places where there is no such item: B lists of k lists of up to n pairs."""
    return [
        [
            [(ids[item], cosine) for item, cosine in zip(*pair, strict=True) if cosine != -torch.inf]
            for pair in zip(items, cosines, strict=True)
        ]
        for items, cosines in zip(found.item.tolist(), found.cosine.tolist(), strict=True)
    ]
