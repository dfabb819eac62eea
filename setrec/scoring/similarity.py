"""How similar items are: by who bought them together, and by their text vectors. Scores and baselines both read this.

    co-occurrence  cosine: C(i, j) / sqrt(n_i n_j), C = how often i and j stand within 5 steps of one history
    transitions    the same, C = how often j comes soon after i, the nearest most
    text           cosine of the text vectors, plain, or sharpened: max(cosine, 0)^6
    n-grams        see char_ngrams.py

and how a history's items fade with their age.
"""

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from setrec.cf import count_cooccurrence, count_transitions
from setrec.files.ragged import Ragged
from setrec.schemas import mask_of

WINDOW = 5  # steps within which two items of a history count as a pair
POWER = 6  # of the sharpened cosine
TABLE_BYTES = 800 << 20  # item-item cosines are kept whole up to this size (N = 14,481), computed as needed above it
BLOCK = 256  # rows of a matrix product: always this many, so that its rounding does not depend on the batch


def last_items(history: Tensor, last: int) -> tuple[Tensor, Tensor]:
    """The last items of each history, newest first: (B, last) int64, 0 where none is; and (B, last) bool: is one.

    history: (B, L) int64, oldest first, padded at the end.
    """
    length = mask_of(history).sum(1, keepdim=True)  # (B, 1)
    place = length - 1 - torch.arange(last, device=history.device)  # (B, last)
    there = place >= 0  # (B, last)
    if history.shape[1] == 0:
        return torch.zeros_like(place), there
    return history.gather(1, place.clamp(min=0)).masked_fill(~there, 0), there


def faded_items(history: Tensor, last: int, decay: float) -> tuple[Tensor, Tensor]:
    """The last items of each history, newest first, and decay^age: (B, last) int64 and (B, last) float32, 0 where none is."""
    items, there = last_items(history, last)  # (B, last)
    return items, there * decay ** torch.arange(last, device=history.device)  # (B, last)


def cooccurrence_cosine(
    sequences: Ragged, n_items: int, window: int = WINDOW, worth: np.ndarray | None = None
) -> sp.csr_matrix:
    """Item-item cosine of co-occurrence, (N, N) sparse float32; no item is similar to itself.

    sequences: histories to count in, oldest item first; worth: see `count_transitions`.
    """
    return _cosine(count_cooccurrence(sequences, n_items, window, worth), sequences, worth)


def transition_cosine(
    sequences: Ragged, n_items: int, window: int, decay: float, worth: np.ndarray | None = None
) -> sp.csr_matrix:
    """How often an item comes soon after another, divided as a cosine is, (N, N) sparse float32: row, then column.

    sequences: histories to count in, oldest item first; window, decay, worth: see `count_transitions`.
    """
    return _cosine(count_transitions(sequences, n_items, window, decay, worth), sequences, worth)


def _cosine(pairs: sp.csr_matrix, sequences: Ragged, worth: np.ndarray | None) -> sp.csr_matrix:
    """Counts of pairs, (N, N) sparse, divided by sqrt(n_i n_j), in place."""
    n_items = pairs.shape[0]
    scale = 1 / np.sqrt(np.maximum(np.bincount(sequences.items, worth, minlength=n_items), 1))  # (N,)
    row = np.repeat(np.arange(n_items), np.diff(pairs.indptr))  # (pairs,)
    pairs.data = (pairs.data * scale[row] * scale[pairs.indices]).astype(np.float32)  # (pairs,)
    return pairs


class TextCosine:
    """Cosines of the items' text vectors, on the CPU.

    Args:
        text: (N, F) float text vectors; a row of zeros is similar to nothing.
        power: exponent of the sharpened cosine.
    """

    def __init__(self, text: Tensor, power: int = POWER) -> None:
        self.power = power
        self.vectors = torch.nn.functional.normalize(text.float(), dim=1)  # (N, F)
        self._table: Tensor | None = None  # (N, N) of sharpened cosines, made when first needed

    def cosines(self, rows: Tensor) -> Tensor:
        """Inner products with every item: (m, F) -> (m, N), in blocks of one size."""
        scores = torch.empty(len(rows), len(self.vectors))  # (m, N)
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]  # (up to BLOCK, F)
            full = torch.nn.functional.pad(part, (0, 0, 0, BLOCK - len(part)))  # (BLOCK, F)
            with torch.autocast("cpu", enabled=False):  # these figures don't depend on how a model is trained
                scores[start : start + BLOCK] = (full @ self.vectors.T)[: len(part)]  # (up to BLOCK, N)
        return scores

    def sharpened(self, items: Tensor) -> Tensor:
        """max(cosine, 0)^power of these items (m,) with every item: (m, N)."""
        return self.cosines(self.vectors[items]).clamp_(min=0).pow_(self.power)  # (m, N)

    def sharpened_sum(self, items: Tensor, weight: Tensor) -> Tensor:
        """Sharpened cosines summed over the items of a row: (B, n) int64 and (B, n) float32 -> (B, N) float32."""
        n_items = len(self.vectors)
        summed = torch.nn.functional.embedding_bag
        if n_items * n_items * 4 <= TABLE_BYTES:
            if self._table is None:
                self._table = torch.empty(n_items, n_items)  # (N, N)
                for start in range(0, n_items, BLOCK):
                    own = torch.arange(start, min(start + BLOCK, n_items))  # (up to BLOCK,)
                    self._table[start : start + BLOCK] = self.sharpened(own)
            return summed(items, self._table, per_sample_weights=weight, mode="sum")  # (B, N)
        scores = torch.empty(len(items), n_items)  # (B, N)
        users = BLOCK // items.shape[1]
        for start in range(0, len(items), users):
            part = items[start : start + users]  # (users, n)
            place = torch.arange(part.numel()).view(part.shape)  # (users, n)
            scores[start : start + users] = summed(
                place, self.sharpened(part.flatten()), per_sample_weights=weight[start : start + users], mode="sum"
            )  # (users, N)
        return scores
