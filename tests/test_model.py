"""SETRec as a whole: what is trained and what is ranked, against the naive way and under the method's invariances."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from setrec.backbones import T5Backbone
from setrec.data.batches import EvalRows, TrainRows
from setrec.data.catalogue import Catalogue, Vectors
from setrec.errors import ConfigError
from setrec.files.ragged import Ragged
from setrec.layers.grounding import part_scores
from setrec.model import SETRec
from setrec.recipe import Recipe, Tokens
from setrec.schemas import Batch
from setrec.scoring.weights import Weights, factors

N, E, F = 30, 6, 9
ROWS = [[3, 7, 7, 1, 20], [4, 3], [9, 8, 7, 6, 5, 4, 3], [12]]
RECIPES = {
    "paper": Recipe(bottleneck=8, trunk=(12,)),
    "two CF slots": Recipe(n_cf=2, n_sem=2, bottleneck=8, trunk=(12,), missing_cf="zero"),
    "CF only": Recipe(n_sem=0),
    "semantic only": Recipe(n_cf=0, n_sem=3, bottleneck=8, trunk=(12,)),
    "score": Recipe(n_cf=2, n_sem=2, bottleneck=8, trunk=(12,), objective="score", negatives="warm", memory=True),
    "sources": Recipe(
        tokens={"image": Tokens(2), "title": Tokens(2, "autoencoder")}, n_sem=2, bottleneck=8, trunk=(12,)
    ),
    "sources, score": Recipe(
        tokens={"image": Tokens(2), "title": Tokens(2, "autoencoder")}, n_sem=2, bottleneck=8, trunk=(12,),
        objective="score", negatives="warm", memory=True,
    ),
    "sources only": Recipe(n_cf=0, n_sem=0, objective="score", memory=True, tokens={"image": Tokens(2)}),
}  # fmt: skip


def catalogue(sources: bool = False) -> Catalogue:
    generator = torch.Generator().manual_seed(5)
    count = torch.ones(N, dtype=torch.int64)
    count[25:] = 0  # five cold items
    return Catalogue(
        name="made up",
        ids=[f"i{i}" for i in range(N)],
        titles=[""] * N,
        text=torch.randn(N, F, generator=generator),
        cf=tuple(torch.randn(N, E, generator=generator) for _ in range(2)),
        present=(count > 0, count > 0),
        count=count,
        fingerprint="",
        vectors={
            name: Vectors(torch.randn(N, width, generator=generator), torch.ones(N, dtype=torch.bool))
            for name, width in (("image", 5), ("title", 7))
        } if sources else {},
    )  # fmt: skip


def build(name: str) -> SETRec:
    torch.manual_seed(11)
    return SETRec(
        catalogue(sources="sources" in name), T5Backbone(shape="nano", recency_bias=True), RECIPES[name]
    ).eval()


@pytest.fixture(params=list(RECIPES))
def model(request: pytest.FixtureRequest) -> SETRec:
    return build(request.param)


def training(prefix_parallel: bool, which: list[int] | None = None, ahead: int = 1) -> Batch:
    rows = TrainRows(Ragged.from_rows(ROWS), max_history=50, prefix_parallel=prefix_parallel, ahead=ahead)
    return rows[np.arange(len(rows)) if which is None else np.array(which)]


def evaluation(rows: list[list[int]]) -> Batch:
    return EvalRows(Ragged.from_rows(rows), Ragged.from_rows([[0]] * len(rows)), max_history=50)[np.arange(len(rows))]


def scores(model: SETRec, rows: list[list[int]], beta: float = 0.4) -> Tensor:
    index = model.index()
    weights = Weights(beta, sources=dict.fromkeys(model.chosen_tokens, 0.7 * beta))
    parts = part_scores(model.user_vectors(evaluation(rows), index), index)
    return torch.stack([factors(name).warm(weights) * part for name, part in parts.items()]).sum(dim=0).detach()


def test_all_prefixes_in_one_row_equal_one_row_per_prefix(model: SETRec) -> None:
    """Loss, reconstruction and every gradient."""
    outcomes = []
    for prefix_parallel in (True, False):
        model.zero_grad()
        sums = model.losses(training(prefix_parallel))
        assert sums.n_prefix == sum(map(len, ROWS))
        total = sums.ranking / sums.n_prefix + 0.7 * sums.reconstruction / sums.n_reconstructed.clamp(min=1)
        total.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        outcomes.append((total.detach(), sums.slots.detach(), sums.n_reconstructed, gradients))
    (one, slots_one, weight_one, grad_one), (two, slots_two, weight_two, grad_two) = outcomes
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slots_one, slots_two, rtol=1e-5, atol=1e-5)
    assert weight_one == weight_two
    assert grad_one.keys() == grad_two.keys()
    for name, gradient in grad_one.items():
        assert (gradient - grad_two[name]).abs().max() <= 2e-5 * gradient.abs().max() + 1e-7, name


def test_loss_equals_the_paper_written_out() -> None:
    """Catalogue encoded, expanded to (N, K, D), plain logits, mean over slots; reconstruction averaged over history items."""
    model = build("paper")
    batch = training(prefix_parallel=False)
    sums = model.losses(batch)
    expanded = model.tokens(model.codes())  # (N, K, D)
    real = batch.history >= 0
    items = expanded[batch.history.clamp(min=0)]  # (B, L, K, D)
    outputs = model.backbone(items, real, batch.prefix, model.queries)[:, 0]  # (B, K, D)
    logits = torch.einsum("bkd,nkd->bkn", outputs, expanded)  # (B, K, N)
    slots = [nn.functional.cross_entropy(logits[:, k], batch.target[:, 0, 0]) for k in range(5)]
    torch.testing.assert_close(sums.ranking / sums.n_prefix, torch.stack(slots).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums.slots / sums.n_prefix, torch.stack(slots).detach(), rtol=1e-5, atol=1e-6)
    shown = batch.history[real]  # every history item of every row, as often as it occurs
    error = (model.tokens.reconstruct(1, expanded[shown]) - model.text[shown]).square().mean()
    torch.testing.assert_close(sums.reconstruction / sums.n_reconstructed, error, rtol=1e-5, atol=1e-6)


def test_score_objective_trains_what_is_ranked_by() -> None:
    """Softmax over the sum of all parts, among warm items: the same numbers as scores() at beta one half, doubled."""
    model = build("score")
    batch = training(prefix_parallel=False)
    sums = model.losses(batch)
    histories = [row[:t] for row in ROWS for t in range(len(row))]
    logits = 2 * scores(model, histories, beta=0.5)[:, :25]  # (M, warm)
    targets = torch.tensor([row[t] for row in ROWS for t in range(len(row))])
    expected = nn.functional.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(sums.ranking.detach(), expected, rtol=1e-4, atol=1e-4)


def test_permuting_an_items_slots_changes_no_score(model: SETRec) -> None:
    """Permute the tokens that every history item is read as; the catalogue's side stays."""
    plain = scores(model, ROWS)
    make, order = model.tokens.forward, torch.randperm(len(model.queries))
    model.tokens.forward = lambda codes: make(codes)[:, order]  # type: ignore[method-assign]
    torch.testing.assert_close(scores(model, ROWS), plain, rtol=1e-5, atol=1e-5)


