"""Recommending through an index, with and without a prefix cache: the lists of scoring everything."""

from typing import Any

import pytest
import torch

from setrec.data.batches import EvalRows
from setrec.errors import ConfigError
from setrec.files.ragged import Ragged
from setrec.inference.answers import index_recall
from setrec.recommend import Recommender
from setrec.scoring.retrieval import FaissSearch
from setrec.scoring.topk import mask_seen, top_items
from tests.conftest import TrainedRun


def lists(recommender: Recommender) -> list[Any]:
    ids = recommender._snapshot.catalogue.ids
    histories = [[], ids[:3], ids[5:20], [ids[7]], ids]
    options: list[dict[str, Any]] = [
        {}, {"exclude_seen": False}, {"candidates": ids[10:30]}, {"candidates": []}, {"explain": True, "beta": 0.9},
    ]  # fmt: skip
    found = [recommender.recommend(histories, 7, **more) for more in options]
    width = recommender._trained.catalogue.text.shape[1]
    recommender.add_items([{"id": "new", "title": "new", "vector": [0.1] * width}])
    return [*found, recommender.recommend([["new", *row] for row in histories], 100)]


@pytest.mark.parametrize("index", [None, "Flat", "IVF4,Flat"])
@pytest.mark.parametrize("run", ["tiny_run", "graph_run"])
def test_an_index_gives_the_lists_of_scoring_everything(
    request: pytest.FixtureRequest, run: str, index: str | None
) -> None:
    trained: TrainedRun = request.getfixturevalue(run)
    expected = lists(Recommender.load(trained.checkpoint))
    # with so few items every list of IVF4 is looked into
    recommender = Recommender.load(trained.checkpoint, index=index, prefix_cache=0 if index is None else 1)
    for one, other in zip(expected, lists(recommender), strict=True):
        for left, right in zip(one, other, strict=True):
            assert [item.id for item in left.items] == [item.id for item in right.items]
            assert [item.score for item in left.items] == pytest.approx([item.score for item in right.items], abs=1e-4)
            for a, b in zip(left.items, right.items, strict=True):
                if a.why is not None and b.why is not None:
                    assert a.why.parts == pytest.approx(b.why.parts, abs=1e-4)
                    assert (a.why.nearest_text, a.why.nearest_cf) == (b.why.nearest_text, b.why.nearest_cf)


@pytest.mark.parametrize("run", ["tiny_run", "graph_run"])
def test_the_lists_are_those_of_the_score_matrix(request: pytest.FixtureRequest, run: str) -> None:
    recommender = Recommender.load(request.getfixturevalue(run).checkpoint)
    snapshot = recommender._snapshot
    rows = [[], [0, 1, 2], list(range(5, 20)), list(range(snapshot.catalogue.n_items))]
    histories = [[snapshot.catalogue.ids[item] for item in row] for row in rows]
    everyone = EvalRows(Ragged.from_rows(rows), Ragged.from_rows([[]] * len(rows)), snapshot.max_history)
    for row, history in enumerate(histories):
        batch = everyone[torch.tensor([row]).numpy()]
        with torch.no_grad():  # not around the whole test: the fixture trains when it is first asked for
            (scores,) = snapshot.restored.scorer.scores(batch, [snapshot.restored.weights])  # (1, N)
        for exclude_seen in (True, False):
            (expected,) = top_items(mask_seen(scores, batch.seen) if exclude_seen else scores, 7).tolist()
            (answer,) = recommender.recommend([history], 7, exclude_seen)
            assert [snapshot.row[item.id] for item in answer.items] == [item for item in expected if item >= 0]


def test_a_history_that_grows_is_read_on(tiny_run: TrainedRun) -> None:
    plain = Recommender.load(tiny_run.checkpoint)
    recommender = Recommender.load(tiny_run.checkpoint, prefix_cache=1)
    step, most = max(1, plain._snapshot.max_history // 5), plain._snapshot.max_history
    ids = plain._snapshot.catalogue.ids
    history: list[str] = []
    for n, own in enumerate(ids[:30]):
        history.append(own)
        (answer,) = recommender.recommend([history], 5, exclude_seen=False)
        cut = -(-max(0, len(history) - most) // step) * step  # the window of a long history moves in steps
        (expected,) = plain.recommend([history[cut:]], 5, exclude_seen=False)
        assert [item.id for item in answer.items] == [item.id for item in expected.items]
        moved = cut and -(-max(0, len(history) - 1 - most) // step) * step != cut
        assert answer.kept == (0 if moved else min(n, len(history) - 1 - cut))
    reader = recommender._snapshot.reader
    assert 0 < reader.bytes <= reader.max_bytes
    assert recommender.recommend([history], 5)[0].kept > 0
    recommender.remove_items([ids[40]])  # another catalogue: nothing of the old one is used
    assert recommender.recommend([history], 5)[0].kept == 0


def test_the_prefix_cache_is_bounded(tiny_run: TrainedRun) -> None:
    recommender = Recommender.load(tiny_run.checkpoint, prefix_cache=1)
    reader = recommender._snapshot.reader
    reader.max_bytes = 40_000
    ids = recommender._snapshot.catalogue.ids
    for start in range(30):
        recommender.recommend([ids[start : start + 8]])
        assert reader.bytes <= 40_000
        assert reader.bytes == sum(states.nbytes for states in reader._kept.values())
    assert 0 < len(reader) < 30
    assert recommender.recommend([ids[29:37]])[0].kept == 8  # the newest is there
    assert recommender.recommend([ids[0:8]])[0].kept == 0  # the oldest is not


def test_the_recall_of_an_index_is_told(tiny_run: TrainedRun) -> None:
    recommender = Recommender.load(tiny_run.checkpoint, index="Flat")
    assert recommender.index_recall == 1.0
    info = recommender.info()
    assert (info["index"], info["index_recall@10"]) == ("Flat", 1.0)
    snapshot = recommender._snapshot
    search = snapshot.retriever.search
    assert isinstance(search, FaissSearch)
    search.index.reset()  # an index that finds nothing
    assert index_recall(snapshot) == 0.0
    assert Recommender.load(tiny_run.checkpoint).info()["index_recall@10"] is None


def test_an_index_that_faiss_does_not_know(tiny_run: TrainedRun) -> None:
    with pytest.raises(ConfigError, match=r"faiss can't build the index 'NSW\?'"):
        Recommender.load(tiny_run.checkpoint, index="NSW?")
