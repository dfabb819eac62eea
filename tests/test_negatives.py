"""The sampled softmax: exact when everything is drawn, unbiased when not, and only what is drawn is encoded."""

from dataclasses import replace

import pytest
import torch

from setrec.backbones import T5Backbone
from setrec.errors import ConfigError
from setrec.layers.loss import catalogue_cross_entropy
from setrec.layers.negatives import Negatives, expected_draws
from setrec.model import SETRec
from setrec.recipe import Recipe
from tests.test_model import N, catalogue, training

PAPER = Recipe(bottleneck=8, trunk=(12,))
SCORE = Recipe(n_cf=2, n_sem=2, bottleneck=8, trunk=(12,), objective="score", negatives="warm", memory=True)


def build(recipe: Recipe) -> SETRec:
    torch.manual_seed(3)
    return SETRec(catalogue(), T5Backbone(shape="nano"), recipe).eval()


@pytest.mark.parametrize(("ahead", "prefix_parallel"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("recipe", [PAPER, SCORE, replace(PAPER, n_sem=0), replace(PAPER, negatives="warm")])
@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_drawing_everything_is_the_exact_softmax(
    recipe: Recipe, sampling: str, ahead: int, prefix_parallel: bool
) -> None:
    """Losses and every gradient."""
    exact, drawn = build(recipe), build(replace(recipe, sampled=10 * N, sampling=sampling))
    drawn.load_state_dict(exact.state_dict())
    outcomes = []
    for model in (exact, drawn):
        sums = model.losses(training(prefix_parallel, ahead=ahead))
        (sums.ranking + 0.7 * sums.reconstruction).backward()
        outcomes.append((sums, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (one, grads_one), (two, grads_two) = outcomes
    torch.testing.assert_close(one.ranking, two.ranking, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.slots, two.slots, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.reconstruction, two.reconstruction)
    assert grads_one.keys() == grads_two.keys()
    for name, gradient in grads_one.items():
        assert (gradient - grads_two[name]).abs().max() <= 2e-5 * gradient.abs().max() + 1e-6, name


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_the_softmaxs_sum_is_estimated_without_bias(sampling: str) -> None:
    """exp(loss + target's score) is the estimated sum over the catalogue: its mean over many draws is the true sum."""
    torch.manual_seed(0)
    count = torch.tensor([50, 20, 9, 3, 1, 1, 0, 0, 2, 30, 7, 1])
    n, m = len(count), 4
    negatives = Negatives(count > 0, count, "all", 5, sampling)  # type: ignore[arg-type]
    queries, table = torch.randn(m, 6), torch.randn(n, 6)
    target = torch.tensor([0, 3, 3, 9])
    scores = queries @ table.T  # (m, n)
    true = scores.exp().sum(1)  # (m,)
    estimates = []
    for _ in range(4000):
        chosen = negatives(target[:, None])
        assert chosen.items is not None
        losses = catalogue_cross_entropy(queries, table[chosen.items], chosen.target, log_q=chosen.log_q)[1]
        estimates.append((losses + scores[range(m), target]).exp())
    drawn = torch.stack(estimates)  # (4000, m)
    error = drawn.std(0) / 4000**0.5
    assert error.min() > 0  # it really is a sample
    assert ((drawn.mean(0) - true).abs() < 4.5 * error).all()


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_every_item_is_drawn_as_often_as_the_correction_says(sampling: str) -> None:
    torch.manual_seed(0)
    count = torch.arange(40) ** 2
    negatives = Negatives(count >= 0, count, "all", 12, sampling)  # type: ignore[arg-type]
    draws = torch.stack([torch.bincount(negatives.draw(torch.device("cpu")), minlength=40) for _ in range(3000)])
    expected = negatives.log_expected.double().exp()
    assert expected.sum() == pytest.approx(12)
    assert expected.max() <= 1 + 1e-6
    spread = (expected.clamp(max=1) / 3000).sqrt() + 1e-3
    assert ((draws.double().mean(0) - expected).abs() < 4.5 * spread).all()


def test_expected_draws_are_capped_at_one_and_add_up() -> None:
    weight = torch.tensor([100.0, 50.0, 1.0, 1.0, 1.0, 1.0]).double()
    expected = expected_draws(weight, 4)
    torch.testing.assert_close(expected, torch.tensor([1, 1, 0.5, 0.5, 0.5, 0.5]).double())
    assert torch.equal(expected_draws(weight, 9), torch.ones(6).double())


def test_only_what_is_drawn_goes_through_the_trunk() -> None:
    model = build(replace(PAPER, sampled=5))
    seen = []
    model.tokens.trunk.register_forward_hook(lambda *call: seen.append(len(call[1][0])))
    batch = training(prefix_parallel=True)
    model.losses(batch)
    assert seen == [len(batch.unique) + len(batch.valid) + 5]


def test_a_sample_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        build(replace(PAPER, sampled=0))