def test_padding_and_batch_composition_change_no_score(model: SETRec) -> None:
    together = scores(model, ROWS)
    for b, row in enumerate(ROWS):
        alone = scores(model, [row])
        assert (alone[0] - together[b]).abs().max() < 1e-5 * together.abs().max()


def test_an_empty_history_has_a_prior(model: SETRec) -> None:
    prior = scores(model, [[], [3]])
    assert prior.isfinite().all()
    assert prior[0].std() > 0


def test_one_forward_serves_every_beta(model: SETRec) -> None:
    index = model.index()
    cf, sem, *more = part_scores(model.user_vectors(evaluation(ROWS), index), index).values()
    torch.testing.assert_close(0.3 * cf + 0.7 * sem + 0.49 * sum(more), scores(model, ROWS, beta=0.7))


def test_zero_missing_cf_takes_the_cf_score_from_cold_items() -> None:
    model = build("two CF slots")
    index = model.index()
    cf, _ = part_scores(model.user_vectors(evaluation(ROWS), index), index).values()
    assert cf[:, 25:].abs().max() == 0
    assert cf[:, :25].abs().min() > 0


def test_every_parameter_gets_a_gradient(model: SETRec) -> None:
    """Plain DDP refuses parameters without one."""
    model.train()
    sums = model.losses(training(prefix_parallel=True))
    (sums.ranking + sums.reconstruction).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_hidden_cf_only_in_training() -> None:
    recipe = Recipe(bottleneck=8, trunk=(12,), cf_dropout=0.999)
    torch.manual_seed(0)
    model = SETRec(catalogue(), T5Backbone(shape="nano", dropout=0.0, attention_dropout=0.0), recipe)
    batch = training(prefix_parallel=True)
    hidden = model.train()(batch, model.codes()).tokens[:, 0]  # (U, D): the bias alone where the vector is hidden
    shown = model.eval()(batch, model.codes()).tokens[:, 0]
    torch.testing.assert_close(hidden, model.tokens.cf[0].bias.expand_as(hidden))
    assert (hidden - shown).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(n_cf=0, n_sem=0), "at least one slot"),
        (Recipe(n_cf=3), "holds 2 CF matrices"),
        (Recipe(memory=True), "objective score"),
    ],
)
def test_recipes_that_cannot_be(recipe: Recipe, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SETRec(catalogue(), T5Backbone(shape="nano"), recipe)
