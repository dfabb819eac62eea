"""Dropout that doesn't cost more than the layer before it on a CPU."""

from typing import Any

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16  # 16 random bits decide over a number: probabilities are multiples of 1/65,536


class _Drop(torch.autograd.Function):
    """x -> x * noise, which is 0 or 1 / (share kept)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, level: int) -> Tensor:
        n = x.numel()
        bits = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)  # (n or more,)
        noise = (bits[:n] >= level - _LEVELS // 2).to(x.dtype).view(x.shape).mul_(_LEVELS / (_LEVELS - level))
        ctx.save_for_backward(noise)
        return x * noise

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (noise,) = ctx.saved_tensors
        return grad * noise, None


def drop(x: Tensor, p: float) -> Tensor:
    """x with each number set to 0 with probability p, the rest scaled up. Any shape, any float; returns the same.

    On a CPU it draws four decisions from one 64-bit random number, torch's own way one from each. Drawn from torch's
    generator, so that seeding works as ever; p is rounded to a multiple of 1/65,536.
    """
    level = round(p * _LEVELS)
    if x.device.type != "cpu" or level == _LEVELS:
        return nn.functional.dropout(x, p)
    return _Drop.apply(x, level) if level else x


class Dropout(nn.Dropout):
    """As nn.Dropout, by `drop`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, any float; returns the same."""
        return drop(x, self.p) if self.training else x


def replace_dropout(module: nn.Module) -> None:
    """Put `Dropout` in the place of every nn.Dropout below `module`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
