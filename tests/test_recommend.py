"""The public API: answers in own ids, equal to the test step's, explained, from any number of threads."""

import dataclasses
import inspect
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from setrec import Recommender
from setrec.data import Histories, SETRecDataModule, SyntheticWorld
from setrec.data.clean import Cleaning
from setrec.errors import ConfigError, DataError
from setrec.inference.options import RecommendOptions
from setrec.scoring.graphs import graph_parts
from setrec.scoring.topk import mask_seen, top_groups
from setrec.scoring.weights import Weights
from setrec.serve.messages import RecommendBody
from tests.conftest import TrainedRun, train_tiny


@pytest.fixture(scope="module")
def recommender(tiny_run: TrainedRun) -> Recommender:
    return Recommender.load(tiny_run.checkpoint)


@pytest.fixture(scope="module")
def users(tiny_run: TrainedRun, recommender: Recommender) -> list[list[str]]:
    """Every user's train and validation items, oldest first, in own ids."""
    histories = Histories.load(tiny_run.data)
    ids = recommender._snapshot.catalogue.ids
    rows = histories.train.joined(histories.validation)
    return [[ids[item] for item in rows.row(u)] for u in range(len(rows))]


def ids_of(recommender: Recommender, histories: list[list[str]], **how: object) -> list[list[str]]:
    return [[item.id for item in answer.items] for answer in recommender.recommend(histories, **how)]  # type: ignore[arg-type]


def datamodule(run: TrainedRun) -> SETRecDataModule:
    data = SETRecDataModule(
        name="tiny",
        reader=SyntheticWorld(users=150, items=80),
        cleaning=Cleaning(k_core=2),
        root=str(run.data.parent),
        batch_size=128,
    )
    data.prepare_data()
    data.setup()
    return data


def test_answers_are_those_of_the_test_step(
    recommender: Recommender, users: list[list[str]], tiny_run: TrainedRun
) -> None:
    """Every test user, seen items masked and not, in the batches of `test` and one by one."""
    restored, data = recommender._snapshot.restored, datamodule(tiny_run)
    catalogue = data.catalogue
    tested = np.flatnonzero(data.histories.test.lengths).tolist()
    for masked in (True, False):
        found = dict(zip(tested, ids_of(recommender, [users[u] for u in tested], exclude_seen=masked), strict=True))
        for batch in data.test_dataloader():
            (scores,) = restored.scorer.scores(batch, [restored.weights])
            scores = mask_seen(scores, batch.seen) if masked else scores
            lists = top_groups(scores, catalogue.warm, 20)[0][:, :10]  # all items
            for user, items in zip(batch.user.tolist(), lists.tolist(), strict=True):
                assert found[user] == [catalogue.ids[item] for item in items]
        for u in tested[:20]:
            assert ids_of(recommender, [users[u]], exclude_seen=masked) == [found[u]]


def test_items_come_with_titles_scores_and_warmth(recommender: Recommender, users: list[list[str]]) -> None:
    catalogue = recommender._snapshot.catalogue
    (answer,) = recommender.recommend(users[:1], k=catalogue.n_items)
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)
    assert {item.warm for item in answer.items} == {True, False}
    for item in answer.items:
        place = catalogue.ids.index(item.id)
        assert item.title == catalogue.titles[place]
        assert item.warm == bool(catalogue.count[place] > 0)
        assert item.why is None


def test_seen_items_are_left_out_however_long_ago(tiny_run: TrainedRun, users: list[list[str]]) -> None:
    """Only the last max_history items are read, but older ones count as seen."""
    recommender = Recommender.load(tiny_run.checkpoint)
    recommender._snapshot = recommender._snapshot._replace(max_history=2)
    long = max(users, key=len)
    assert len(long) > 4
    everything = recommender._snapshot.catalogue.n_items
    found = ids_of(recommender, [long, long[-2:]], k=everything)
    assert not set(found[0]) & set(long)
    assert found[0] == [own for own in found[1] if own not in long]  # the older items change nothing but that


