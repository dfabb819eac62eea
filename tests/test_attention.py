"""Attention as two matrix products equals torch's, forward and backward; own dropout drops what it should."""

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from setrec.backbones import attention
from setrec.backbones.dropout import Dropout, drop, replace_dropout


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("how", ["attention_mask", "position_bias"])
def test_two_products_equal_the_fused_kernel(heads: int, shared: int, how: str) -> None:
    torch.manual_seed(0)
    query = torch.randn(3, heads, 7, 8, requires_grad=True)
    key, value = (torch.randn(3, shared, 9, 8, requires_grad=True) for _ in range(2))
    bias = torch.randn(1 if how == "position_bias" else 3, heads, 7, 9, requires_grad=True)
    module = nn.Module()
    module.num_key_value_groups = heads // shared  # type: ignore[assignment]
    module.is_causal = False  # type: ignore[assignment]
    outcomes = []
    for way in (attention.attend, sdpa_attention_forward):
        words = {"attention_mask": None, "position_bias": None} | {how: bias}
        out, _ = way(module, query, key, value, dropout=0.0, scaling=0.7, **words)
        outcomes.append((out, *torch.autograd.grad(out.square().sum(), (query, key, value, bias))))
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_long_rows_take_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MOST_WEIGHTS", 10)
    called = []
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *words, **more: called.append(1))
    x = torch.randn(1, 1, 4, 8)
    attention.attend(nn.Module(), x, x, x, torch.zeros(1, 1, 4, 4))
    assert called


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
