"""The chunked catalogue loss and factorised grounding against the plain, expanded computation."""

import pytest
import torch
from torch import nn

from setrec.layers import loss as loss_module
from setrec.layers.grounding import Index, by_part, part_scores, project_queries, user_vector
from setrec.layers.loss import catalogue_cross_entropy
from setrec.layers.tokens import ItemTokens, Source
from setrec.schemas import PAD
from setrec.scoring.weights import Weights, factors

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


@pytest.mark.parametrize("log_q", [False, True])
def test_several_targets_are_the_mean_of_their_losses(log_q: bool) -> None:
    torch.manual_seed(0)
    queries, table = torch.randn(M, E, requires_grad=True), torch.randn(N, E, requires_grad=True)
    target, less = torch.randint(N, (M, 3)), torch.rand(N) if log_q else None
    target[::2, 2] = PAD
    target[::4, 1] = PAD
    total, each = catalogue_cross_entropy(queries, table, target, log_q=less)
    logits = queries @ table.T
    norm = (logits if less is None else logits - less).logsumexp(dim=1)
    plain = torch.stack([(norm[m] - logits[m, row[row != PAD]]).mean() for m, row in enumerate(target)])
    torch.testing.assert_close(each, plain.detach())
    torch.testing.assert_close(
        torch.autograd.grad(total, (queries, table)), torch.autograd.grad(plain.sum(), (queries, table))
    )


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


SOURCES = {
    "cf": Source("cf_0", "cf", E, 1, False),
    "cf 2": Source("cf_1", "cf", E, 1, False),
    "text": Source("text", "semantic", F, 3, True),
    "image": Source("image", "source:image", 5, 2, False),
    "title": Source("title", "source:title", 7, 2, True),
}


@pytest.mark.parametrize(
    "names",
    [("cf", "text"), ("cf", "cf 2", "text"), ("cf", "cf 2"), ("text",), ("image",), ("cf", "text", "image", "title")],
)
def test_factorised_grounding_equals_expanding_the_catalogue(names: tuple[str, ...]) -> None:
    """Loss, gradients of every parameter, and scores under every beta, against (N, K, D) tokens and plain logits."""
    torch.manual_seed(len(names))
    sources = [SOURCES[name] for name in names]
    n_slots = sum(source.slots for source in sources)
    tokens = ItemTokens(sources, width=D, bottleneck=H, trunk=[12]).double()
    tables = [torch.randn(N, source.width, dtype=torch.float64) for source in sources]
    outputs = torch.randn(M, n_slots, D, dtype=torch.float64, requires_grad=True)
    target = torch.randint(N, (M,))

    codes = [tokens.encode(s, table) for s, table in enumerate(tables)]
    expanded = tokens(codes)  # (N, K, D)
    logits = torch.einsum("mkd,nkd->mkn", outputs, expanded)  # (M, K, N)
    naive = sum(nn.functional.cross_entropy(logits[:, k], target, reduction="sum") for k in range(n_slots))

    projected = project_queries(outputs, tokens)
    ours = sum(
        catalogue_cross_entropy(slots.flatten(0, 1), code, target.repeat_interleave(slots.shape[1]))[0]
        for slots, code in zip(projected.slots, codes, strict=True)
    )
    torch.testing.assert_close(ours.double(), naive, rtol=1e-6, atol=1e-6)

    named = [("outputs", outputs), *((n, p) for n, p in tokens.named_parameters() if "decoder" not in n)]
    leaves = [leaf for _, leaf in named]
    theirs = torch.autograd.grad(naive, leaves, retain_graph=True, allow_unused=True)
    mine = torch.autograd.grad(ours, leaves, retain_graph=True, allow_unused=True)
    for (name, _), one, other in zip(named, mine, theirs, strict=True):
        if one is None:  # a bias u_k: a constant of the softmax, so its true gradient is zero
            assert other is None or other.abs().max() < 1e-9, name
        else:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)

    index = Index(by_part([[code] for code in codes], tokens), codes)
    user = user_vector(projected, tokens)
    for beta in (0.0, 0.3, 1.0):
        weights = Weights(beta, sources={"image": 0.8, "title": 1.7 * beta})
        factor = {part: factors(part).warm(weights) for part in user.parts}
        slot_weight = [factor[source.part] for source in sources for _ in range(source.slots)]  # K
        plain = torch.einsum("k,mkn->mn", torch.tensor(slot_weight, dtype=torch.float64), logits)  # (M, N)
        row = torch.cat([factor[part] * query for part, query in user.parts.items()], dim=1)  # (M, W)
        one_product = row @ torch.cat([index.parts[part] for part in user.parts], dim=1).T  # (M, N)
        parts = part_scores(user, index)
        summed = torch.stack([factor[part] * score for part, score in parts.items()]).sum(dim=0)  # (M, N)
        torch.testing.assert_close(summed, one_product)
        difference = plain - one_product  # equal but for a constant of the user
        torch.testing.assert_close(difference, difference[:, :1].expand(-1, N), rtol=1e-9, atol=1e-9)
