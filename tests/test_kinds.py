"""Kinds of events: which are read, which are predicted, and how much each counts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from setrec.cf import count_cooccurrence, count_transitions
from setrec.data import Cleaning, SETRecDataModule, SyntheticWorld
from setrec.data.batches import EvalRows, TrainRows
from setrec.data.catalogue import Histories
from setrec.data.kinds import Kinds
from setrec.data.past import past_events
from setrec.errors import ConfigError, DataError
from setrec.evaluation.results import Protocol
from setrec.files.ragged import Ragged, Splits
from setrec.inference.history_file import read_history_file
from setrec.schemas import PAD
from setrec.scoring.similarity import cooccurrence_cosine

NAMES = ("buy", "cart", "view")
BUY, CART, VIEW = range(3)


def rows(*lists: list[int], dtype: type = np.int32) -> Ragged:
    ragged = Ragged.from_rows(list(lists))
    return Ragged(ragged.offsets, ragged.items.astype(dtype))


def histories() -> Histories:
    """Two users, items 0..9: what each did is beside it."""
    items = Splits(rows([0, 1, 2, 1, 3], [4, 5]), rows([6, 2], [7]), rows([8], [9, 0]))
    kinds = Splits(
        rows([VIEW, BUY, VIEW, CART, BUY], [VIEW, VIEW], dtype=np.uint8),
        rows([VIEW, BUY], [VIEW], dtype=np.uint8),
        rows([BUY], [VIEW, BUY], dtype=np.uint8),
    )
    times = Splits(*(Ragged(one.offsets, one.items.astype(np.int64) * 10) for one in items))
    return Histories(["u", "v"], *items, times, kinds, NAMES, since=np.array([2, 2]))


def lists(ragged: Ragged) -> list[list[int]]:
    return [ragged.row(u).tolist() for u in range(len(ragged))]


def test_without_options_nothing_changes() -> None:
    before = histories()
    assert Kinds().apply(before) is before
    assert before.targets("validation") is before.validation


def test_context_is_what_is_read() -> None:
    found = Kinds(context=["buy", "cart"]).apply(histories())
    assert [lists(one) for one in (found.train, found.validation, found.test)] == [
        [[1, 1, 3], []],
        [[2], []],
        [[8], [0]],
    ]
    assert found.times is not None
    assert lists(found.times.train) == [[10, 10, 30], []]
    assert found.kinds is not None
    assert lists(found.kinds.train) == [[BUY, CART, BUY], []]
    assert found.since is not None
    assert found.since.tolist() == [1, 0]  # one event that stays was there before the first new one
    assert found.wanted is None


def test_targets_are_marked_and_the_rest_is_still_read() -> None:
    found = Kinds(targets=["buy"]).apply(histories())
    assert lists(found.train) == lists(histories().train)
    assert [lists(found.targets(split)) for split in ("train", "validation", "test")] == [
        [[1, 3], []], [[2], []], [[8], [0]]
    ]  # fmt: skip
    half = found.with_validation_of(np.array([False, True]))
    assert [lists(half.validation), lists(half.targets("validation"))] == [[[], [7]], [[], []]]
    assert half.kinds is not None
    assert lists(half.kinds.validation) == [[], [VIEW]]


@pytest.mark.parametrize(
    ("kinds", "sentence"),
    [
        (Kinds(targets=["bye"]), "kinds.targets: no event is of the kind 'bye'; there are 'buy', 'cart', 'view'"),
        (Kinds(context=["x"]), "kinds.context: no event is of the kind 'x'"),
        (Kinds(weights={"x": 1.0}), "kinds.weights: no event is of the kind 'x'"),
        (Kinds(context=[]), "kinds.context is empty"),
        (Kinds(context=["view"], targets=["buy"]), "'buy' is not read"),
        (Kinds(weights={"view": -1.0}), "'view' has -1.0"),
    ],
)
def test_what_cannot_be_is_one_sentence(kinds: Kinds, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        kinds.apply(histories())


def test_data_without_kinds_is_one_sentence() -> None:
    none = Histories(["u"], *(rows([1]),) * 3)
    with pytest.raises(ConfigError, match="the prepared data has none"):
        Kinds(targets=["buy"]).apply(none)


@pytest.mark.parametrize("prefix_parallel", [True, 2, False])
def test_prefixes_before_other_kinds_are_left_out(prefix_parallel: bool | int) -> None:
    rng = np.random.default_rng(0)
    train = Ragged.from_rows([rng.integers(0, 50, n).tolist() for n in (1, 4, 9, 30, 0, 12)])
    wanted = Ragged(train.offsets, rng.random(len(train.items)) < 0.4)
    since = np.array([0, 0, 3, 0, 0, 11])

    def prefixes(made: TrainRows) -> dict[tuple[int, int], tuple[list[int], int]]:
        found = {}
        for r in range(len(made)):
            batch = made[np.array([r])]
            shown = batch.history[0].tolist()
            for prefix, target in zip(batch.prefix[0].tolist(), batch.target[0, :, 0].tolist(), strict=True):
                begin = int(made.begin[r])
                found[int(batch.user[0]), begin + prefix] = (shown[:prefix], target)
            assert batch.weight.sum() == sum(batch.prefix[0].tolist())
        assert sum(made.prefixes) == len(found)
        return found

    every = prefixes(TrainRows(train, 10, prefix_parallel, since))
    some = prefixes(TrainRows(train, 10, prefix_parallel, since, wanted))
    assert some == {key: one for key, one in every.items() if wanted.items[key[1]]}
    all_wanted = Ragged(train.offsets, np.ones(len(train.items), bool))
    assert prefixes(TrainRows(train, 10, prefix_parallel, since, all_wanted)) == every


def test_seen_items_are_those_of_target_kinds() -> None:
    found = Kinds(targets=["buy"]).apply(histories())
    made = EvalRows(found.past("test"), found.targets("test"), 3, wanted=found.beside("wanted", "test"))
    batch = made[np.array([0, 1])]
    assert batch.history.tolist() == [[3, 6, 2], [4, 5, 7]]
    assert [[item for item in row if item != PAD] for row in batch.seen.tolist()] == [[1, 3, 2], []]
    assert [[item for item in row if item != PAD] for row in batch.target.tolist()] == [[8], [0]]


def test_weights_count_events_several_times() -> None:
    """Against a table made by hand: u is 0 (1/2), 1 (1), 2 (1/2), 1 (1), 3 (1); v is 4 (1/2), 5 (1/2)."""
    found = Kinds(weights={"view": 0.5}).apply(histories())
    past = past_events(found, 10, "validation")
    assert past.worth is not None
    assert past.worth.items.tolist() == [0.5, 1, 0.5, 1, 1, 0.5, 0.5]
    after = count_transitions(past.sequences, 10, 1, worth=past.worth.items).toarray()
    expected = np.zeros((10, 10))
    expected[0, 1], expected[1, 2], expected[2, 1], expected[1, 3], expected[4, 5] = 0.5, 0.5, 0.5, 1, 0.25
    assert after.tolist() == expected.tolist()
    together = count_cooccurrence(past.sequences, 10, 1, past.worth.items).toarray()
    assert together.tolist() == (expected + expected.T).tolist()
    cosine = cooccurrence_cosine(past.sequences, 10, 1, past.worth.items)
    assert cosine[1, 3] == pytest.approx(1 / np.sqrt(2 * 1))  # item 1 counts twice, item 3 once
    assert past.newest.tolist() == [0, 0, 0, 1, 0, 0.5, 0, 0, 0, 0]  # u ends with a purchase, v with a view


def test_the_protocol_says_which_targets_count() -> None:
    fields = {
        "dataset": "x",
        "method": "SETRec",
        "filter_seen": True,
        "users": dict.fromkeys(("all", "warm", "cold"), 1),
    }
    fields |= {"candidates": fields["users"], "max_history": 50, "beta": 0.5, "cutoffs": (10,), "baselines": {}}
    plain = Protocol.of("test", "train", None, **fields)
    assert (plain.target, plain.fitted_to) == ("all test items of a user, each distinct item once", "train")
    kinds = Kinds(context=["view", "buy"], targets=["buy"])
    chosen = Protocol.of("test", "train", None, kinds.words("context"), kinds.words("targets"), **fields)
    assert (
        chosen.target
        == "all test items of a user of kind buy, each distinct item once; seen items are those of kind buy"
    )
    assert chosen.target in "\n".join(chosen.lines())
    assert "events of kinds view, buy" in "\n".join(chosen.lines())
    assert Kinds(context=["buy"]).words("targets") == "kind buy"  # what is not read is not predicted


def test_views_leave_the_purchases_of_the_made_up_world_as_they_are() -> None:
    plain = SyntheticWorld(users=60, items=40).read(None).events
    both = SyntheticWorld(users=60, items=40, views=2).read(None).events
    assert both.filter(both["kind"] == "buy").drop("kind").equals(plain)
    assert 1.5 * len(plain) < (both["kind"] == "view").sum() < 2.5 * len(plain)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with item graphs that reads purchases alone: the path of its checkpoint."""
    from lightning.pytorch import Trainer

    from setrec.backbones import DecoderBackbone
    from setrec.module import SETRecModule

    folder = tmp_path_factory.mktemp("kinds")
    data = SETRecDataModule(
        name="shop", root=str(folder), reader=SyntheticWorld(users=150, items=60, views=1), cleaning=Cleaning(k_core=0),
        kinds=Kinds(context=["buy"]),
    )  # fmt: skip
    torch.manual_seed(0)
    module = SETRecModule(DecoderBackbone(shape="nano"), n_sem=1, neighbours=True)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_train_batches=2, default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(folder / "it.ckpt")
    return folder / "it.ckpt"


