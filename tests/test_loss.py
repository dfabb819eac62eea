"""The chunked catalogue loss and factorised grounding against the plain, expanded computation."""

import pytest
import torch
from torch import nn

from setrec.layers import loss as loss_module
from setrec.layers.grounding import Index, part_scores, project_queries, user_vector
from setrec.layers.loss import catalogue_cross_entropy
from setrec.layers.tokens import ItemTokens

N, M, D, E, F, H = 37, 11, 16, 6, 10, 8


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 4 * N)  # several chunks, the last one short


def test_chunked_cross_entropy_equals_torch() -> None:
    torch.manual_seed(0)
    queries, table = torch.randn(M, E, requires_grad=True), torch.randn(N, E, requires_grad=True)
    target, weight = torch.randint(N, (M,)), torch.rand(M)
    total, each = catalogue_cross_entropy(queries, table, target, weight)
    plain = nn.functional.cross_entropy(queries @ table.T, target, reduction="none")
    torch.testing.assert_close(each, plain.detach())
    ours = torch.autograd.grad(3 * total, (queries, table))
    theirs = torch.autograd.grad(3 * (plain * weight).sum(), (queries, table))
    torch.testing.assert_close(total, (plain * weight).sum())
    torch.testing.assert_close(ours, theirs)


def test_frozen_columns_get_no_gradient_and_change_no_other() -> None:
    torch.manual_seed(0)
    queries, table, target = torch.randn(M, E, requires_grad=True), torch.randn(N, E), torch.randint(N, (M,))
    whole, part = table.clone().requires_grad_(), table.clone().requires_grad_()
    every = torch.autograd.grad(catalogue_cross_entropy(queries, whole, target)[0], (queries, whole))
    some = torch.autograd.grad(catalogue_cross_entropy(queries, part, target, trained=slice(2, 5))[0], (queries, part))
    torch.testing.assert_close(some[0], every[0])
    torch.testing.assert_close(some[1][:, 2:5], every[1][:, 2:5])
    assert some[1][:, [0, 1, 5]].abs().max() == 0


def test_a_frozen_table_gets_no_gradient() -> None:
    queries, table = torch.randn(M, E, requires_grad=True), torch.randn(N, E)
    catalogue_cross_entropy(queries, table, torch.randint(N, (M,)))[0].backward()
    assert queries.grad is not None
    assert table.grad is None


@pytest.mark.parametrize(("n_cf", "n_sem"), [(1, 3), (2, 2), (2, 0), (0, 3)])
def test_factorised_grounding_equals_expanding_the_catalogue(n_cf: int, n_sem: int) -> None:
    """Loss, gradients of every parameter, and scores under every beta, against (N, K, D) tokens and plain logits."""
    torch.manual_seed(n_cf)
    tokens = ItemTokens([E] * n_cf, F, n_sem, width=D, bottleneck=H, trunk=[12]).double()
    cf = [torch.randn(N, E, dtype=torch.float64) for _ in range(n_cf)]
    text = torch.randn(N, F, dtype=torch.float64)
    outputs = torch.randn(M, n_cf + n_sem, D, dtype=torch.float64, requires_grad=True)
    target = torch.randint(N, (M,))

    codes = tokens.encode(text) if n_sem else None
    expanded = tokens(cf, codes)  # (N, K, D)
    logits = torch.einsum("mkd,nkd->mkn", outputs, expanded)  # (M, K, N)
    naive = sum(nn.functional.cross_entropy(logits[:, k], target, reduction="sum") for k in range(n_cf + n_sem))

    projected = project_queries(outputs, tokens)
    ours = sum(catalogue_cross_entropy(q, table, target)[0] for q, table in zip(projected.cf, cf, strict=True))
    if projected.sem is not None:
        ours = ours + catalogue_cross_entropy(projected.sem.flatten(0, 1), codes, target.repeat_interleave(n_sem))[0]
    torch.testing.assert_close(ours.double(), naive, rtol=1e-6, atol=1e-6)

    named = [("outputs", outputs), *((n, p) for n, p in tokens.named_parameters() if not n.startswith("decoder"))]
    leaves = [leaf for _, leaf in named]
    theirs = torch.autograd.grad(naive, leaves, retain_graph=True, allow_unused=True)
    mine = torch.autograd.grad(ours, leaves, retain_graph=True, allow_unused=True)
    for (name, _), one, other in zip(named, mine, theirs, strict=True):
        if one is None:  # a bias u_k: a constant of the softmax, so its true gradient is zero
            assert other is None or other.abs().max() < 1e-9, name
        else:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)

    nothing = torch.zeros(N, 0, dtype=torch.float64)
    index = Index(torch.cat([*cf, nothing], dim=1), *[nothing if codes is None else codes] * 2)
    user = user_vector(projected)
    for beta in (0.0, 0.3, 1.0):
        slot_weight = torch.tensor([1 - beta] * n_cf + [beta] * n_sem, dtype=torch.float64)
        plain = torch.einsum("k,mkn->mn", slot_weight, logits)  # (M, N)
        row = torch.cat([(1 - beta) * user.cf, beta * user.sem], dim=1)  # (M, sum(E) + H)
        one_product = row @ torch.cat([index.cf, index.sem], dim=1).T  # (M, N)
        parts = part_scores(user, index)
        torch.testing.assert_close((1 - beta) * parts[0] + beta * parts[1], one_product)
        difference = plain - one_product  # equal but for a constant of the user
        torch.testing.assert_close(difference, difference[:, :1].expand(-1, N), rtol=1e-9, atol=1e-9)
