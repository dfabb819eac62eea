"""Cross-entropy over the full catalogue, without holding the logits of a whole batch in memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from setrec.schemas import mask_of

CHUNK_LOGITS = 3 * 1024 * 1024  # logits held at a time: 12 MiB in float32, small enough for the caches


def catalogue_cross_entropy(
    queries: Tensor,
    table: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    trained: slice = slice(None),
    log_q: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy of every query over all items of a table.

    Args:
        queries: (R, W) float.
        table: (N, W) float, one row an item.
        target: (R,) int64, the target's row in `table`; or (R, A), several targets of a query, padded: the mean of their losses.
        weight: (R,) float, the weight of each query in the sum; None: ones.
        trained: Columns of `table` that get a gradient; the other columns are frozen vectors.
        log_q: (N,) float, subtracted from the logits in the sum of the softmax, but not from the target's logit; see
            `SoftmaxItems`. None: zeros.

    Returns:
        The weighted sum, (), with gradients; and the loss of every query, (R,), without. Both are float32 or wider.
    """
    if weight is None:
        weight = torch.ones(queries.shape[0], device=queries.device)  # (R,)
    if target.ndim == 1:
        target = target[:, None]  # (R, 1)
    apply: Callable[..., tuple[Tensor, Tensor]] = _CatalogueCrossEntropy.apply
    return apply(queries, table, target, weight, trained, log_q)  # (), (R,)


class _CatalogueCrossEntropy(torch.autograd.Function):
    """The weighted sum of cross-entropies; the gradients are computed in the forward pass.

    The softmax is needed for the loss and for the gradient. It is computed for one chunk of queries at a time. The chunk's
    gradients are added to (R, W) and (N, W) at once, and the next chunk overwrites its logits: three matrix products,
    nothing computed twice, O(chunk * N) memory. All chunks share one buffer, since fresh memory costs twice as much time
    as the arithmetic. The gradient of the logits is (softmax - share of each target) * weight; the second part needs only the
    targets' rows, so it is added apart.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, table: Tensor, target: Tensor, weight: Tensor, trained: slice, log_q: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The sum and the losses; see `catalogue_cross_entropy`. Keeps the gradients for `backward`."""
        needs_queries, needs_table = ctx.needs_input_grad[:2]
        n_rows, n_items = queries.shape[0], table.shape[0]
        kind = queries.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else queries.dtype
        exact = torch.promote_types(queries.dtype, torch.float32)  # for softmax and sums; `narrow` is for the products
        share = mask_of(target).to(exact)  # (R, A)
        share /= share.sum(dim=1, keepdim=True)  # (R, A)
        target = target.clamp(min=0)  # (R, A): padding has no share
        losses = torch.empty(n_rows, dtype=exact, device=queries.device)  # (R,)
        d_queries = torch.empty_like(queries) if needs_queries else None  # (R, W)
        d_table = torch.zeros_like(table[:, trained], dtype=exact) if needs_table else None  # (N, trained)
        step = min(n_rows, max(1, CHUNK_LOGITS // max(1, n_items)))
        logit_buffer = torch.empty(step, n_items, dtype=narrow, device=queries.device)  # (r, N)
        # torch's softmax on a CPU adds up in float32 anyway
        fused = narrow == exact or (log_q is None and kind == "cpu")
        soft_buffer = logit_buffer if fused else logit_buffer.to(exact)  # (r, N)
        if d_table is not None:
            part = torch.empty_like(d_table, dtype=narrow)  # (N, trained): what one chunk adds to d_table
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
                if log_q is not None:
                    soft.sub_(log_q)
                wanted = (soft.gather(1, target[rows]).to(exact) * share[rows]).sum(dim=1, keepdim=True)  # (r, 1)
                highest = soft.amax(dim=1, keepdim=True).to(exact)  # (r, 1)
                torch.softmax(soft, dim=1, out=soft)
                # log of the softmax's sum, since the largest probability is exp(highest - norm)
                norm = highest - soft.amax(dim=1, keepdim=True).to(exact).log()  # (r, 1)
                losses[rows] = (norm - wanted).squeeze(1)
                if not (needs_queries or needs_table):
                    continue
                if not fused:
                    logits.copy_(soft)
                scale = weight[rows, None]  # (r, 1)
                if d_queries is not None:
                    own = (items[target[rows]] * share[rows, :, None].to(narrow)).sum(dim=1)  # (r, W)
                    d_queries[rows] = (logits @ items - own).to(d_queries.dtype) * scale  # (r, W)
                if d_table is not None:
                    torch.mm(logits.T, q[rows, trained] * scale.to(narrow), out=part)
                    d_table += part_exact if narrow == exact else part_exact.copy_(part)
            if d_table is not None:
                each = q[:, None, trained].to(exact) * (weight[:, None].to(exact) * share)[..., None]  # (R, A, trained)
                d_table.index_add_(0, target.flatten(), each.flatten(0, 1), alpha=-1)
        if d_table is not None and d_table.shape[1] < table.shape[1]:
            whole = torch.zeros_like(table, dtype=exact)  # (N, W)
            whole[:, trained] = d_table
            d_table = whole  # (N, W)
        if log_q is not None:  # the targets' own logits get no correction
            losses -= (log_q[target] * share).sum(dim=1)
        ctx.save_for_backward(d_queries, d_table)
        ctx.mark_non_differentiable(losses)
        return (losses * weight).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass computed."""
        d_queries, d_table = ctx.saved_tensors
        return (
            None if d_queries is None else d_queries * grad.to(d_queries.dtype),
            None if d_table is None else d_table * grad.to(d_table.dtype),
            None,
            None,
            None,
            None,
        )
