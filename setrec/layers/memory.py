"""Memory: an answer that repeats, with fading weights, the vectors of the items it was given.

The learned slots have to rediscover that what is bought next resembles what was bought last; simple baselines get that for
free from raw vectors. The memory of a slot gives it to the model as well: the sum of the history's own vectors, weighted by
a learned weight per age, added to the folded answer. Because it is one more vector in the same narrow space, scores stay one
inner product (grounding.py). Not in the paper.
"""

import math

import torch
from torch import Tensor, nn

from setrec.schemas import Batch, mask_of

DECAY = 0.85  # a step; where the learned weights start


class Memory(nn.Module):
    """Age-weighted sums of the history's vectors, for every prefix.

    Args:
        max_age: Older items share the weight of this age; items.
        scale: Factor that the weights start with.
    """

    def __init__(self, max_age: int, scale: float) -> None:
        super().__init__()
        self.max_age = max_age
        # as logarithms: weights stay positive and fade smoothly wherever the optimiser takes them
        self.log_weight = nn.Parameter(math.log(scale) + math.log(DECAY) * torch.arange(max_age + 1))  # (max_age + 1,)

    def forward(self, batch: Batch, vectors: Tensor) -> Tensor:
        """vectors: (N, W) float; returns (M, W) float, zero for an empty history."""
        place = torch.arange(batch.history.shape[1], device=batch.history.device)  # (L,)
        age = batch.prefix[..., None] - 1 - place  # (B, P, L), 0 for the newest item that the prefix shows
        seen = (age >= 0) & mask_of(batch.history)[:, None, :]  # (B, P, L)
        weight = self.log_weight.exp()[age.clamp(0, self.max_age)] * seen  # (B, P, L)
        items = vectors[batch.unique][batch.position]  # (B, L, W)
        return (weight @ items.to(weight.dtype)).flatten(0, 1)[batch.valid]  # (M, W)
