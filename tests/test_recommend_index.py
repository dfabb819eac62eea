"""Recommending through an index: the lists of scoring everything."""

from typing import Any

import pytest

from setrec.errors import ConfigError
from setrec.inference import answers
from setrec.recommend import Recommender
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
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, run: str, index: str | None
) -> None:
    trained: TrainedRun = request.getfixturevalue(run)
    expected = lists(Recommender.load(trained.checkpoint))
    monkeypatch.setattr(answers, "WHOLE_MATRIX", 0)  # as for a large catalogue
    recommender = Recommender.load(
        trained.checkpoint, index=index
    )  # with so few items every list of IVF4 is looked into
    assert recommender._snapshot.retriever is not None
    for one, other in zip(expected, lists(recommender), strict=True):
        for left, right in zip(one, other, strict=True):
            assert [item.id for item in left.items] == [item.id for item in right.items]
            assert [item.score for item in left.items] == pytest.approx([item.score for item in right.items], abs=1e-4)
            assert all(a.why == b.why for a, b in zip(left.items, right.items, strict=True))


def test_an_index_that_faiss_does_not_know(tiny_run: TrainedRun) -> None:
    with pytest.raises(ConfigError, match=r"faiss can't build the index 'NSW\?'"):
        Recommender.load(tiny_run.checkpoint, index="NSW?")
