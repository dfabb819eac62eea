"""Dropout with four decisions from one random number: its mean, its share, its seed."""

import pytest
import torch
from torch import nn

from setrec.backbones.dropout import Dropout, drop, replace_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_drops_its_share(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(3, 33_333, dtype=dtype, requires_grad=True)
    y = drop(x, 0.1)
    assert y.dtype == dtype
    share = (y == 0).double().mean()
    assert abs(share - 0.1) < 5 * (0.09 / 99_999) ** 0.5
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.9))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())  # dropped where the number was


def test_dropout_follows_the_seed_and_neighbours_are_independent() -> None:
    torch.manual_seed(7)
    one = drop(torch.ones(200_000), 0.5)
    torch.manual_seed(7)
    assert torch.equal(one, drop(torch.ones(200_000), 0.5))
    zero = one == 0
    for step in (1, 2, 3, 4):  # four decisions come from one random number
        together = (zero[step:] & zero[:-step]).double().mean()
        assert abs(together - 0.25) < 5 * (0.1875 / 200_000) ** 0.5


def test_dropout_in_place_of_torchs() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.3)))
    replace_dropout(model)
    inner = model[1][0]
    assert type(inner) is Dropout
    assert inner.p == 0.3
    x = torch.randn(5, 4)
    assert torch.equal(inner.eval()(x), x)
    assert (drop(x, 1.0) == 0).all()
    assert drop(x, 0.0) is x
