"""What a backbone keeps of the histories that it has read: keys and values. A longer history then costs its new items only.

Under the paper's mask a history token sees earlier items only, so what was computed for a history is good for every longer one.
A row of `Backbone.read` reads the items that are new to it, after the text and the items that it has read before:

    text | items read before | new items | response, queries
    `-------- past --------'   `------- computed now ------'
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Past(NamedTuple):
    """Keys and values of what was read before: those of each of the C attention layers that look at the history."""

    text: Tensor  # (C, 2, heads, n_text, d) float, the same for every history
    items: Tensor  # (B, C, 2, heads, S, d) float: S = K * the most items read before, zero at padding
    read: Tensor  # (B,) int64: items read before

    def before(self, c: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of layer c, the kept ones before the new ones: (B, heads, n_text + S + T, d) each.

        new: (B, 2, heads, T, d), keys and values of T new tokens.
        """
        text = self.text[c].expand(len(self.items), -1, -1, -1, -1)  # (B, 2, heads, n_text, d)
        key, value = torch.cat([text, self.items[:, c], new], dim=3).unbind(1)  # (B, heads, n_text + S + T, d) each
        return key, value


def past_of(text: Tensor, rows: Sequence[Tensor | None], n_slots: int) -> Past:
    """Put what was read before for several histories into one batch.

    Args:
        text: see `Past`.
        rows: for each history (C, 2, heads, its items * K, d); None: nothing was read before.
        n_slots: K.
    """
    lengths = [0 if row is None else row.shape[3] for row in rows]
    if len(rows) == 1 and rows[0] is not None:
        items = rows[0][None]  # (1, C, 2, heads, S, d)
    else:
        items = text.new_zeros(len(rows), *text.shape[:3], max(lengths, default=0), text.shape[4])
        for place, row in enumerate(rows):
            if row is not None:
                items[place, :, :, :, : row.shape[3]] = row
    return Past(text, items, torch.tensor([length // n_slots for length in lengths], device=text.device))


def rms_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """What a root-mean-square norm of transformers computes, in one operation: (any, D) -> (any, D)."""
    weight = norm.get_parameter("weight")
    return nn.functional.rms_norm(x, (x.shape[-1],), weight, norm.variance_epsilon)  # type: ignore[arg-type]
