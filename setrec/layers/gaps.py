"""Time as a part of item tokens: how long after the event before it an event happened. Not in the paper."""

import torch
from torch import Tensor, nn

STEPS = 14  # gaps of 1 s, 4 s, 16 s ... 2 years end a bucket


class GapTokens(nn.Module):
    """A learned vector for every bucket of gaps, and for the place in a session; all slots of an item get the same.

    Args:
        width: D.
        session_gap: seconds without an event that end a session; None: no sessions.
    """

    def __init__(self, width: int, gaps: bool, session_gap: float | None = None) -> None:
        super().__init__()
        self.session_gap = session_gap
        self.by_gap = nn.Embedding(STEPS + 2, width) if gaps else None
        self.by_place = nn.Embedding(8, width) if session_gap else None
        for table in (self.by_gap, self.by_place):
            if table is not None:
                nn.init.zeros_(table.weight)

    def forward(self, gap: Tensor) -> Tensor:
        """gap (B, L) int64 -> (B, L, D)."""
        total = 0
        if self.by_gap is not None:
            edges = 1_000_000 * 4 ** torch.arange(STEPS, device=gap.device)
            bucket = torch.bucketize(gap, edges, right=True) + 1
            total = total + self.by_gap(bucket.masked_fill(gap < 0, 0))
        if self.by_place is not None:
            new = (gap < 0) | (gap > self.session_gap * 1_000_000)
            at = torch.arange(gap.shape[1], device=gap.device).expand_as(gap)
            begin = torch.where(new, at, 0).cummax(1).values
            total = total + self.by_place((at - begin).clamp(max=7))
        return total
