"""Attention as two matrix products on a CPU, where training with torch's fused kernel is slower.

At SETRec's sizes the backward pass of the fused CPU kernel takes ten times as long as that of the products (bfloat16, 57 x 4 heads
x 45 queries x 41 keys: 28 ms against 2.7 ms on one core, torch 2.13, 2026-11-23). The fused kernel is still used on a GPU, and
for rows so long that the attention weights would fill the memory.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from setrec.backbones.dropout import drop

NAME = "setrec"  # the name of `attend` among transformers' attention implementations
# attention weights of one layer: 64 MiB in float32; a T5 of 2 + 2 layers keeps about 10 such blocks for the backward pass
MOST_WEIGHTS = 1 << 24


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute softmax(q k^T * scaling + mask + bias) v.

    Args:
        module: The attention layer, for the fused kernel.
        query: (B, heads, Q, d) float.
        key: (B, fewer heads, T, d) float; a head of the keys serves several neighbouring heads of the queries.
        value: As `key`.
        attention_mask: (B or 1, heads or 1, Q, T) float, added to the logits.
        dropout: Probability of dropout on the attention weights.
        scaling: Factor of the products; None: d^-0.5.
        position_bias: As `attention_mask`.
        **kwargs: What transformers passes to every attention function.

    Returns:
        (B, Q, heads, d) float, and None in place of the weights.
    """
    bias = position_bias if attention_mask is None else attention_mask
    both = attention_mask is not None and position_bias is not None
    n_weights = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    if query.device.type != "cpu" or bias is None or both or n_weights > MOST_WEIGHTS:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, position_bias=position_bias, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)  # (B, heads, T, d)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if scale != 1.0:
        query = query * scale  # (B, heads, Q, d)
    weights = torch.matmul(query, key.transpose(2, 3)).add_(bias).softmax(dim=-1)  # (B, heads, Q, T)
    if dropout:
        weights = drop(weights, dropout)  # (B, heads, Q, T)
    return torch.matmul(weights.to(value.dtype), value).transpose(1, 2).contiguous(), None  # (B, Q, heads, d)


AttentionInterface.register(NAME, attend)
