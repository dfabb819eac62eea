"""Cross-entropy over the full catalogue, without ever holding the logits of a batch."""

from typing import Any

import torch
from torch import Tensor

CHUNK_LOGITS = 4 * 1024 * 1024  # logits held at a time: 16 MiB in float32, small enough to stay near the caches


class _CatalogueCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of (R, W) queries against an (N, W) table; gradients are made in the forward pass.

    The softmax is needed for the loss and for the gradient. Taken a chunk of rows at a time, its gradient is folded into
    (R, W) and (N, W) at once and the chunk is forgotten: three matrix products, no recomputation, O(chunk * N) memory.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, table: Tensor, target: Tensor, weight: Tensor, trained: slice
    ) -> tuple[Tensor, Tensor]:
        needs_queries, needs_table = ctx.needs_input_grad[:2]
        n_rows, n_items = queries.shape[0], table.shape[0]
        kind = queries.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else queries.dtype
        exact = torch.promote_types(queries.dtype, torch.float32)  # of softmax and sums, whatever the products are in
        losses = torch.empty(n_rows, dtype=exact, device=queries.device)  # (R,)
        d_queries = torch.empty_like(queries) if needs_queries else None  # (R, W)
        d_table = torch.zeros_like(table, dtype=exact) if needs_table else None  # (N, W)
        step = max(1, CHUNK_LOGITS // max(1, n_items))
        with torch.autocast(kind, enabled=False):
            q, items = queries.to(narrow), table.to(narrow)  # (R, W), (N, W)
            for start in range(0, n_rows, step):
                rows = slice(start, min(start + step, n_rows))
                logits = (q[rows] @ items.T).to(exact)  # (r, N)
                wanted = target[rows, None]  # (r, 1)
                norm = logits.logsumexp(dim=1, keepdim=True)  # (r, 1)
                losses[rows] = (norm - logits.gather(1, wanted)).squeeze(1)
                if not (needs_queries or needs_table):
                    continue
                soft = logits.sub_(norm).exp_()  # (r, N) softmax, in place of the logits
                soft.scatter_add_(1, wanted, soft.new_full(wanted.shape, -1.0))  # softmax - one hot
                pull = soft.mul_(weight[rows, None]).to(narrow)  # (r, N)
                if d_queries is not None:
                    d_queries[rows] = (pull @ items).to(d_queries.dtype)  # (r, W)
                if d_table is not None:
                    d_table[:, trained] += pull.T @ q[rows, trained]  # (N, trained)
        ctx.save_for_backward(d_queries, d_table)
        ctx.mark_non_differentiable(losses)
        return (losses * weight).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        d_queries, d_table = ctx.saved_tensors
        return (
            None if d_queries is None else d_queries * grad.to(d_queries.dtype),
            None if d_table is None else d_table * grad.to(d_table.dtype),
            None,
            None,
            None,
        )


def catalogue_cross_entropy(
    queries: Tensor, table: Tensor, target: Tensor, weight: Tensor | None = None, trained: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of every query against every item.

    Args:
        queries: (R, W) float.
        table: (N, W) float, one row an item.
        target: (R,) int64, the right item's row in `table`.
        weight: (R,) float, factors of the rows in the sum; ones if None.
        trained: columns of `table` that get a gradient; the others are frozen vectors, and theirs would be thrown away.

    Returns the weighted sum, a scalar with gradients, and the losses of the rows, (R,) without, both at least float32.
    """
    if weight is None:
        weight = torch.ones(queries.shape[0], device=queries.device)  # (R,)
    return _CatalogueCrossEntropy.apply(queries, table, target, weight, trained)
