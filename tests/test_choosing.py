"""Weights chosen on candidates: the hits of every weighting are those of ranking the whole catalogue."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from setrec.scoring import choosing
from setrec.scoring.choosing import corners, hits_of_weightings
from setrec.scoring.topk import mask_seen, top_items
from setrec.scoring.weights import FACTORS, Weights, factors, source_grid, state_of, weightings, weights_of


def world(seed: int, n_users: int, n_items: int, tied: bool) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Random parts, cold items, seen items and targets; tied: many equal scores."""
    draw = torch.Generator().manual_seed(seed)
    parts = {name: torch.randn(n_users, n_items, generator=draw) for name in ("cf", "semantic")}
    for name in ("cooccurrence", "transitions", "text"):  # never negative, mostly zero
        part = torch.rand(n_users, n_items, generator=draw)
        parts[name] = part * (torch.rand(n_users, n_items, generator=draw) < 0.2)
    parts["recency"] = torch.rand(n_items, generator=draw)
    parts["source:image"] = torch.randn(n_users, n_items, generator=draw)
    if tied:
        parts = {name: (2 * part).round() / 2 for name, part in parts.items()}
    cold = torch.randperm(n_items, generator=draw)[: n_items // 5].sort().values
    seen = torch.randint(-1, n_items, (n_users, 6), generator=draw)
    target = torch.stack([torch.randperm(n_items, generator=draw)[:4] for _ in range(n_users)]).sort(dim=1).values
    target[0, 2:] = -1
    return parts, cold, seen, target


def exhaustive(
    parts: dict[str, Tensor], cold: Tensor, seen: Tensor, target: Tensor, grid: list[Weights], k: int
) -> Tensor:
    """Rank the whole catalogue under every weighting."""
    n_items = parts["cf"].shape[1]
    is_cold = torch.zeros(n_items, dtype=torch.bool).index_fill(0, cold, True)
    columns = []
    for w in grid:
        scores = sum(
            part * torch.where(is_cold, factors(name).cold(w), factors(name).warm(w)) for name, part in parts.items()
        )
        top = top_items(mask_seen(scores, seen), k)
        found = (top[:, :, None] == target.masked_fill(target < 0, -2)[:, None]).sum((1, 2))
        columns.append(found)
    return torch.stack(columns, dim=1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([30, 300]), st.sampled_from([3, 50]), st.booleans())
@pytest.mark.slow
def test_hits_are_those_of_ranking_everything(seed: int, n_items: int, m: int, tied: bool) -> None:
    parts, cold, seen, target = world(seed, 5, n_items, tied)
    if tied:  # so that no sum is rounded and ties are ties
        grid = [
            Weights(b, g, r, c, sources={"image": s})
            for b in (0.0, 0.5, 1.0)
            for g in (0.0, 4.0)
            for r in (0.0, 1.0)
            for c in (0.0, 8.0)
            for s in (0.0, 0.5, 1.0)
        ]
    else:
        grid = weightings((0.0, 0.3, 1.0), graphs=True, text=True, sources=source_grid({"image": None}, 0.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "CANDIDATES", m)  # few: the bound is loose, and whole rows have to be counted
        found = hits_of_weightings(parts, cold, seen, target, grid, corners(grid), 10)
    assert torch.equal(found, exhaustive(parts, cold, seen, target, grid, 10))


def test_every_weighting_lies_between_the_corners() -> None:
    grid = weightings(tuple(b / 10 for b in range(11)), graphs=True, text=True)
    at = corners(grid)
    assert len(at.weights) == 3 * 2 * 2 * 2 * 2
    torch.testing.assert_close(at.share.sum(dim=1), torch.ones(len(grid)))
    assert (at.share >= 0).all()
    for factor in (f for row in FACTORS.values() for f in row):  # every factor is linear in each weight
        mixed = at.share.double() @ torch.tensor([factor(w) for w in at.weights], dtype=torch.float64)
        torch.testing.assert_close(
            mixed, torch.tensor([factor(w) for w in grid], dtype=torch.float64), atol=1e-5, rtol=1e-5
        )


def test_sources_are_weighed_in_every_combination_or_one_after_the_other() -> None:
    two = source_grid({"a": None, "b": None, "c": 0.3}, 0.5)
    assert len(two) == 4 * 4
    assert two[0] == pytest.approx({"a": 0.5, "b": 0.5, "c": 0.3})
    assert {row["c"] for row in two} == {two[0]["c"]}
    three = source_grid(dict.fromkeys("abc"), 1.0)
    assert len(three) == 1 + 3 * 3
    assert all(sum(value != 1.0 for value in row.values()) <= 1 for row in three)
    grid = weightings((0.0, 0.5, 1.0), graphs=False, text=True, sources=two)
    assert len(grid) == 3 * len(two)
    at = corners(grid)
    mixed = at.share.double() @ torch.tensor([[w.sources[n] for n in "abc"] for w in at.weights], dtype=torch.float64)
    torch.testing.assert_close(mixed.float(), torch.tensor([[w.sources[n] for n in "abc"] for w in grid]))
    for w in grid[::7]:  # as a checkpoint holds them
        assert weights_of(state_of(w)).sources == w.sources


def test_beta_alone() -> None:
    parts, _, seen, target = world(3, 7, 200, tied=False)
    parts = {name: parts[name] for name in ("cf", "semantic")}
    grid = weightings((0.0, 0.5, 1.0), graphs=False, text=True)
    cold = torch.empty(0, dtype=torch.int64)
    found = hits_of_weightings(parts, cold, seen, target, grid, corners(grid), 10)
    assert torch.equal(found, exhaustive(parts, cold, seen, target, grid, 10))
