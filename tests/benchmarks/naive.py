"""The naive way, as the method reads on paper, on the weights of the project's own model.

One row per prefix, padded to the longest of the batch; the whole catalogue encoded, decoded and expanded to (K, N, D) at
every step; plain logits; in evaluation one user at a time, and everything again for every beta. float32.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from setrec.data.batches import TrainRows
from setrec.files.ragged import Ragged
from setrec.model import SETRec
from setrec.schemas import Batch, mask_of

BATCH = 128  # prefixes a step


def batches(train: Ragged, max_history: int, seed: int) -> Iterator[Batch]:
    """One prefix a row, in random order, without end."""
    rows = TrainRows(train, max_history, prefix_parallel=False)
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(rows))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield rows[order[start : start + BATCH]]


def expanded(model: SETRec) -> Tensor:
    """Every item's tokens from its vectors, (K, N, D)."""
    return model.tokens(model.codes()).transpose(0, 1).contiguous()  # (K, N, D)


def query_outputs(model: SETRec, catalogue: Tensor, batch: Batch) -> Tensor:
    """catalogue (K, N, D), one prefix a row -> (B, K, D)."""
    items = catalogue[:, batch.history.clamp(min=0)].permute(1, 2, 0, 3)  # (B, L, K, D)
    return model.backbone(items, mask_of(batch.history), batch.prefix, model.queries)[:, 0]  # (B, K, D)


def loss(model: SETRec, batch: Batch, alpha: float) -> Tensor:
    """Equations 7 to 9 of the paper, written out: mean over slots and prefixes, plus alpha * reconstruction."""
    catalogue = expanded(model)  # (K, N, D)
    outputs = query_outputs(model, catalogue, batch)  # (B, K, D)
    logits = torch.einsum("bkd,knd->bkn", outputs, catalogue)  # (B, K, N)
    n_slots = logits.shape[1]
    ranking = nn.functional.cross_entropy(logits.flatten(0, 1), batch.target[:, 0, 0].repeat_interleave(n_slots))
    decoded = model.tokens.reconstruct(model.n_cf, catalogue.transpose(0, 1))  # (N, F)
    shown = batch.history[mask_of(batch.history)]  # every history item of every row
    return ranking + alpha * (decoded[shown] - model.text[shown]).square().mean()


def scores(model: SETRec, catalogue: Tensor, batch: Batch, beta: float) -> Tensor:
    """Scores of one user under one beta, (N,)."""
    outputs = query_outputs(model, catalogue, batch)[0]  # (K, D)
    each = torch.einsum("kd,knd->kn", outputs, catalogue)  # (K, N)
    weight = torch.tensor([1 - beta] * model.n_cf + [beta] * model.n_sem)  # (K,)
    return weight @ each  # (N,)