def test_an_empty_history_gets_the_prior_and_unknown_ids_are_told(
    recommender: Recommender, users: list[list[str]]
) -> None:
    known = users[0][:2]
    empty, partly_unknown, plain = recommender.recommend([[], ["nope", known[0], "nope", "never", known[1]], known])
    assert len(empty.items) == 10
    assert empty.unknown == []
    assert partly_unknown.unknown == ["nope", "never"]
    assert [item.id for item in partly_unknown.items] == [item.id for item in plain.items]
    with pytest.raises(DataError, match="history 1: item 'nope'"):
        recommender.recommend([known, ["nope"]], unknown="refuse")


def test_candidates_keep_the_order_of_the_whole_ranking(recommender: Recommender, users: list[list[str]]) -> None:
    (whole,) = ids_of(recommender, users[:1], k=1000)
    some = set(whole[::3])
    assert ids_of(recommender, users[:1], k=1000, candidates=some | {"nope"}) == [whole[::3]]
    assert ids_of(recommender, users[:1], candidates=[]) == [[]]
    with pytest.raises(DataError, match="'nope'"):
        recommender.recommend(users[:1], candidates=["nope"], unknown="refuse")


def test_answers_stand_in_the_order_asked_and_hold_each_user_once(
    recommender: Recommender, users: list[list[str]]
) -> None:
    order = list(range(len(users)))
    random.Random(3).shuffle(order)
    plain = ids_of(recommender, users)
    assert ids_of(recommender, [users[u] for u in order]) == [plain[u] for u in order]
    assert recommender.recommend([]) == []


def test_beta_weighs_the_slots(recommender: Recommender, users: list[list[str]]) -> None:
    chosen, same, cf = (recommender.recommend(users[:1], beta=b)[0] for b in (None, recommender.beta, 0.0))
    assert chosen == same
    (explained,) = recommender.recommend(users[:1], beta=0.0, explain=True)
    assert explained.items[0].score == cf.items[0].score
    assert all(
        value == 0
        for item in explained.items
        for name, value in item.why.parts.items()  # type: ignore[union-attr]
        if "cf" not in name
    )
    for wrong in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="beta"):
            recommender.recommend(users[:1], beta=wrong)


@pytest.mark.parametrize("wrong", ["B01", ["B01", "B02"]])
def test_a_text_is_no_history(recommender: Recommender, wrong: object) -> None:
    with pytest.raises(DataError, match="list of"):
        recommender.recommend(wrong)  # type: ignore[arg-type]


def test_parts_add_up_to_the_score(recommender: Recommender, users: list[list[str]]) -> None:
    names = None
    for beta in (0.0, 0.3, None, 1.0):
        for answer in recommender.recommend([*users[:40], []], k=5, explain=True, beta=beta):
            for item in answer.items:
                assert item.why is not None
                assert sum(item.why.parts.values()) == pytest.approx(item.score, rel=1e-5, abs=1e-5)
                names = set(item.why.parts)
    assert names == {"cf_0", "memory_cf_0", "sem_0", "sem_1", "memory_text"}


