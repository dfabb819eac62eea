"""Ranking and metrics against tables worked out by hand, naive sorting, random orders, and several processes."""

import math
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from setrec.evaluation.metrics import RandomTieMetrics, RankingMetrics, RankingTable
from setrec.schemas import GROUPS
from setrec.scoring.topk import mask_seen, top_groups, top_items

INF = float("inf")


def naive_top(row: list[float], k: int, ids: list[int]) -> list[int]:
    ranked = sorted((i for i in ids if row[i] > -INF), key=lambda i: (-row[i], i))[:k]
    return ranked + [-1] * (k - len(ranked))


# ---------------------------------------------------------------------------------------------------------- ranking
@pytest.mark.parametrize("levels", [2, 5, 40, 100_000])
@pytest.mark.parametrize("k", [1, 7, 60, 90])
def test_top_items_equals_sorting_with_ties(levels: int, k: int) -> None:
    draw = torch.Generator().manual_seed(levels + k)
    scores = torch.randint(levels, (12, 60), generator=draw) / 7 - 3
    scores[torch.rand(12, 60, generator=draw) < 0.2] = -INF
    scores[3] = -INF
    scores[4, 10:20] = torch.tensor([0.0, -0.0]).repeat(5)  # equal, though their bits are not
    allowed = torch.rand(60, generator=draw) < 0.7
    every = list(range(60))
    some = allowed.nonzero().squeeze(1).tolist()
    assert top_items(scores, k).tolist() == [naive_top(row, k, every) for row in scores.tolist()]
    assert top_items(scores, k, allowed).tolist() == [naive_top(row, k, some) for row in scores.tolist()]


@pytest.mark.parametrize("levels", [3, 100_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.8, 1.0])
def test_groups_equal_three_separate_rankings(levels: int, share: float) -> None:
    draw = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (9, 50), generator=draw).float()
    warm = torch.rand(50, generator=draw) < share
    seen = torch.randint(-1, 50, (9, 12), generator=draw)
    scores = mask_seen(scores, seen)
    expected = torch.stack([top_items(scores, 20), top_items(scores, 20, warm), top_items(scores, 20, ~warm)])
    assert torch.equal(top_groups(scores, warm, 20), expected)


@pytest.mark.parametrize("levels", [40, 1_000_000])
def test_long_rows_are_ranked_through_their_blocks(levels: int) -> None:
    """Rows longer than 128 (k + 1) items take another way; ties, -inf and a length that no block divides included."""
    draw = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (7, 1003), generator=draw).float()
    scores[0] = -torch.inf
    scores[1, 5:] = -torch.inf
    scores[2, ::2] = -torch.inf
    before = scores.clone()
    warm = torch.arange(1003) % 9 > 0
    expected = [naive_top(row, 6, list(range(1003))) for row in scores.tolist()]
    assert top_items(scores, 6).tolist() == expected
    groups = top_groups(scores, warm, 6)
    assert groups[0].tolist() == expected
    assert torch.equal(groups[1], top_items(scores, 6, warm))
    assert torch.equal(groups[2], top_items(scores, 6, ~warm))
    assert torch.equal(scores, before)


def test_mask_seen_ignores_padding_and_leaves_its_input() -> None:
    scores = torch.arange(8.0).view(2, 4)
    masked = mask_seen(scores, torch.tensor([[0, 2, -1], [-1, -1, -1]]))
    assert masked.tolist() == [[-INF, 1, -INF, 3], [4, 5, 6, 7]]
    assert torch.equal(scores, torch.arange(8.0).view(2, 4))
    assert torch.equal(mask_seen(scores, torch.empty(2, 0, dtype=torch.int64)), scores)


def test_nan_has_no_ranking() -> None:
    with pytest.raises(ValueError, match="NaN"):
        top_items(torch.tensor([[1.0, math.nan, 2.0]]), 2)


# ---------------------------------------------------------------------------------------------------------- metrics
WARM = torch.tensor([True, True, True, True, True, False, False, False])
SCORES = torch.tensor(
    [
        [9.0, 8, 7, 6, 5, 4, 3, 2],  # all 0 1 2 | warm 0 1 2 | cold 5 6 7
        [1.0, 1, 1, 1, 1, 5, 5, 1],  # all 5 6 0 | warm 0 1 2 | cold 5 6 7
        [3.0, 9, 2, 8, 0, 1, 7, 6],  # all 1 3 6 | warm 1 3 0 | cold 6 7 5
        [3.0, 9, 2, 8, 0, 1, 7, 6],
    ]
)
TARGETS = torch.tensor([[4, 1, 6, -1, -1], [7, -1, -1, -1, -1], [3, 6, 6, 0, 3], [-1, -1, -1, -1, -1]])


