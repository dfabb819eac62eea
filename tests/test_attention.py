"""Attention as two matrix products equals torch's, forward and backward."""

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from setrec.backbones import attention


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
