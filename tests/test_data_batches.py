"""Batches against naive loops over users; plans on 1, 2 and 3 processes."""

import numpy as np
import pytest
import torch

from setrec.data import Ragged, batches
from setrec.data.batches import BatchLoader, EvalPlan, EvalRows, TrainPlan, TrainRows
from setrec.errors import ConfigError
from setrec.schemas import PAD, Batch


@pytest.fixture
def train() -> Ragged:
    rng = np.random.default_rng(1)
    lengths = np.minimum(rng.geometric(0.12, 300), 80)
    lengths[:4] = (1, 2, 0, 80)  # one item: only the empty history; none: no row
    return Ragged.from_rows([rng.integers(0, 50, n).tolist() for n in lengths])  # items repeat


def on(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setattr(batches, "_rank_and_world_size", lambda: (rank, world))


def naive_prefixes(train: Ragged, max_history: int) -> set[tuple]:
    """(user, shown items, target) of every training prefix."""
    out = set()
    for user in range(len(train)):
        row = train.row(user).tolist()
        window = row[-(max_history + 1) :]
        for t in range(len(window)):
            if t > 0 or len(window) == len(row):
                out.add((user, tuple(window[:t]), window[t]))
    return out


def shown(batch: Batch) -> list[tuple]:
    """(user, visible items, target) of each real prefix of a training batch, read off the tensors one by one."""
    out = []
    for place in batch.valid.tolist():
        b, p = divmod(place, batch.prefix.shape[1])
        t = int(batch.prefix[b, p])
        out.append((int(batch.user[b]), tuple(batch.history[b, :t].tolist()), int(batch.target[b, p, 0])))
    return out


@pytest.mark.parametrize("prefix_parallel", [True, 4, False])
@pytest.mark.parametrize("max_history", [1, 7, 50])
def test_every_prefix_exactly_once(train, max_history, prefix_parallel):
    rows = TrainRows(train, max_history, prefix_parallel)
    plan = TrainPlan(rows.prefixes, rows.history, 64, seed=0)
    found = [entry for batch in BatchLoader(rows, plan) for entry in shown(batch)]
    expected = naive_prefixes(train, max_history)
    assert len(found) == rows.prefixes.sum()
    if max_history == 50:  # otherwise two windows of one user can look the same, and a set counts them once
        assert len(found) == len(expected)
    assert set(found) == expected


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("prefix_parallel", [True, 4, False])
def test_targets_ahead(train, prefix_parallel, wanted):
    """The next items of the user, or the next wanted ones, in whichever row the prefix stands."""
    marks = Ragged(train.offsets, np.random.default_rng(2).random(len(train.items)) < 0.4) if wanted else None
    rows = TrainRows(train, 7, prefix_parallel, wanted=marks, ahead=3)
    plain = TrainRows(train, 7, prefix_parallel, wanted=marks)
    several = 0
    for r in range(len(rows)):
        batch, before = rows[np.array([r])], plain[np.array([r])]
        assert torch.equal(batch.prefix, before.prefix)
        assert torch.equal(batch.target[..., :1], before.target)
        row = train.row(int(batch.user)).tolist()
        keep = marks.row(int(batch.user)) if marks is not None else np.ones(len(row), bool)
        for prefix, target in zip(batch.prefix[0].tolist(), batch.target[0].tolist(), strict=True):
            place = max(len(row) - 8, 0) + prefix
            later = [item for item, kept in zip(row[place:], keep[place:], strict=True) if kept][:3]
            assert [item for item in target if item != PAD] == later
            several += len(later) == 3
    assert several > 20


@pytest.mark.parametrize("prefix_parallel", [True, 4, False])
def test_batch_fields(train, prefix_parallel):
    rows = TrainRows(train, 20, prefix_parallel)
    for batch in BatchLoader(rows, TrainPlan(rows.prefixes, rows.history, 64, seed=0)):
        assert all(field.dtype == torch.int64 for field in batch[:-1])
        assert batch.weight.dtype == torch.float32
        real = batch.history != PAD
        assert batch.history.shape[1] == max(1, int(real.sum(1).max()))
        nothing = torch.zeros(1, dtype=torch.int64)  # only empty histories: item 0 stands in, with weight 0
        assert torch.equal(batch.unique, batch.history[real].unique() if real.any() else nothing)
        assert torch.equal(batch.unique[batch.position][real], batch.history[real])
        assert (batch.position[~real] == 0).all()
        assert torch.equal(batch.valid, (batch.prefix.flatten() != PAD).nonzero().flatten())
        assert torch.equal(batch.prefix != PAD, batch.target[..., 0] != PAD)
        assert batch.seen.shape == (len(batch.user), 0)
        counted = dict.fromkeys(batch.unique.tolist(), 0)
        for _, visible, _ in shown(batch):
            for item in visible:
                counted[item] += 1
        assert batch.weight.tolist() == [counted[item] for item in batch.unique.tolist()]
        if not prefix_parallel:
            assert batch.prefix.shape[1] == 1
            assert torch.equal(batch.prefix[:, 0], real.sum(1))


def test_a_long_window_is_shared_out_evenly():
    rows = TrainRows(Ragged.from_lengths(np.array([9, 1, 4]), np.arange(14)), 50, prefix_parallel=3)
    assert rows.user.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert rows.first.tolist() == [0, 3, 6, 0, 0, 1, 2]
    assert rows.prefixes.tolist() == [3, 3, 3, 1, 1, 1, 2]
    batch = rows[np.array([1])]  # the middle of the first user
    assert batch.history.tolist() == [[0, 1, 2, 3, 4]]
    assert batch.prefix.tolist() == [[3, 4, 5]]
    assert batch.target.tolist() == [[[3], [4], [5]]]


@pytest.mark.parametrize("prefix_parallel", [True, 4, False])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_same_global_batches(train, monkeypatch, world, prefix_parallel):
    rows = TrainRows(train, 50, prefix_parallel)
    alone = TrainPlan(rows.prefixes, rows.history, 256, seed=0).batches()
    shares = []
    for rank in range(world):
        on(monkeypatch, rank, world)
        shares.append(TrainPlan(rows.prefixes, rows.history, 256, seed=0).batches())
    for i, whole in enumerate(alone):
        parts = [share[i] for share in shares]
        assert all(len(part) for part in parts)
        assert sorted(np.concatenate(parts)) == sorted(whole)
        assert rows.prefixes[whole].sum() <= 256 + 50  # a row more than its share at most
    assert {len(share) for share in shares} == {len(alone)}
    assert sorted(np.concatenate(alone)) == list(range(len(rows)))


@pytest.mark.parametrize("prefix_parallel", [True, 4, False])
@pytest.mark.parametrize("batch_size", [8, 64, 256])
def test_batches_are_full_and_as_many_in_every_epoch(train, batch_size, prefix_parallel):
    rows = TrainRows(train, 50, prefix_parallel)
    plan = TrainPlan(rows.prefixes, rows.history, batch_size, seed=0)
    number = min(-(-rows.prefixes.sum() // batch_size), len(rows))
    share, row = rows.prefixes.sum() / number, rows.prefixes.max()
    for epoch in range(20):
        plan.set_epoch(epoch)
        sizes = np.array([rows.prefixes[batch].sum() for batch in plan.batches()])
        assert len(sizes) == len(plan) == number
        assert sizes.min() > 0
        if batch_size > 2 * row:  # no leftover of a few prefixes, none that is much larger than asked for
            assert abs(sizes - share).max() <= row


def test_batches_hold_rows_of_like_length(train):
    rows = TrainRows(train, 50)
    plan = TrainPlan(rows.prefixes, rows.history, 256, seed=0)
    padding = sum(len(b) * rows.history[b].max() - rows.history[b].sum() for b in plan.batches())
    order = np.random.default_rng(0).permutation(len(rows))
    parts = np.array_split(order, len(plan))
    assert padding < 0.35 * sum(len(b) * rows.history[b].max() - rows.history[b].sum() for b in parts)


def test_order_depends_on_seed_and_epoch_only(train):
    rows = TrainRows(train, 50)

    def order(seed: int, epoch: int) -> list[list[int]]:
        plan = TrainPlan(rows.prefixes, rows.history, 64, seed)
        plan.set_epoch(epoch)
        return [batch.tolist() for batch in plan.batches()]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


def test_too_many_processes_for_a_batch(train, monkeypatch):
    rows = TrainRows(train, 50)
    on(monkeypatch, 0, 64)
    with pytest.raises(ConfigError, match="raise --data.batch_size"):
        TrainPlan(rows.prefixes, rows.history, 64, seed=0).batches()


@pytest.fixture
def evaluation(train) -> tuple[EvalRows, np.ndarray]:
    rng = np.random.default_rng(2)
    targets = Ragged.from_rows([rng.integers(0, 50, n).tolist() for n in rng.integers(0, 4, len(train))])
    return EvalRows(train, targets, 20), np.flatnonzero(targets.lengths)


def test_evaluation_against_a_loop(train, evaluation):
    rows, users = evaluation
    met = []
    for batch in BatchLoader(rows, EvalPlan(users, rows.shown[users], 16)):
        counted = dict.fromkeys(batch.unique.tolist(), 0)
        for b, user in enumerate(batch.user.tolist()):
            row = train.row(user).tolist()
            visible = row[-20:]
            assert batch.history[b].tolist() == visible + [PAD] * (batch.history.shape[1] - len(visible))
            assert batch.prefix[b].tolist() == [len(visible)]
            assert batch.seen[b].tolist() == row + [PAD] * (batch.seen.shape[1] - len(row))
            assert [i for i in batch.target[b].tolist() if i != PAD] == rows.targets.row(user).tolist()
            for item in visible:
                counted[item] += 1
            met.append(user)
        assert batch.valid.tolist() == list(range(len(batch.user)))
        assert batch.weight.tolist() == [counted[item] for item in batch.unique.tolist()]
    assert sorted(met) == users.tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_batches_are_whole_on_every_process(evaluation, monkeypatch, world):
    rows, users = evaluation
    alone = {tuple(batch) for batch in EvalPlan(users, rows.shown[users], 32).batches()}
    shares = []
    for rank in range(world):
        on(monkeypatch, rank, world)
        plan = EvalPlan(users, rows.shown[users], 32)
        shares.append([tuple(batch) for batch in plan.batches()])
        assert len(shares[-1]) == len(plan)
    assert {batch for share in shares for batch in share} == alone  # the same batches, and every user
    assert len({len(share) for share in shares}) == 1  # all processes are done together


def test_more_processes_than_batches(evaluation, monkeypatch):
    rows, users = evaluation
    for rank in range(4):
        on(monkeypatch, rank, 4)
        plan = EvalPlan(users[:5], rows.shown[users[:5]], 32)
        assert [sorted(batch) for batch in plan.batches()] == [users[:5].tolist()]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_goes_on_where_it_stopped(train, num_workers):
    rows = TrainRows(train, 50)

    def loader(epoch: int) -> BatchLoader:
        plan = TrainPlan(rows.prefixes, rows.history, 64, seed=0)
        plan.set_epoch(epoch)
        return BatchLoader(rows, plan, num_workers)

    whole = [batch.user.tolist() for batch in loader(2)]
    first, walk = loader(2), []
    for batch in first:
        walk.append(batch.user.tolist())
        if len(walk) == 5:
            state = first.state_dict()
            break
    second = loader(2)
    second.load_state_dict(state)
    walk += [batch.user.tolist() for batch in second]
    assert walk == whole
    assert [batch.user.tolist() for batch in second] == whole  # only the pass after loading is shortened
    third = loader(3)
    third.load_state_dict(state)
    assert len(list(third)) == len(third)  # the state is of another epoch
    fourth = loader(2)
    fourth.load_state_dict(first.state_dict() | {"batches": len(first)})
    assert len(list(fourth)) == len(fourth)  # the epoch was over


def test_ragged():
    left, right = Ragged.from_rows([[1, 2], [], [3]]), Ragged.from_rows([[4], [5, 6], []])
    both = left.joined(right)
    assert [both.row(i).tolist() for i in range(len(both))] == [[1, 2, 4], [5, 6], [3]]
    back = Ragged.from_series(both.to_series("x"))
    assert np.array_equal(back.offsets, both.offsets)
    assert np.array_equal(back.items, both.items)
    assert both.lengths.tolist() == [3, 2, 1]
    empty = Ragged.from_rows([[], []])
    assert np.array_equal(Ragged.from_series(empty.to_series("x")).offsets, empty.offsets)
