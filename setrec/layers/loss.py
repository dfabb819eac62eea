"""Cross-entropy over the full catalogue, without ever holding the logits of a batch."""

from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 3 * 1024 * 1024  # logits held at a time: 12 MiB in float32, small enough to stay near the caches


class _CatalogueCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of (R, W) queries against an (N, W) table; gradients are made in the forward pass.

    The softmax is needed for the loss and for the gradient. Taken a chunk of rows at a time, its gradient is folded into
    (R, W) and (N, W) at once and the chunk is forgotten: three matrix products, no recomputation, O(chunk * N) memory.
    All chunks share one buffer: a fresh one would be handed over by the system page by page, at twice the cost of the
    arithmetic. The gradient is (softmax - one hot) * weight; the one hot part is taken apart, on (R, W) only.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        table: Tensor,
        target: Tensor,
        weight: Tensor,
        trained: slice,
        log_share: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        needs_queries, needs_table = ctx.needs_input_grad[:2]
        n_rows, n_items = queries.shape[0], table.shape[0]
        kind = queries.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else queries.dtype
        exact = torch.promote_types(queries.dtype, torch.float32)  # of softmax and sums, whatever the products are in
        losses = torch.empty(n_rows, dtype=exact, device=queries.device)  # (R,)
        d_queries = torch.empty_like(queries) if needs_queries else None  # (R, W)
        d_table = torch.zeros_like(table[:, trained], dtype=exact) if needs_table else None  # (N, trained)
        step = min(n_rows, max(1, CHUNK_LOGITS // max(1, n_items)))
        logit_buffer = torch.empty(step, n_items, dtype=narrow, device=queries.device)  # (r, N)
        fused = narrow == exact or (
            log_share is None and kind == "cpu"
        )  # torch's CPU softmax adds up in float32 anyway
        soft_buffer = logit_buffer if fused else logit_buffer.to(exact)  # (r, N)
        if d_table is not None:
            part = torch.empty_like(d_table, dtype=narrow)  # (N, trained) one chunk's share of d_table
            part_exact = part if narrow == exact else torch.empty_like(d_table)  # (N, trained)
        with torch.autocast(kind, enabled=False):
            q, items = queries.to(narrow), table.to(narrow)  # (R, W), (N, W)
            for start in range(0, n_rows, step):
                rows = slice(start, min(start + step, n_rows))
                n = rows.stop - start
                soft, logits = soft_buffer[:n], logit_buffer[:n]  # (r, N), (r, N)
                torch.mm(q[rows], items.T, out=logits)
                if not fused:
                    soft.copy_(logits)
                if log_share is not None:
                    soft.sub_(log_share)
                wanted = soft.gather(1, target[rows, None]).to(exact)  # (r, 1)
                highest = soft.amax(dim=1, keepdim=True).to(exact)  # (r, 1)
                torch.softmax(soft, dim=1, out=soft)
                norm = (
                    highest - soft.amax(dim=1, keepdim=True).to(exact).log()
                )  # (r, 1): the largest is exp(highest - norm)
                losses[rows] = (norm - wanted).squeeze(1)
                if not (needs_queries or needs_table):
                    continue
                if not fused:
                    logits.copy_(soft)
                scale = weight[rows, None]  # (r, 1)
                if d_queries is not None:
                    d_queries[rows] = (logits @ items - items[target[rows]]).to(d_queries.dtype) * scale  # (r, W)
                if d_table is not None:
                    torch.mm(logits.T, q[rows, trained] * scale.to(narrow), out=part)
                    d_table += part_exact if narrow == exact else part_exact.copy_(part)
            if d_table is not None:
                d_table.index_add_(0, target, q[:, trained].to(exact) * weight[:, None].to(exact), alpha=-1)
        if d_table is not None and d_table.shape[1] < table.shape[1]:
            whole = torch.zeros_like(table, dtype=exact)  # (N, W)
            whole[:, trained] = d_table
            d_table = whole  # (N, W)
        if log_share is not None:  # a target's own score is nobody's share
            losses -= log_share[target]
        ctx.save_for_backward(d_queries, d_table)
        ctx.mark_non_differentiable(losses)
        return (losses * weight).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_queries, d_table = ctx.saved_tensors
        return (
            None if d_queries is None else d_queries * grad.to(d_queries.dtype),
            None if d_table is None else d_table * grad.to(d_table.dtype),
            None,
            None,
            None,
            None,
        )


def catalogue_cross_entropy(
    queries: Tensor,
    table: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    trained: slice = slice(None),
    log_share: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of every query against every item.

    Args:
        queries: (R, W) float.
        table: (N, W) float, one row an item.
        target: (R,) int64, the right item's row in `table`.
        weight: (R,) float, factors of the rows in the sum; ones if None.
        trained: columns of `table` that get a gradient; the others are frozen vectors, and theirs would be thrown away.
        log_share: (N,) float, taken from the logits in the softmax's sum, not from the target's score: see `Compared`.

    Returns the weighted sum, a scalar with gradients, and the losses of the rows, (R,) without, both at least float32.
    """
    if weight is None:
        weight = torch.ones(queries.shape[0], device=queries.device)  # (R,)
    return _CatalogueCrossEntropy.apply(queries, table, target, weight, trained, log_share)
