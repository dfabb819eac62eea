"""What is counted beside the slots: graphs by hand, what may be known when, and the score's sum."""

import numpy as np
import pytest
import torch

from setrec.baselines import ItemCF, LetterSimilarity, TextSimilarity
from setrec.data.batches import TrainRows
from setrec.data.catalogue import Histories, Ragged
from setrec.data.known import Known, known
from setrec.letters import Letters
from setrec.neighbours import (
    COLD,
    PAIRS,
    TEXT,
    Counted,
    Graph,
    Reach,
    count,
    graph_scores,
    near,
    near_scores,
    text_graphs,
)

N = 6
TEXTS = ["red car", "blue car", "red bus", "a doll", "dolls", ""]


def ragged(*rows: list[int]) -> Ragged:
    return Ragged.from_rows(list(rows))


def histories() -> Histories:
    return Histories(
        ids=list("abcd"),
        train=ragged([0, 1], [1, 2], [0, 1, 2], [3]),
        validation=ragged([4], [], [4, 2], [3]),
        test=ragged([5], [0], [], []),
    )


def test_graph_scores_by_hand() -> None:
    graph = Graph(torch.tensor([[1, 2], [0, 0], [0, 0]]), torch.tensor([[0.5, 0.25], [0.5, 0.0], [0.25, 0.0]]))
    history = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    scores = graph_scores(graph, history, Reach(strongest=2, last=10, decay=0.9))
    # user 0: item 1 is newest (row 1), item 0 one step older (row 0 times .9)
    expected = torch.tensor([[0.5, 0.45, 0.225], [0.25, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(scores, expected)


def test_graphs_are_the_baselines_where_nothing_is_cut() -> None:
    h = histories()
    pairs = count(Known(h.train, torch.zeros(N)), N).pairs
    history = torch.tensor([[0, 1, 2], [3, -1, -1], [2, 0, -1]])
    assert torch.allclose(graph_scores(pairs, history, PAIRS), ItemCF(h.train, N).score(history))
    text = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    sharpened = TextSimilarity(text, "sharpened")
    lettered = LetterSimilarity(sharpened, Letters(TEXTS))
    warm = torch.ones(N, dtype=torch.bool)
    for graphs, baseline in ((text_graphs(text, None, warm), sharpened), (text_graphs(text, TEXTS, warm), lettered)):
        mine, theirs = graph_scores(graphs.any, history, TEXT), baseline.score(history)
        for user, items in enumerate(history.tolist()):
            others = [i for i in range(N) if i not in items]  # an item isn't its own neighbour
            assert torch.allclose(mine[user, others], theirs[user, others], atol=1e-6)


@pytest.mark.parametrize(
    ("split", "counted", "recent"),
    [
        ("validation", [2, 3, 2, 1, 0, 0], [0, 1, 2, 1, 0, 0]),
        ("test", [2, 3, 3, 2, 2, 0], [0, 0, 2, 1, 1, 0]),
    ],
)
def test_known_is_what_came_before_and_never_test(split, counted, recent) -> None:
    found = known(histories(), N, split)
    assert np.bincount(found.sequences.items, minlength=N).tolist() == counted
    assert found.recent.tolist() == recent


def test_an_empty_history_has_no_newest_item() -> None:
    h = histories()
    empty = Histories(h.ids, ragged([0, 1], [], [2], []), h.validation, h.test)
    assert known(empty, N, "validation").recent.tolist() == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("prefix_parallel", [True, False])
def test_refit_asks_for_the_validation_items_only(prefix_parallel: bool) -> None:
    h = histories()
    rows = TrainRows(h.train.joined(h.validation), 2, prefix_parallel, since=h.train.lengths)
    asked = []
    for row in range(len(rows)):
        batch = rows[np.array([row])]
        for place, target in zip(batch.prefix[0].tolist(), batch.target[0].tolist(), strict=True):
            asked.append((int(batch.user), batch.history[0, :place].tolist(), target))
    # c's window holds its last 3 items, [2, 4, 2]: its first validation item is asked for from one item of history
    assert asked == [(0, [0, 1], 4), (2, [2], 4), (2, [2, 4], 2), (3, [3], 3)]


def test_counts_move_with_the_catalogue() -> None:
    counted = Counted(
        Graph(torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.tensor([[0.5, 0.25], [0.5, 0.1], [0.25, 0.1]])),
        torch.tensor([1.0, 2.0, 3.0]),
    )
    moved = counted.moved(torch.tensor([2, -1, 0]))  # item 1 is gone, a new one stands at row 1
    assert moved.recent.tolist() == [3.0, 0.0, 1.0]
    scores = graph_scores(moved.pairs, torch.tensor([[0], [1], [2]]), PAIRS)
    assert scores.tolist() == [[0.0, 0.0, 0.25], [0.0, 0.0, 0.0], [0.25, 0.0, 0.0]]


def test_items_known_by_their_text_alone() -> None:
    counted = count(Known(histories().train, torch.zeros(N)), N)
    warm = torch.tensor([True, True, True, True, False, False])
    text = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    found = near(counted, text_graphs(text, TEXTS, warm), warm, torch.device("cpu"))
    assert found.cold.tolist() == [4, 5]
    assert near(counted, None, warm, torch.device("cpu")).cold.tolist() == []  # nothing to know them by
    history = torch.tensor([[0, 4, 5, 1], [2, -1, -1, -1]])
    warm_alone = TextSimilarity(text, "sharpened", TEXT.last, decay=TEXT.decay)
    longer = TextSimilarity(text, "sharpened", COLD.last, decay=COLD.decay)
    letters = Letters(TEXTS)
    scores = near_scores(found, history)[1]  # (2, N)
    for user, items in enumerate(([0, 4, 5, 1], [2])):
        for item in set(range(N)) - set(items):
            similarity = LetterSimilarity(warm_alone if warm[item] else longer, letters)
            assert scores[user, item] == pytest.approx(float(similarity.score(history)[user, item]), abs=1e-6)