def test_a_recommender_leaves_out_what_the_model_does_not_read(trained: Path, tmp_path: Path) -> None:
    from setrec import Recommender

    recommender = Recommender.load(trained)
    a, b, c = (item.id for item in recommender.popular(3))
    bought = recommender.recommend([[a, c]], k=60)[0]
    mixed = recommender.recommend([[a, b, c], [a, c]], k=60, kinds=[["buy", "view", "buy"], None])
    for one in mixed:
        assert [item.id for item in one.items] == [item.id for item in bought.items]
        assert [item.score for item in one.items] == pytest.approx([item.score for item in bought.items], abs=1e-4)
    assert b in {item.id for item in mixed[0].items}  # only viewed, so it is not left out
    recommender.save_pretrained(tmp_path / "model")
    again = Recommender.load(tmp_path / "model").recommend([[a, b, c]], k=60, kinds=[["buy", "view", "buy"]])[0]
    assert [item.id for item in again.items] == [item.id for item in bought.items]
    with pytest.raises(DataError, match="history 0 has 2 items and 1 kinds"):
        recommender.recommend([[a, b]], kinds=[["buy"]])
    with pytest.raises(DataError, match="kinds of 2 histories, but 1"):
        recommender.recommend([[a]], kinds=[["buy"], ["buy"]])


def test_a_file_of_histories_may_hold_kinds(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,timestamp,what\nu,b,2,view\nv,c,3,\nu,a,1,buy\n")
    found = read_history_file(path, kind="what")
    assert found == (["u", "v"], [["a", "b"], ["c"]], [["buy", "view"], [""]])
    assert read_history_file(path).kinds is None
    with pytest.raises(DataError, match="--kind kind is a column of a file with a row for each event"):
        read_history_file(path, kind="kind")