def metrics_of(scores: Tensor, targets: Tensor, cutoffs: tuple[int, ...] = (1, 3)) -> RankingTable:
    metric = RankingMetrics(cutoffs=cutoffs)
    metric.update(torch.arange(len(scores)), top_groups(scores, WARM, max(cutoffs)), targets, WARM)
    return metric.compute()


def test_hand_computed_table() -> None:
    """Several targets, repeated ones, a cold-only user, ties, and a user without any target."""
    d = [1 / math.log2(rank + 1) for rank in (1, 2, 3)]
    expected = {  # values of the users with a target in the group, in order of user
        "all": {
            "recall@1": [0, 0, 0],
            "recall@3": [1 / 3, 0, 2 / 3],
            "ndcg@1": [0, 0, 0],
            "ndcg@3": [d[1] / sum(d), 0, (d[1] + d[2]) / sum(d)],
            "precision@3": [1 / 3, 0, 2 / 3],
            "mrr@3": [1 / 2, 0, 1 / 2],
        },
        "warm": {
            "recall@1": [0, 0],
            "recall@3": [1 / 2, 1],
            "ndcg@3": [d[1] / (d[0] + d[1]), (d[1] + d[2]) / (d[0] + d[1])],
            "precision@3": [1 / 3, 2 / 3],
            "mrr@3": [1 / 2, 1 / 2],
        },
        "cold": {
            "recall@1": [0, 0, 1],
            "recall@3": [1, 1, 1],
            "ndcg@1": [0, 0, 1],
            "ndcg@3": [d[1], d[2], 1],
            "precision@3": [1 / 3, 1 / 3, 1 / 3],
            "mrr@3": [1 / 2, 1 / 3, 1],
        },
    }
    table = metrics_of(SCORES, TARGETS)
    users = {"all": [0, 1, 2], "warm": [0, 2], "cold": [0, 1, 2]}
    assert table.n_users() == {"all": 3, "warm": 2, "cold": 3}
    means = table.table()
    for group, rows in expected.items():
        for name, values in rows.items():
            who, got = table.per_user(name, group)
            assert who.tolist() == users[group]
            assert got.tolist() == pytest.approx(values, abs=1e-12), (group, name)
            assert means[group][name] == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_seen_targets_are_misses_and_short_lists_are_padded() -> None:
    masked = mask_seen(SCORES[:1], torch.tensor([[1, 5, 6]]))
    table = metrics_of(masked, torch.tensor([[1, 7]]), cutoffs=(6,))
    assert table.value("recall@6", "all") == 0.0 + 1 / 2  # all: 0 2 3 4 7 -1
    assert table.value("mrr@6", "all") == 1 / 5
    assert table.value("recall@6", "warm") == 0.0
    assert table.value("recall@6", "cold") == 1.0
    assert table.value("precision@6", "cold") == 1 / 6


def test_no_targets_at_all_gives_zeros_and_no_users() -> None:
    for targets in (torch.full((4, 2), -1), torch.empty(4, 0, dtype=torch.int64)):
        table = metrics_of(SCORES, targets)
        assert table.n_users() == {"all": 0, "warm": 0, "cold": 0}
        assert all(value == 0.0 for row in table.table().values() for value in row.values())
    assert RankingMetrics().compute().table()["all"]["recall@10"] == 0.0


def test_users_shown_twice_count_once() -> None:
    metric = RankingMetrics(cutoffs=(3,))
    for rows in ([2, 0], [1, 2], [0, 0]):
        metric.update(torch.tensor(rows), top_groups(SCORES[rows], WARM, 3), TARGETS[rows], WARM)
    once, table = metrics_of(SCORES[:3], TARGETS[:3], (3,)), metric.compute()
    assert table.user.tolist() == [0, 1, 2]
    assert table.table() == once.table()


def test_wrong_lists_and_names_are_refused() -> None:
    metric = RankingMetrics(cutoffs=(5,))
    with pytest.raises(ValueError, match="3 items, but 5 are needed"):
        metric.update(torch.arange(4), top_groups(SCORES, WARM, 3), TARGETS, WARM)
    for name in ("recall@6", "recall", "hits@3", "recall@0"):
        with pytest.raises(ValueError, match="unknown metric"):
            metrics_of(SCORES, TARGETS, (5,)).per_user(name)