def test_why_names_the_closest_items_of_the_history(recommender: Recommender, users: list[list[str]]) -> None:
    catalogue = recommender._snapshot.catalogue
    assert catalogue.text is not None
    row = {own: i for i, own in enumerate(catalogue.ids)}
    history = max(users, key=len)
    history = [*history, history[0]]  # bought again: named once
    (answer,) = recommender.recommend([history], k=200, explain=True)
    for item in answer.items:
        assert item.why is not None
        for table, named in ((catalogue.text, item.why.nearest_text), (catalogue.cf[0], item.why.nearest_cf)):
            of = {own: float(torch.cosine_similarity(table[row[own]], table[row[item.id]], dim=0)) for own in history}
            there = [own for own in of if table[row[own]].norm() > 0]
            if table is catalogue.cf[0]:  # missing_cf is zero
                there = [own for own in there if catalogue.present[0][row[own]]]
                there = there if catalogue.present[0][row[item.id]] else []
            best = sorted((of[own] for own in there), reverse=True)[:3]
            assert [cosine for _, cosine in named] == pytest.approx(best, abs=1e-5)
            assert [of[own] for own, _ in named] == pytest.approx(best, abs=1e-5)
    cold = [item for item in answer.items if not item.warm]
    assert cold
    assert all(item.why.nearest_cf == [] for item in cold)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def with_graphs(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A model with item graphs, and with weights large enough to be seen in every score."""
    flags = ["--model.objective=score", "--model.memory=true", "--model.missing_cf=zero", "--model.neighbours=true"]
    run = train_tiny(tmp_path_factory.mktemp("with_graphs"), *flags)
    checkpoint = torch.load(run.checkpoint, weights_only=True)
    checkpoint["state_dict"]["neighbours_weight"].fill_(4.0)
    checkpoint["state_dict"]["recency_weight"].fill_(0.3)
    checkpoint["state_dict"]["cold_text_weight"].fill_(3.0)
    torch.save(checkpoint, run.checkpoint)
    return run


def test_cold_text_weighs_cold_items_only(with_graphs: TrainedRun) -> None:
    scorer, data = Recommender.load(with_graphs.checkpoint)._snapshot.restored.scorer, datamodule(with_graphs)
    batch = next(iter(data.test_dataloader()))
    assert scorer.graphs is not None
    weights = Weights(beta=0.3, neighbours=2.0, recency=0.5, cold_text=2.0)
    once, thrice, counted = scorer.scores(
        batch, [weights, weights._replace(cold_text=6.0), weights._replace(recency=0.0)]
    )
    warm = data.catalogue.warm
    text = graph_parts(scorer.graphs, batch.history)["text"]  # (B, N)
    assert torch.equal(once[:, warm], thrice[:, warm])
    assert torch.allclose(thrice - once, 0.3 * (6.0 - 2.0) * text * ~warm, atol=1e-5)
    assert (text * ~warm).any()
    assert torch.equal(once[:, ~warm], counted[:, ~warm])  # recency is not part of their score
    assert not torch.equal(once[:, warm], counted[:, warm])


def test_an_older_checkpoint_with_cold_weight_as_a_factor(with_graphs: TrainedRun, tmp_path: Path) -> None:
    checkpoint = torch.load(with_graphs.checkpoint, weights_only=True)
    checkpoint["state_dict"]["cold_weight"] = checkpoint["state_dict"].pop("cold_text_weight") / 4.0  # neighbours: 4
    torch.save(checkpoint, tmp_path / "older.ckpt")
    now, older = (
        Recommender.load(path, data=with_graphs.data) for path in (with_graphs.checkpoint, tmp_path / "older.ckpt")
    )
    assert now._snapshot.restored.weights.cold_text == 3.0
    assert older.recommend([[], ["I1"]]) == now.recommend([[], ["I1"]])


def test_item_graphs_are_part_of_the_answer(with_graphs: TrainedRun, tmp_path: Path) -> None:
    """As in the test step, in the explanation, in a published folder, and after items were added and removed."""
    recommender, data = Recommender.load(with_graphs.checkpoint), datamodule(with_graphs)
    restored = recommender._snapshot.restored
    ids, rows = data.catalogue.ids, data.histories.train.joined(data.histories.validation)
    users = [[ids[item] for item in rows.row(u)] for u in range(len(rows))]
    answers = recommender.recommend(users, explain=True)
    for batch in data.test_dataloader():
        (scores,) = restored.scorer.scores(batch, [restored.weights])
        for user, item, score in zip(batch.user.tolist(), *mask_seen(scores, batch.seen).max(dim=1)[::-1], strict=True):
            first = answers[user].items[0]
            assert first.id == ids[int(item)]
            assert first.score == pytest.approx(float(score), abs=1e-4)
    for answer in answers:
        for item in answer.items:
            assert item.why is not None
            assert sum(item.why.parts.values()) == pytest.approx(item.score, abs=1e-4)
    cold = {item.id: item.why.parts for answer in answers for item in answer.items if not item.warm and item.why}
    assert cold  # or the next line would prove nothing
    by_cf = ("cf_0", "memory_cf_0", "transitions", "recent")
    assert all(parts[name] == 0 for parts in cold.values() for name in by_cf)  # though some were bought in validation
    assert {"neighbours_cf", "neighbours_text", "recent"} <= set(answers[0].items[0].why.parts)  # type: ignore[union-attr]
    recommender.save_pretrained(tmp_path / "model")
    assert Recommender.load(tmp_path / "model").recommend(users, explain=True) == answers
    recommender.add_items([{"id": "NEW", "title": recommender.search("telescope")[0].title}])
    new = recommender.recommend([["NEW"]], k=1, explain=True)[0].items[0]
    assert new.why is not None
    assert new.why.parts["neighbours_text"] > 0  # neighbours of an added item are found by its text
    assert new.why.parts["neighbours_cf"] == 0
    recommender.remove_items(["NEW"])
    for one, two in zip(recommender.recommend(users), answers, strict=True):
        assert [item.id for item in one.items] == [item.id for item in two.items]


def test_options_have_one_set_of_names_and_defaults() -> None:
    """`recommend` spells its arguments out, for editors, and a request names them in JSON: both as in RecommendOptions."""
    options = {field.name: field.default for field in dataclasses.fields(RecommendOptions)}
    signature = inspect.signature(Recommender.recommend).parameters
    asked = ("self", "histories", "kinds")  # what is answered; all else says how
    assert {name: one.default for name, one in signature.items() if name not in asked} == options
    body = {name: field.default for name, field in RecommendBody.model_fields.items() if name not in asked}
    assert body == options


@pytest.mark.parametrize("wrong", [{"k": 0}, {"beta": 1.5}, {"beta": float("nan")}])
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        RecommendOptions(**wrong)  # type: ignore[arg-type]


def test_search_finds_titles_and_ids(recommender: Recommender) -> None:
    catalogue = recommender._snapshot.catalogue
    found = recommender.search("TELESCOPE", limit=100)
    assert [item.id for item in found]
    assert {item.id for item in found} == {
        own for own, title in zip(catalogue.ids, catalogue.titles, strict=True) if "telescope" in title.lower()
    }
    assert recommender.search(catalogue.ids[7])[0].id == catalogue.ids[7]
    assert len(recommender.search("e", limit=3)) == 3
    assert recommender.search("no such title") == []


def test_info_says_what_is_served(recommender: Recommender) -> None:
    info = recommender.info()
    assert info["name"] == "tiny"
    assert info["n_items"] == info["warm"] + info["cold"]
    assert info["slots"] == {"cf": 1, "sem": 2}
    assert info["results"]["metrics"]["all"]["recall@10"] >= 0  # of the test at the end of the fit


def test_many_threads_get_one_state_each_while_items_come_and_go(tiny_run: TrainedRun, users: list[list[str]]) -> None:
    """An answer belongs to the catalogue before a change or after it, never to a mixture."""
    recommender = Recommender.load(tiny_run.checkpoint)
    vector = (recommender._snapshot.catalogue.text * 1.0)[3].tolist()  # type: ignore[operator]
    asked = users[:30]
    without = recommender.recommend(asked, k=20)
    recommender.add_items([{"id": "NEW", "title": "new", "vector": vector}])
    with_it = recommender.recommend(asked, k=20)
    assert with_it != without
    odd: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                if (answers := recommender.recommend(asked, k=20)) not in (without, with_it):
                    odd.append(answers)
            except Exception as error:
                odd.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        recommender.remove_items(["NEW"])
        recommender.add_items([{"id": "NEW", "title": "new", "vector": vector}])
    stop.set()
    for thread in threads:
        thread.join()
    assert not odd


@pytest.mark.slow
def test_a_decoder_only_backbone(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = train_tiny(
        tmp_path_factory.mktemp("decoder"), "--model.backbone=DecoderBackbone", "--model.backbone.shape=nano"
    )
    recommender = Recommender.load(run.checkpoint)
    own = recommender._snapshot.catalogue.ids
    histories = [own[:3], own[5:12], [], own[2:3]]
    together = recommender.recommend(histories, explain=True)
    for history, answer in zip(histories, together, strict=True):
        (alone,) = recommender.recommend([history])
        assert [item.id for item in alone.items] == [item.id for item in answer.items]
        for item in answer.items:
            assert sum(item.why.parts.values()) == pytest.approx(item.score, rel=1e-4, abs=1e-4)  # type: ignore[union-attr]
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(recommender.recommend(histories, explain=True))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [together] * 4


def test_what_cannot_be_loaded_is_told_in_one_sentence(tiny_run: TrainedRun, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="no such file"):
        Recommender.load(tmp_path / "nothing.ckpt")
    wrong = tmp_path / "wrong.ckpt"
    wrong.write_text("hello")
    with pytest.raises(ConfigError, match="not a checkpoint"):
        Recommender.load(wrong)
    with pytest.raises(DataError, match="--data DIR"):
        Recommender.load(tiny_run.checkpoint, data=tmp_path / "moved")
