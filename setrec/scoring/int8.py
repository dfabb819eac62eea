"""Inner products between two bounds, from rows of 8-bit integers: a quarter of the memory to read, and exact lists.

A table Y is kept as integers too, Y = scale * q + error. An inner product with a user's row x is then

    <x, y> = <x', scale * q>  +  something no larger than  |x - x'| |scale * q| + |x| |error|

where x' is x as the sum of two rows of integers. The products of integers are exact. So an item whose upper bound lies under the
k-th largest lower bound is not among the k best, and only the others, a few dozen of 12,000, need their exact product.

Columns are divided by their standard deviation first (and the user's row is multiplied by it), since one scale serves a whole row.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 4_096  # items from which bounds are faster than all products
SLACK = 1e-5  # of |x| |y|: for the rounding of sums in float32


class Int8User(NamedTuple):
    """Users' rows as integers."""

    high: Tensor  # (B, W) int8
    low: Tensor  # (B, W) int8: what `high` leaves over
    high_scale: Tensor  # (B, 1) float32
    low_scale: Tensor  # (B, 1) float32
    left: Tensor  # (B, 1) float32: length of what both leave over
    length: Tensor  # (B, 1) float32: of the row itself


class Int8Table:
    """A catalogue's rows as integers. table: (N, W) float, on a CPU."""

    def __init__(self, table: Tensor) -> None:
        self.columns = table.std(dim=0).float().clamp(min=1e-6)  # (W,)
        blocks = [self._rows(rows.float() / self.columns) for rows in table.split(65_536)]
        self.code, self.scale, self.length, self.error = (torch.cat(parts) for parts in zip(*blocks, strict=True))

    def _rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Integers (n, W), and of each row its scale, the length of scale * integers, and that of the error, (n,) each."""
        code, scale = _integers(rows)  # (n, W), (n, 1)
        near = code * scale  # (n, W)
        return code, scale[:, 0], near.norm(dim=1), (rows - near).norm(dim=1)

    def user(self, rows: Tensor) -> Int8User:
        """Users' rows, (B, W) float, as integers."""
        rows = rows.float() * self.columns  # (B, W)
        high, high_scale = _integers(rows)  # (B, W), (B, 1)
        rest = rows - high * high_scale  # (B, W)
        low, low_scale = _integers(rest)  # (B, W), (B, 1)
        left = (rest - low * low_scale).norm(dim=1, keepdim=True)  # (B, 1)
        return Int8User(high, low, high_scale, low_scale, left, rows.norm(dim=1, keepdim=True))

    def bounds(self, user: Int8User, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The middle of the bounds of items start to stop, and how far they are from it, (B, n) float32 each."""
        code = self.code[start:stop].T  # (W, n)
        if len(user.high) == 1:  # two products of one row take less time than one of two rows
            high, low = torch._int_mm(user.high, code), torch._int_mm(user.low, code)  # (1, n) int32 each
        else:
            high, low = torch._int_mm(torch.cat([user.high, user.low]), code).chunk(2)  # (B, n) int32 each
        middle = torch.addcmul(high * user.high_scale, low, user.low_scale)  # (B, n)
        middle *= self.scale[start:stop]
        apart = user.length * (self.error[start:stop] + SLACK * self.length[start:stop])  # (B, n)
        return middle, apart.add_(user.left * self.length[start:stop])


def _integers(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as integers from -127 to 127, (any, W) int8, and their scale, (any, 1) float32."""
    scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127  # (any, 1)
    return (rows / scale).round_().to(torch.int8), scale


@cache
def exact_products() -> bool:
    """Whether products of 8-bit integers are exact here: old processors cut large sums off."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(-127, 128, (64, 256), dtype=torch.int8, generator=generator)  # (n, W)
    table[:2] = torch.tensor([[127], [-127]], dtype=torch.int8)
    rows = table[:8]  # (b, W)
    try:
        found = torch._int_mm(rows, table.T)  # (b, n) int32
    except RuntimeError:
        return False
    return bool((found.long() == rows.long() @ table.long().T).all())