# ------------------------------------------------------------------------------------------------------- random ties
def test_random_ties_equal_the_average_over_random_orders() -> None:
    scores = torch.tensor([[2.0, 2, 2, 1, 1, 0, 0, 0], [0.0] * 8, [-INF, 3, 3, 2, 2, 2, 1, -INF]])
    targets = torch.tensor([[0, 3, 5, 6], [1, 2, 5, -1], [0, 3, 4, 6]])
    expected = RandomTieMetrics(cutoffs=(2, 4))
    expected.update(torch.arange(3), scores, targets, WARM)
    exact = expected.compute()
    draw = torch.Generator().manual_seed(0)
    rounds = 4000
    shaken = scores.repeat(rounds, 1) + torch.rand(3 * rounds, 8, generator=draw) / 2  # breaks ties only
    average = metrics_of(shaken, targets.repeat(rounds, 1), (2, 4))
    for group in GROUPS:
        for name in average.metrics():
            who, values = average.per_user(name, group)
            for user, value in zip(*exact.per_user(name, group), strict=True):
                assert float(value) == pytest.approx(float(values[who % 3 == user].mean()), abs=0.02), (group, name)


def test_random_ties_are_the_hypergeometric_mean_and_without_ties_the_plain_figure() -> None:
    many = 623
    metric = RandomTieMetrics(cutoffs=(10,))
    target = torch.tensor([[0, 5, 600]])
    metric.update(torch.tensor([0]), torch.zeros(1, many), target, torch.zeros(many, dtype=torch.bool))
    table = metric.compute()
    assert table.value("recall@10", "cold") == pytest.approx(10 / many)
    assert table.value("precision@10", "cold") == pytest.approx(3 / many)
    first = sum(math.comb(many - j, 2) / math.comb(many, 3) / j for j in range(1, 11))
    assert table.value("mrr@10", "cold") == pytest.approx(first)

    scores = SCORES + torch.arange(8) / 100  # no ties
    metric = RandomTieMetrics(cutoffs=(1, 3))
    metric.update(torch.arange(4), scores, TARGETS, WARM)
    plain = metrics_of(scores, TARGETS).table()
    for group, row in metric.compute().table().items():
        assert row == pytest.approx(plain[group], abs=1e-12)


# ---------------------------------------------------------------------------------------------------------- processes
def world() -> tuple[Tensor, Tensor]:
    """37 users' scores (37, 8) and targets (37, 4)."""
    draw = torch.Generator().manual_seed(5)
    return torch.randint(6, (37, 8), generator=draw).float(), torch.randint(-1, 8, (37, 4), generator=draw)


def add_users(metric: RankingMetrics, users: list[int]) -> None:
    scores, targets = world()
    for start in range(0, len(users), 5):
        rows = users[start : start + 5]
        ranked = scores[rows] if isinstance(metric, RandomTieMetrics) else top_groups(scores[rows], WARM, 5)
        metric.update(torch.tensor(rows), ranked, targets[rows], WARM)


def process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    pair = dist.new_group([0, 1])
    # the last of the three sees nobody; the other two share the users, padded with users shown twice
    users = [] if rank == 2 else [*range(rank, 37, 2), 0, 1]
    for size, group in ((3, None), (2, pair)):
        for kind in (RankingMetrics, RandomTieMetrics):
            if rank < size:
                metric = kind(cutoffs=(3, 5))
                metric.process_group = group
                add_users(metric, users)
                table = metric.compute()
                content = table._asdict() | {"user": torch.from_numpy(table.user)}
                torch.save(content, Path(folder) / f"{kind.__name__}-{size}-{rank}")
                assert sum(map(len, metric.user)) == len(users)  # compute leaves a process its own users only
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.process
def test_one_two_and_three_processes_agree(tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload([__name__])  # imported once for the three
    torch.multiprocessing.start_processes(process, (str(tmp_path),), nprocs=3, start_method="forkserver")
    for kind in (RankingMetrics, RandomTieMetrics):
        metric = kind(cutoffs=(3, 5))
        add_users(metric, list(range(37)))
        alone = metric.compute()
        assert alone.user.tolist() == list(range(37))
        for size in (2, 3):
            for rank in range(size):
                content = torch.load(tmp_path / f"{kind.__name__}-{size}-{rank}", weights_only=True)
                other = RankingTable(**content | {"user": content["user"].numpy()})
                assert other.user.tolist() == alone.user.tolist()
                assert torch.equal(other.targets, alone.targets)
                for group, row in alone.table().items():
                    assert other.table()[group] == pytest.approx(row, abs=1e-12)
