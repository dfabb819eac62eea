"""The public API: answers in own ids, equal to the test step's, from any number of threads."""

import pytest

from setrec import Recommender
from tests.conftest import TrainedRun


@pytest.fixture(scope="module")
def recommender(tiny_run: TrainedRun) -> Recommender:
    return Recommender.load(tiny_run.checkpoint)


def test_answers_are_in_own_ids_with_titles(recommender: Recommender) -> None:
    known = [item.id for item in recommender.search("", limit=3)]
    (answer,) = recommender.recommend([known], k=5)
    assert len(answer.items) == 5
    assert not {item.id for item in answer.items} & set(known)
    assert all(item.title and item.why is None for item in answer.items)
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)
