"""Which items the softmax of the loss runs over: the whole catalogue, its warm items, or a sample of either.

The sampled softmax. With s_v the score of item v and T the targets of the batch, the sum over the catalogue

    Z = sum over v of exp(s_v)   is estimated by   sum over v in T of exp(s_v) + sum over drawn v not in T of exp(s_v - log q_v)

where q_v is how often v is expected to be drawn (the logQ correction of Bengio and Senecal, 2008). The targets are always in
the sum, so they get no correction. The estimate of Z is unbiased for every batch, and exact when every item is drawn.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from setrec.schemas import PAD, mask_of


class SoftmaxItems(NamedTuple):
    """The items that one softmax runs over, one column each."""

    items: Tensor | None  # (C,) int64 item ids; a column that is left out may hold any; None: every item, in order
    target: Tensor  # (M, A) int64: the columns of every prefix's targets, padded
    log_q: Tensor | None = None  # (C,) float32, subtracted from the logits; inf: the column is left out; None: zeros


class Negatives(nn.Module):
    """Chooses the items of the softmax for every batch.

    Args:
        targets: (N,) bool, which items can be a target in training.
        count: (N,) int64, how often each item occurs in training.
        which: `all` items, or only `warm` ones, those that can be a target.
        sampled: How many of them to draw for a batch, besides its targets; None: take them all.
        sampling: `uniform`, all with the same probability; `popularity`, in proportion to (count + 1)^0.75, but no item is
            expected more than once.
    """

    def __init__(
        self,
        targets: Tensor,
        count: Tensor,
        which: Literal["all", "warm"] = "all",
        sampled: int | None = None,
        sampling: Literal["uniform", "popularity"] = "uniform",
    ) -> None:
        super().__init__()
        n_items = len(targets)
        self.every = which == "all" and sampled is None
        everything = torch.arange(
            n_items, device=targets.device
        )  # (N,): Lightning builds models inside `with torch.device(...)`
        allowed = everything if which == "all" else targets.nonzero().flatten()  # (n,)
        self.n_drawn = None if sampled is None else min(sampled, len(allowed))
        # not in checkpoints: these follow from the catalogue
        self.allowed: Tensor
        self.register_buffer("allowed", allowed, persistent=False)  # (n,)
        self.place: Tensor
        self.register_buffer("place", torch.searchsorted(allowed, everything), persistent=False)  # (N,)
        if self.n_drawn is not None:
            weight = torch.ones_like(allowed) if sampling == "uniform" else (count[allowed] + 1).float() ** 0.75  # (n,)
            expected = expected_draws(weight.double(), self.n_drawn)  # (n,)
            self.edges: Tensor
            self.register_buffer("edges", expected.cumsum(0), persistent=False)  # (n,)
            self.log_expected: Tensor
            self.register_buffer("log_expected", expected.log().float(), persistent=False)  # (n,)

    def forward(self, target: Tensor, distinct: int | None = None) -> SoftmaxItems:
        """The items for a batch; with sampling the targets come first, one column each.

        Args:
            target: (M, A) int64 item ids, padded.
            distinct: The most distinct items that the targets can be, so that the device need not be asked; None: M * A.
        """
        if self.every:
            return SoftmaxItems(None, target)
        real = mask_of(target)  # (M, A)
        if self.n_drawn is None:
            return SoftmaxItems(self.allowed, torch.where(real, self.place[target.clamp(min=0)], PAD))
        n_items = len(self.place)
        ordered = torch.where(real, target, n_items).flatten().sort().values  # (M * A,): padding comes last
        first = torch.ones_like(ordered)  # (M * A,)
        first[1:] = ordered[1:] != ordered[:-1]
        # one place more, since padding counts as an item here
        asked = ordered.new_full(((distinct or len(ordered)) + 1,), n_items)  # (distinct + 1,)
        asked = asked.scatter_(0, first.cumsum(0) - 1, ordered)[:-1]  # (distinct,): ascending, then padding
        drawn = self.draw(target.device)  # (n_drawn,)
        items = self.allowed[drawn]  # (n_drawn,)
        again = asked[torch.searchsorted(asked, items).clamp(max=len(asked) - 1)] == items  # (n_drawn,): is a target
        log_q = torch.cat([torch.zeros_like(asked, dtype=torch.float32), self.log_expected[drawn]])  # (C,)
        log_q = log_q.masked_fill(torch.cat([asked == n_items, again]), torch.inf)  # (C,)
        column = torch.where(real, torch.searchsorted(asked, target), PAD)  # (M, A)
        return SoftmaxItems(torch.cat([asked.clamp(max=n_items - 1), items]), column, log_q)

    def draw(self, device: torch.device) -> Tensor:
        """Draw places in `allowed`, (n_drawn,) int64; place v is expected exp(log_expected[v]) times.

        Systematic sampling: every item is a segment as long as its expected draws, on a line of length n_drawn; one random
        point is drawn in every unit of the line, and selects the segment that it falls in.
        """
        assert self.n_drawn is not None
        n = len(self.edges)
        if self.n_drawn == n:
            return torch.arange(n, device=device)  # (n,)
        steps = torch.arange(self.n_drawn, device=device, dtype=torch.float64)  # (n_drawn,)
        points = steps + torch.rand(self.n_drawn, device=device, dtype=torch.float64)  # (n_drawn,)
        return torch.searchsorted(self.edges, points, right=True).clamp(max=n - 1)  # (n_drawn,)


def expected_draws(weight: Tensor, n_drawn: int) -> Tensor:
    """How often each item is expected among n_drawn: in proportion to its weight, but at most once.

    Args:
        weight: (n,) float64.
        n_drawn: Items that are drawn.

    Returns:
        (n,) float64, with the sum n_drawn, or 1 for every item where n_drawn is n or more.
    """
    if n_drawn >= len(weight):
        return torch.ones_like(weight)
    high, order = weight.sort(descending=True)  # (n,)
    rest = high.flip(0).cumsum(0).flip(0)  # (n,): the weight of this item and all lighter ones
    left = n_drawn - torch.arange(
        len(weight), dtype=weight.dtype, device=weight.device
    )  # (n,): draws left if all heavier ones take one each
    full = int((high * left > rest).long().cumprod(0).sum())  # these heaviest items are drawn once each
    expected = torch.ones_like(weight)  # (n,)
    expected[order[full:]] = high[full:] * (n_drawn - full) / rest[full]
    return expected
