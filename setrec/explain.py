"""Why an item is recommended: what each slot contributes, and what in the history it resembles."""

from typing import NamedTuple

import torch
from torch import Tensor

from setrec.model import SETRec
from setrec.schemas import Batch, mask_of

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


def explain(
    parts: dict[str, Tensor], text: Nearest, cf: Nearest, user: int, places: list[int], ids: list[str]
) -> list[Why]:
    """The explanations of one row of a batch, as plain values.

    Args:
        parts: name -> (B, k) float on the CPU, see `SETRecModule.parts`.
        text, cf: on the CPU.
        user: the row.
        places: those of the list that hold an item.
        ids: the items' own ids.
    """

    def named(found: Nearest, place: int) -> list[tuple[str, float]]:
        pairs = zip(found.item[user, place].tolist(), found.cosine[user, place].tolist(), strict=True)
        return [(ids[item], cosine) for item, cosine in pairs if cosine != -torch.inf]

    return [
        Why({name: float(values[user, j]) for name, values in parts.items()}, named(text, j), named(cf, j))
        for j in places
    ]
