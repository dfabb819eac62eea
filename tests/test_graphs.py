"""What is counted beside the slots: graphs by hand, what may be known when, and the score's sum."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from setrec.cli import run
from setrec.data.batches import TrainRows
from setrec.data.catalogue import Catalogue, Histories
from setrec.data.past import PastEvents, past_events
from setrec.evaluation.baselines import ItemCF, NgramSimilarity, TextSimilarity
from setrec.files.ragged import Ragged
from setrec.scoring import graphs as graphs_module
from setrec.scoring.char_ngrams import SHARE, CharNgrams
from setrec.scoring.graphs import (
    COLD_TEXT,
    FADING,
    PAIRS,
    STEPS,
    TEXT,
    TRANSITIONS,
    Before,
    HistoryStatistics,
    ItemGraphs,
    Reach,
    graph_parts,
    graph_scores,
    history_statistics,
    infer_cooccurrence,
    item_graphs,
)
from setrec.scoring.neighbours import Graph, strongest
from setrec.scoring.similarity import TextCosine, faded_items
from setrec.scoring.text_graphs import TextGraphs, TextNeighbours
from tests.conftest import command

N = 6
NEAR = PAIRS["near"]
TEXTS = ["red car", "blue car", "red bus", "a doll", "dolls", ""]


def ragged(*rows: list[int]) -> Ragged:
    return Ragged.from_rows(list(rows))


def items(text: torch.Tensor, texts: list[str] | None, warm: torch.Tensor) -> Catalogue:
    """A catalogue with these texts."""
    ids = [f"i{n}" for n in range(N)]
    return Catalogue("x", ids, ids, text, (), (), warm.long(), "", texts)


def faded_cosine(cosine: TextCosine, ngrams: CharNgrams | None, history: torch.Tensor, reach: Reach) -> torch.Tensor:
    """What a graph cuts: the whole rows of similarity, summed over the last items."""
    last, weight = faded_items(history, reach.last, reach.decay)
    scores = cosine.sharpened_sum(last, weight)
    return scores if ngrams is None else scores + SHARE * ngrams.score(last, weight)


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
    scores = graph_scores(graph, history, Reach(neighbours=2, last=10, decay=0.9))
    # user 0: item 1 is newest (row 1), item 0 one step older (row 0 times .9)
    expected = torch.tensor([[0.5, 0.45, 0.225], [0.25, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(scores, expected)


def test_graphs_are_the_baselines_where_nothing_is_cut() -> None:
    h = histories()
    pairs = history_statistics(PastEvents(h.train, torch.zeros(N)), N, NEAR).cooccurrence
    history = torch.tensor([[0, 1, 2], [3, -1, -1], [2, 0, -1]])
    assert torch.allclose(graph_scores(pairs, history, NEAR.reach), ItemCF(h.train, N).score(history))
    text = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    sharpened = TextSimilarity(TextCosine(text), "sharpened")
    with_ngrams = NgramSimilarity(sharpened, CharNgrams(TEXTS))
    warm = torch.ones(N, dtype=torch.bool)
    for texts, baseline in ((None, sharpened), (TEXTS, with_ngrams)):
        graphs = TextNeighbours(items(text, texts, warm)).graphs
        mine, theirs = graph_scores(graphs.all, history, TEXT), baseline.score(history)
        for user, own in enumerate(history.tolist()):
            others = [i for i in range(N) if i not in own]  # an item isn't its own neighbour
            assert torch.allclose(mine[user, others], theirs[user, others], atol=1e-6)


@pytest.mark.parametrize(
    ("split", "counted", "recent"),
    [("validation", [2, 3, 2, 1, 0, 0], [0, 1, 2, 1, 0, 0]), ("test", [2, 3, 3, 2, 2, 0], [0, 0, 2, 1, 1, 0])],
)
def test_known_is_what_came_before_and_never_test(split, counted, recent) -> None:
    found = past_events(histories(), N, split)
    assert np.bincount(found.sequences.items, minlength=N).tolist() == counted
    assert found.newest.tolist() == recent


def test_an_empty_history_has_no_newest_item() -> None:
    h = histories()
    empty = Histories(h.ids, ragged([0, 1], [], [2], []), h.validation, h.test)
    assert past_events(empty, N, "validation").newest.tolist() == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("prefix_parallel", [True, False])
def test_refit_asks_for_the_validation_items_only(prefix_parallel: bool) -> None:
    h = histories()
    rows = TrainRows(h.train.joined(h.validation), 2, prefix_parallel, since=h.train.lengths)
    asked = []
    for row in range(len(rows)):
        batch = rows[np.array([row])]
        for place, target in zip(batch.prefix[0].tolist(), batch.target[0, :, 0].tolist(), strict=True):
            asked.append((int(batch.user), batch.history[0, :place].tolist(), target))
    # c's window holds its last 3 items, [2, 4, 2]: its first validation item is asked for from one item of history
    assert asked == [(0, [0, 1], 4), (2, [2], 4), (2, [2, 4], 2), (3, [3], 3)]


def test_counts_move_with_the_catalogue() -> None:
    counted = HistoryStatistics(
        Graph(torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.tensor([[0.5, 0.25], [0.5, 0.1], [0.25, 0.1]])),
        Graph(torch.tensor([[2], [0], [1]]), torch.tensor([[0.75], [0.5], [0.1]])),  # 0 -> 2, 1 -> 0, 2 -> 1
        torch.tensor([1.0, 2.0, 3.0]),
    )
    moved = counted.moved(torch.tensor([2, -1, 0]))  # item 1 is gone, a new one stands at row 1
    assert moved.recency.tolist() == [3.0, 0.0, 1.0]
    scores = graph_scores(moved.cooccurrence, torch.tensor([[0], [1], [2]]), NEAR.reach)
    assert scores.tolist() == [[0.0, 0.0, 0.25], [0.0, 0.0, 0.0], [0.25, 0.0, 0.0]]
    scores = graph_scores(moved.transitions, torch.tensor([[0], [1], [2]]), TRANSITIONS)
    assert scores.tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.75, 0.0, 0.0]]  # item 0 is row 2 now, item 2 row 0


def test_transitions_know_the_order_and_the_distance() -> None:
    sequences = Ragged.from_rows([[0, 1, 2, 3, 4], [0, 1], [1, 1, 0]])
    graph = history_statistics(PastEvents(sequences, torch.zeros(N)), N, NEAR).transitions
    found = graph_scores(graph, torch.arange(5)[:, None], TRANSITIONS)  # (5, N): one item a history
    n = [3, 4, 1, 1, 1]  # occurrences
    for i in range(5):
        for j in range(5):
            steps = j - i
            count = FADING ** (steps - 1) if 0 < steps <= STEPS else 0.0  # in the first history
            count += {(0, 1): 1.0, (1, 0): 1.0 + FADING}.get(
                (i, j), 0.0
            )  # in the others; 1 is two places and one before 0
            assert found[i, j] == pytest.approx(count / (n[i] * n[j]) ** 0.5, abs=1e-6)


def test_items_known_by_their_text_alone() -> None:
    counted = history_statistics(PastEvents(histories().train, torch.zeros(N)), N, NEAR)
    warm = torch.tensor([True, True, True, True, False, False])
    text = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    found = item_graphs(counted, NEAR, TextNeighbours(items(text, TEXTS, warm)).graphs, warm, torch.device("cpu"))
    assert found.cold.tolist() == [4, 5]
    assert item_graphs(counted, NEAR, None, warm, torch.device("cpu")).cold.tolist() == []  # nothing to know them by
    history = torch.tensor([[0, 4, 5, 1], [2, -1, -1, -1]])
    cosine, ngrams = TextCosine(text), CharNgrams(TEXTS)
    scores = graph_parts(found, history)["text"]  # (2, N)
    for user, own in enumerate(([0, 4, 5, 1], [2])):
        for item in set(range(N)) - set(own):
            whole = faded_cosine(cosine, ngrams, history, TEXT if warm[item] else COLD_TEXT)
            assert scores[user, item] == pytest.approx(float(whole[user, item]), abs=1e-6)


def test_the_cooccurrence_of_a_cold_item_is_that_of_warm_items_with_similar_texts() -> None:
    warm = torch.tensor([True, True, True, False, False, True])
    # item 3 has the texts of 1 (three quarters) and 2 (a quarter); 4 is a cold one and counts for nothing; item 4 has nobody
    text = Graph(torch.tensor([[0, 0, 0]] * 3 + [[4, 1, 2], [0, 0, 0], [0, 0, 0]]),
                 torch.tensor([[0.0, 0.0, 0.0]] * 3 + [[0.9, 0.6, 0.2], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))  # fmt: skip
    pairs = Graph(torch.tensor([[1, 2], [0, 2], [0, 0], [0, 0], [0, 0], [2, 0]]),
                  torch.tensor([[0.8, 0.4], [0.8, 0.1], [0.4, 0.0], [0.0, 0.0], [0.0, 0.0], [0.2, 0.0]]))  # fmt: skip
    found = infer_cooccurrence(pairs, text, warm).graph
    whole = torch.zeros(N, N).scatter_add_(1, found.item.long(), found.weight)
    expected = torch.zeros(N, N)
    expected[0, 3] = 0.75 * 0.8 + 0.25 * 0.4  # item 0 stands beside 1 (.8) and beside 2 (.4)
    expected[1, 3] = 0.25 * 0.1
    expected[5, 3] = 0.25 * 0.2
    torch.testing.assert_close(whole, expected)
    graphs = item_graphs(
        HistoryStatistics(pairs, pairs, torch.zeros(N)), NEAR, TextGraphs(text, text), warm, torch.device("cpu")
    )
    parts = graph_parts(graphs, torch.tensor([[5, 0]]))  # 0 is the newest, 5 a step older
    assert parts["cooccurrence"][0, 3] == pytest.approx(0.7 + 0.9 * 0.05)
    assert parts["cooccurrence"][0, 1] == pytest.approx(0.8)


def test_a_change_of_the_catalogue_infers_only_what_it_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step as at once: items come and go, warm and cold ones."""
    rng = np.random.default_rng(0)
    everyone, base = 70, 60  # the last 10 are not in the base; items 40 on are cold
    texts = np.triu(rng.random((everyone, everyone)) * (rng.random((everyone, everyone)) < 0.15), 1)
    texts = (texts + texts.T).astype(np.float32)
    together = np.triu(rng.random((40, 40)) * (rng.random((40, 40)) < 0.06), 1)
    counts = np.zeros((base, base), np.float32)
    counts[:40, :40] = together + together.T
    counted = HistoryStatistics(
        strongest(sp.csr_matrix(counts), 5), strongest(sp.csr_matrix(counts), 5), torch.zeros(base)
    )
    made: list[int] = []
    rows_made = graphs_module._inferred_rows
    monkeypatch.setattr(
        graphs_module, "_inferred_rows", lambda some, similar: made.append(len(some.item)) or rows_made(some, similar)
    )

    def graphs(ids: list[int], before: Before | None) -> ItemGraphs:
        rows = torch.tensor([i if i < base else -1 for i in ids])
        text = strongest(sp.csr_matrix(texts[np.ix_(ids, ids)]), 6)
        warm = torch.tensor([i < 40 for i in ids])
        return item_graphs(counted.moved(rows), NEAR, TextGraphs(text, text), warm, torch.device("cpu"), before)

    ids = list(range(base))
    now = graphs(ids, None)
    for gone, new in (([], [60]), ([3, 50], []), ([], [61, 62, 63]), ([60, 7, 8, 9], [64]), ([], [60, 65])):
        after = [i for i in ids if i not in gone] + new
        place = {own: row for row, own in enumerate(ids)}
        now = graphs(after, Before(now, torch.tensor([place.get(own, -1) for own in after])))
        fresh = graphs(after, None)
        assert now.inferred is not None
        assert fresh.inferred is not None
        assert made[-1] == len(after)
        assert 0 < made[-2] < len(after) * 0.9  # not all rows
        for one, other in zip(now.inferred, fresh.inferred, strict=True):
            width = min(one.item.shape[1], other.item.shape[1])
            assert torch.equal(one.item[:, :width], other.item[:, :width])
            assert torch.equal(one.weight[:, :width], other.weight[:, :width])
            assert not one.weight[:, width:].any()
            assert not other.weight[:, width:].any()
        ids = after


