"""Neighbours by text: in whatever order items come and go, the lists are those of making them at once; and what large ones miss."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from setrec.data.catalogue import Catalogue
from setrec.scoring import text_graphs
from setrec.scoring.char_ngrams import CharNgrams
from setrec.scoring.neighbours import Graph, merged, most_similar, strongest
from setrec.scoring.text_graphs import TextNeighbours, TextSimilarity

WORDS = ["red", "blue", "car", "bus", "doll", "dolls", "castle", "lego"]


def catalogue(own: dict[str, tuple[int, bool]]) -> Catalogue:
    """Items by own id: the number of their text, and whether they are warm. Texts and vectors repeat, so ties are many."""
    ids = list(own)
    vectors = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))  # (4, F)
    text = torch.stack([vectors[number % 4] for number, _ in own.values()])  # (N, F)
    texts = [f"{WORDS[number % 8]} {WORDS[number // 8 % 8]}" for number, _ in own.values()]
    count = torch.tensor([int(warm) for _, warm in own.values()])
    return Catalogue("x", ids, ids, text, (), (), count, "", texts)


def lists(neighbours: TextNeighbours) -> list[dict[str, list[tuple[str, float]]]]:
    """Every item's neighbours by own id, of both graphs."""
    ids = neighbours.catalogue.ids
    return [
        {
            own: [(ids[i], w) for i, w in zip(graph.item[row].tolist(), graph.weight[row].tolist(), strict=True) if w]
            for row, own in enumerate(ids)
        }
        for graph in neighbours.graphs
    ]


ITEMS = st.lists(st.tuples(st.integers(0, 63), st.booleans()), min_size=4, max_size=14)


@settings(max_examples=60, deadline=None)
@given(ITEMS, st.data())
def test_lists_do_not_depend_on_the_order_in_which_items_come_and_go(items, data) -> None:
    names = data.draw(st.permutations([f"i{n}" for n in range(len(items))]))
    everything = dict(zip(names, items, strict=True))
    n_base = data.draw(st.integers(2, len(items) - 1))
    base = TextNeighbours(catalogue(dict(list(everything.items())[:n_base])))
    words = base.words
    assert words is not None
    removed = data.draw(st.sets(st.sampled_from(names[:n_base]), max_size=n_base - 1))
    steps = data.draw(st.permutations([*names[n_base:], *sorted(removed)]))
    with pytest.MonkeyPatch.context() as patch:  # short lists, so that most have an edge
        patch.setattr(text_graphs, "NEIGHBOURS", 2)
        patch.setattr(text_graphs, "COLD_NEIGHBOURS", 3)
        base = now = TextNeighbours(base.catalogue, words=words)
        own = dict(list(everything.items())[:n_base])
        for name in steps:
            own = {**own, name: everything[name]} if name not in own else {n: v for n, v in own.items() if n != name}
            now = now.changed(catalogue(own))
        whole = catalogue(own)
        vectors = now.words[1]
        at_once = TextNeighbours(whole, words=(words[0], vectors))
        back = now.changed(base.catalogue)
    assert lists(now) == lists(at_once)
    assert lists(back) == lists(base)


def test_an_item_that_comes_again_with_another_text_is_another_one() -> None:
    own = {"a": (0, True), "b": (8, True), "c": (9, True), "d": (0, False)}
    before = TextNeighbours(catalogue(own))
    own["a"] = (9, False)
    after = before.changed(catalogue(own))
    assert after.words is not None
    assert lists(after) == lists(TextNeighbours(after.catalogue, words=after.words))
    assert lists(after) != lists(before)


def test_only_the_lists_of_what_changed_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {f"i{n:02d}": (n, n % 2 == 0) for n in range(40)}
    now = TextNeighbours(catalogue(own))
    asked: list[int] = []
    whole = TextSimilarity.whole
    monkeypatch.setattr(TextSimilarity, "whole", lambda self, items: asked.extend(items.tolist()) or whole(self, items))
    now.changed(catalogue({**own, "new": (3, False)}))
    assert set(asked) == {40}


def test_of_equally_similar_items_the_first_stay() -> None:
    rows = torch.tensor([[0.5, 0.5, 0.0, 0.5, 1.0]])
    candidates = torch.tensor([7, 3, 9, 5, 1])
    best = most_similar(rows, candidates, 3)
    assert best.item.tolist() == [[1, 7, 3]]
    rank = torch.full((10,), 9).index_copy_(0, candidates, torch.arange(5))
    parts = [most_similar(rows[:, part], candidates[part], 3) for part in (slice(0, 2), slice(2, 5))]
    assert merged(parts[1], parts[0], rank, 3).item.tolist() == best.item.tolist()


def test_the_strongest_of_a_sparse_row() -> None:
    table = sp.csr_matrix([[0, 0.5, 0.5, 1.0], [0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0, 0, 0.5, 0]], dtype="float32")
    graph = strongest(table, 2)
    assert graph.item.tolist() == [[3, 1], [0, 0], [0, 1], [2, 0]]
    assert graph.weight.tolist() == [[1.0, 0.5], [0, 0], [0.25, 0.25], [0.5, 0]]


