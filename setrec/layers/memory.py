"""Memory: the weighted sum of the history's own item vectors, added to the query output. Not in the paper.

What is bought next often resembles what was bought last. The learned slots have to discover that; simple baselines get it
for free from the raw vectors. The memory of a slot gives it to the model too: it sums the history's CF or text vectors, each
with a learned weight that depends on the item's age, and the sum is added to the projected query output. It is one more
vector of the same width, so the score stays one inner product (grounding.py).
"""

import math

import torch
from torch import Tensor, nn

from setrec.schemas import Batch, mask_of

DECAY = 0.85  # a step of age: the initial weights are scale * DECAY^age


class Memory(nn.Module):
    """Sums of the history's vectors, weighted by age, for every prefix.

    Args:
        max_age: Age in items; older items share the weight of this age.
        scale: Initial weight of the newest item.
    """

    def __init__(self, max_age: int, scale: float) -> None:
        super().__init__()
        self.max_age = max_age
        # logarithms keep the weights positive, whatever the optimiser does
        self.log_weight = nn.Parameter(math.log(scale) + math.log(DECAY) * torch.arange(max_age + 1))  # (max_age + 1,)

    def forward(self, batch: Batch, vectors: Tensor) -> Tensor:
        """The memory of every prefix: vectors (N, W) float -> (M, W) float, zero for an empty history."""
        place = torch.arange(batch.history.shape[1], device=batch.history.device)  # (L,)
        age = batch.prefix[..., None] - 1 - place  # (B, P, L), 0 for the newest item that the prefix shows
        seen = (age >= 0) & mask_of(batch.history)[:, None, :]  # (B, P, L)
        weight = self.log_weight.exp()[age.clamp(0, self.max_age)] * seen  # (B, P, L)
        items = vectors[batch.unique][batch.position]  # (B, L, W)
        return (weight @ items.to(weight.dtype)).flatten(0, 1)[batch.valid]  # (M, W)