def test_the_whole_history_counts_alike() -> None:
    """Items of one history are pairs however far apart they stand, and every item of a history says the same."""
    history = PAIRS["history"]
    rows = ragged([0, 3, 3, 4, 4, 5, 5, 1], [1, 2])
    counted = history_statistics(PastEvents(rows, torch.zeros(N)), N, history).cooccurrence
    whole = torch.zeros(N, N).scatter_add_(1, counted.item.long(), counted.weight)
    assert whole[0, 1] == pytest.approx(1 / 2**0.5)  # seven steps apart; item 0 stands once, item 1 twice
    near = history_statistics(PastEvents(rows, torch.zeros(N)), N, NEAR).cooccurrence
    assert torch.zeros(N, N).scatter_add_(1, near.item.long(), near.weight)[0, 1] == 0
    one, other = (graph_scores(counted, torch.tensor([row]), history.reach) for row in ([0, 1, 3], [3, 1, 0]))
    torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [["--model.n_sem=0"], ["--model.n_cf=0"]])
def test_the_weights_of_graphs_are_chosen_where_one_kind_of_slots_leaves_no_beta(
    tmp_path: Path, slots: list[str]
) -> None:
    words = command("fit", tmp_path, "--trainer.max_epochs=1", "--model.objective=score", "--model.neighbours=true")
    cli = run(
        [*words, "--model.backbone=T5Backbone", "--model.backbone.shape=nano", "--model.cf_score_dropout=0.5", *slots]
    )
    assert cli.model.weights_chosen
    assert cli.trainer.callback_metrics["recall@10"] > 0
    grid = cli.model.weightings()
    assert len({w.neighbours for w in grid}) > 1
    assert len({w.beta for w in grid}) == 1
