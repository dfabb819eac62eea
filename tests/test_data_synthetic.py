"""The made-up world holds what a recommender should find: sequence, taste, text, cold items."""

import numpy as np
import pytest

from setrec.cf import CooccurrenceSVD
from setrec.data import Catalogue, Cleaning, Histories, SyntheticWorld, TimeRatioSplit
from setrec.data.preparation import Preparation
from setrec.data.prepare import prepare
from setrec.text import TfidfSVD


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Catalogue, Histories]:
    folder = tmp_path_factory.mktemp("data") / "world"
    prepare(
        "world",
        folder,
        Preparation(SyntheticWorld(), TfidfSVD(), [CooccurrenceSVD()], Cleaning(), TimeRatioSplit(), False),
        None,
    )
    return Catalogue.load(folder), Histories.load(folder)


def test_a_seed_is_a_world():
    one, same, other = (SyntheticWorld(users=50, items=100, seed=seed).read(None) for seed in (1, 1, 2))
    assert one.events.equals(same.events)
    assert one.items.equals(same.items)
    assert not one.events.equals(other.events)


def test_size(world):
    items, histories = world
    assert 1_800 <= len(histories.ids) <= 2_000
    assert 700 <= items.n_items <= 800
    whole = histories.train.lengths + histories.validation.lengths + histories.test.lengths
    assert 8 <= whole.mean() <= 12
    assert 0.05 < float((~items.warm).float().mean()) < 0.2
    assert (histories.test.lengths > 0).sum() > 1_000


def test_nothing_is_bought_before_its_release_or_twice():
    log = SyntheticWorld(users=100, items=200).read(None)
    assert not log.events.select("user", "item").is_duplicated().any()
    assert set(log.events["item"]) <= set(log.items["id"])


def hits(scores: np.ndarray, targets: list[np.ndarray]) -> float:
    top = np.argsort(-scores, axis=1)[:, :10]
    return float(np.mean([len(set(t[:10]) & set(g.tolist())) / len(g) for t, g in zip(top, targets, strict=True)]))


def test_what_came_last_and_texts_beat_popularity(world):
    """Recall@10 of three one-line rankings: the regularities are there for a model to find."""
    items, histories = world
    history = histories.train.joined(histories.validation)
    users = np.flatnonzero(histories.test.lengths)
    targets = [histories.test.row(u) for u in users]
    popularity = np.tile(items.count.numpy().astype(float), (len(users), 1))
    following = np.zeros((items.n_items, items.n_items))
    for u in range(len(history)):
        np.add.at(following, (history.row(u)[:-1], history.row(u)[1:]), 1)
    last = np.array([history.row(u)[-1] for u in users])
    text = items.text.numpy()
    mean_text = np.stack([text[history.row(u)[-5:]].mean(0) for u in users])
    seen = np.stack([np.isin(np.arange(items.n_items), history.row(u)) for u in users])  # nobody buys a thing twice
    tables = (popularity, following[last], mean_text @ text.T)
    by_popularity, by_last, by_text = (hits(np.where(seen, -np.inf, scores), targets) for scores in tables)
    assert by_last > 2 * by_popularity
    assert by_text > 1.2 * by_popularity
    cold = ~items.warm.numpy()
    new = [(i, t[cold[t]]) for i, t in enumerate(targets) if cold[t].any()]
    only_cold = np.where(cold, mean_text @ text.T, -np.inf)
    chance = 10 / cold.sum()
    assert hits(only_cold[[i for i, _ in new]], [t for _, t in new]) > 1.5 * chance