@pytest.mark.parametrize("neighbours", [1, 7, 1000])
def test_the_strongest_are_those_of_a_sort_by_weight_and_column(
    neighbours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of all lengths, many equal weights, columns in any order, several blocks of rows."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr("setrec.scoring.neighbours.ROWS", 16)
    dense = rng.integers(0, 5, (50, 300)).astype(np.float32) / 7 * (rng.random((50, 300)) < rng.random((50, 1)))
    table = sp.csr_matrix(dense)
    for row in range(50):
        part = slice(table.indptr[row], table.indptr[row + 1])
        order = rng.permutation(part.stop - part.start)
        table.indices[part], table.data[part] = table.indices[part][order], table.data[part][order]
    table.has_sorted_indices = False
    graph = strongest(table, neighbours)
    for row, weights in enumerate(dense):
        expected = sorted(np.flatnonzero(weights).tolist(), key=lambda column: (-weights[column], column))[:neighbours]
        found = graph.weight[row] > 0
        assert graph.item[row][found].tolist() == expected
        assert graph.weight[row][found].tolist() == weights[expected].tolist()


def large(n_items: int) -> Catalogue:
    """Items in clusters of meaning, with names of brands that cross them."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 16, generator=draw)
    where = torch.randint(20, (n_items,), generator=draw)
    text = centres[where] + 0.7 * torch.randn(n_items, 16, generator=draw)  # (N, F)
    brand = torch.randint(n_items // 5, (n_items,), generator=draw).tolist()
    texts = [f"kind{kind} brand{own:x}{own * 7919:x}" for kind, own in zip(where.tolist(), brand, strict=True)]
    ids = [f"{n:05d}" for n in range(n_items)]
    count = (torch.arange(n_items) % 10 > 0).long()
    return Catalogue("x", ids, ids, text, (), (), count, "", texts)


def test_large_catalogues_find_nearly_all_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    items = large(1500)
    exact = TextNeighbours(items)
    for name, value in {
        "EXACT_UP_TO": 100,
        "CLUSTER": 32,
        "CANDIDATES": 512,
        "NEIGHBOURS": 20,
        "COLD_NEIGHBOURS": 20,
    }.items():
        monkeypatch.setattr(text_graphs, name, value)
    monkeypatch.setattr(TextSimilarity, "whole", lambda *_: pytest.fail("every item compared with every other"))
    found = TextNeighbours(items)
    for wanted, got, least in zip(exact.graphs, found.graphs, (0.95, 0.95), strict=True):
        top = Graph(wanted.item[:, :20], wanted.weight[:, :20])
        hit = (top.item[:, :, None] == got.item[:, None, :]).any(dim=2)  # (N, 20)
        assert (hit * top.weight).sum() / top.weight.sum() > least
        same = hit.all(dim=1)
        assert same.float().mean() > 0.5
        torch.testing.assert_close(got.weight[same], top.weight[same], rtol=0, atol=1e-5)
    without = TextNeighbours(dataclasses.replace(items, texts=None))  # no texts were kept
    assert without.graphs.all.weight.max() <= 1 + 1e-5


def test_graphs_are_kept_with_the_data_and_read_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from setrec.data.identity import Identity

    items = dataclasses.replace(large(300), identity=Identity("f", "", "", []))
    monkeypatch.setattr(text_graphs, "KEPT_FROM", 100)
    assert text_graphs.text_neighbours(items, tmp_path) is not None
    assert not list(tmp_path.iterdir())  # nothing is written where nothing may be
    made = text_graphs.text_neighbours(items, tmp_path, keep=True)
    assert made is not None
    with monkeypatch.context() as patch:
        patch.setattr(TextNeighbours, "_made", lambda _: pytest.fail("made again"))
        read = text_graphs.text_neighbours(items, tmp_path)
        assert read is not None
        assert lists(read) == lists(made)
    other = dataclasses.replace(items, texts=[*items.texts[1:], "another"])
    assert lists(text_graphs.text_neighbours(other, tmp_path)) != lists(made)
    whole = (tmp_path / text_graphs.KEPT).read_bytes()
    for place in (-1, -2000, -20_000):  # a number of the lists: it must not be taken for theirs
        (tmp_path / text_graphs.KEPT).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place:][1:])
        assert lists(text_graphs.text_neighbours(items, tmp_path)) == lists(made)
    (tmp_path / text_graphs.KEPT).write_bytes(b"damaged")
    assert lists(text_graphs.text_neighbours(items, tmp_path, keep=True)) == lists(made)


def test_ngrams_of_later_texts_count_as_they_did() -> None:
    ngrams = CharNgrams(["red car", "red bus", "blue car"])
    assert (ngrams.more(["red car"]) != ngrams.vectors[:1]).nnz == 0
    assert CharNgrams(["abc", "", "xyz"]).more(["abc"]).nnz == 0
