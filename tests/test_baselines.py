"""Baselines against naive double loops, and against the measured figures on the real Toys release."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from setrec.data.catalogue import Catalogue, Histories
from setrec.evaluation.baselines import (
    Counted,
    ItemCF,
    ItemCFText,
    Popularity,
    TextSimilarity,
    Transitions,
    choose_weight,
    fit_baselines,
    padded,
)
from setrec.evaluation.metrics import RandomTieMetrics, RankingMetrics
from setrec.files.ragged import Ragged
from setrec.scoring import similarity
from setrec.scoring.char_ngrams import CharNgrams
from setrec.scoring.similarity import TextCosine
from setrec.scoring.topk import mask_seen, top_groups

N = 30


def rows_of(seed: int, users: int, longest: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, N, rng.integers(0, longest + 1)).tolist() for _ in range(users)]


def world(text: bool = True) -> tuple[Catalogue, Histories]:
    train, validation, test = (Ragged.from_rows(rows_of(seed, 40, most)) for seed, most in ((1, 15), (2, 3), (3, 4)))
    vectors = torch.randn(N, 6, generator=torch.Generator().manual_seed(4))
    vectors[7] = 0  # an item without text
    count = torch.from_numpy(np.bincount(train.items, minlength=N))
    ids = [str(i) for i in range(N)]
    catalogue = Catalogue("toy", ids, ids, vectors if text else None, (), (), count, "")
    return catalogue, Histories([str(u) for u in range(40)], train, validation, test)


HISTORY = torch.tensor([[3, 3, 9, 1, 22, 5, 6, 7, 8, 2, 4, 29], [5, 7] + [-1] * 10, [-1] * 12])


def naive_cf(rows: list[list[int]], history: list[int]) -> list[float]:
    together = np.zeros((N, N))
    for row in rows:
        for i, one in enumerate(row):
            for j, other in enumerate(row):
                if i != j and abs(i - j) <= 5 and one != other:
                    together[one, other] += 1
    count = np.bincount([item for row in rows for item in row], minlength=N)
    scores = [0.0] * N
    for age, item in enumerate(reversed([item for item in history if item >= 0][-10:])):
        for v in range(N):
            if together[item, v]:
                scores[v] += 0.9**age * together[item, v] / math.sqrt(count[item] * count[v])
    return scores


def naive_text(vectors: Tensor, history: list[int], kind: str) -> list[float]:
    last = [item for item in history if item >= 0][-10:]
    scores = []
    for v in range(N):
        cosines = [float(torch.cosine_similarity(vectors[item], vectors[v], dim=0)) for item in last]
        if kind == "mean":
            scores.append(sum(cosines) / max(len(last), 1))
        else:
            scores.append(sum(0.85**age * max(c, 0) ** 6 for age, c in enumerate(reversed(cosines))))
    return scores


def test_item_cf_equals_a_double_loop() -> None:
    rows = rows_of(1, 40, 15)
    scores = ItemCF(Ragged.from_rows(rows), N).score(HISTORY)
    assert scores.dtype == torch.float32
    for row, history in zip(scores, HISTORY.tolist(), strict=True):
        assert row.tolist() == pytest.approx(naive_cf(rows, history), abs=1e-6)
    assert scores[2].abs().sum() == 0  # an empty history scores nothing


@pytest.mark.parametrize("kind", ["mean", "sharpened"])
@pytest.mark.parametrize("table_bytes", [0, 1 << 30])
def test_text_similarity_equals_a_double_loop(kind: str, table_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "TABLE_BYTES", table_bytes)  # both ways: cosines kept whole, and made as needed
    vectors = world()[0].text
    assert vectors is not None
    many = HISTORY.repeat(30, 1)  # more than one block of users
    scores = TextSimilarity(TextCosine(vectors), kind).score(many)
    for row, history in zip(scores[-3:], HISTORY.tolist(), strict=True):
        assert row.tolist() == pytest.approx(naive_text(vectors, history, kind), abs=1e-5)
    assert torch.equal(scores[:3], scores[-3:])


def test_scores_do_not_depend_on_the_batch() -> None:
    catalogue, histories = world()
    history = padded(histories.train, np.arange(40))
    for baseline in fit_baselines(catalogue, histories).values():
        together = baseline.score(history)
        alone = torch.cat([baseline.score(history[u : u + 1, : int((history[u] >= 0).sum())]) for u in range(40)])
        assert torch.equal(together, alone)


def test_what_each_split_may_count() -> None:
    """Validation is answered from train alone; test from train + validation; test's own items change nothing."""
    catalogue, histories = world()
    train, validation = rows_of(1, 40, 15), rows_of(2, 40, 3)
    both = [one + other for one, other in zip(train, validation, strict=True)]
    for split, rows in (("validation", train), ("test", both)):
        fitted = fit_baselines(catalogue, histories, split)
        assert list(fitted) == ["popularity", "item_cf", "text", "item_cf_text", "transitions"]
        expected = naive_cf(rows, HISTORY[0].tolist())
        assert fitted["item_cf"].score(HISTORY)[0].tolist() == pytest.approx(expected, abs=1e-6)
        assert fitted["popularity"].score(HISTORY)[1].tolist() == catalogue.count.tolist()
    other = histories.__class__(histories.ids, histories.train, histories.validation, Ragged.from_rows([[0]] * 40))
    for one, two in zip(fitted.values(), fit_baselines(catalogue, other).values(), strict=True):
        assert torch.equal(one.score(HISTORY), two.score(HISTORY))
        assert one.describe() == two.describe()


def test_a_hybrid_that_reads_ngrams_where_texts_are_kept() -> None:
    catalogue, histories = world()
    fitted = fit_baselines(dataclasses.replace(catalogue, texts=[f"item {i % 7}" for i in range(N)]), histories)
    assert list(fitted) == ["popularity", "item_cf", "text", "item_cf_text", "item_cf_ngrams", "transitions"]
    hybrid = fitted["item_cf_ngrams"]
    assert isinstance(hybrid, ItemCFText)
    ngrams = CharNgrams([f"item {i % 7}" for i in range(N)])
    assert catalogue.text is not None
    text = TextSimilarity(TextCosine(catalogue.text), "sharpened").score(HISTORY)  # (B, N)
    last = [item for item in HISTORY[0].tolist() if item >= 0][-10:][::-1]  # newest first
    text[0] += 0.5 * sum(0.85**age * ngrams.similar(torch.tensor([item]))[0] for age, item in enumerate(last))
    expected = fitted["item_cf"].score(HISTORY)[0] + hybrid.weight * text[0]  # (N,)
    assert torch.allclose(hybrid.score(HISTORY)[0], expected, atol=1e-5)
    assert list(fit_baselines(dataclasses.replace(catalogue, texts=[""] * N), histories))[-2] == "item_cf_text"


def test_without_text_only_three() -> None:
    fitted = fit_baselines(*world(text=False))
    assert list(fitted) == ["popularity", "item_cf", "transitions"]
    assert "cosine of text" not in fitted["transitions"].describe()


def naive_transitions(
    rows: list[list[int]], history: list[int], vectors: Tensor, second: float, cosine: float
) -> list[float]:
    after = np.zeros((N, N))
    for row in rows:
        for one, other in itertools.pairwise(row):
            after[one, other] += 1
    scores = [0.0] * N
    for weight, item in zip((1, second), reversed([item for item in history if item >= 0]), strict=False):
        for v in range(N):
            share = math.log(1 + after[item, v]) / math.log(1 + after[item].max()) if after[item].any() else 0
            similar = float(torch.cosine_similarity(vectors[item], vectors[v], dim=0))
            scores[v] += weight * (share + cosine * similar)
    return scores


def test_transitions_equal_a_double_loop() -> None:
    rows, vectors = rows_of(1, 40, 15), world()[0].text
    assert vectors is not None
    counted = Counted(Ragged.from_rows(rows), "train")
    scores = Transitions(counted, N, TextCosine(vectors), 0.5, 3.0).score(HISTORY)
    for row, history in zip(scores, HISTORY.tolist(), strict=True):
        assert row.tolist() == pytest.approx(naive_transitions(rows, history, vectors, 0.5, 3.0), abs=1e-5)
    assert Transitions(counted, N, None, 0.5, 0.0).score(HISTORY)[2].abs().sum() == 0


def test_weights_of_transitions_are_the_best_on_validation() -> None:
    catalogue, histories = world()
    assert catalogue.text is not None
    found = fit_baselines(catalogue, histories)["transitions"]
    assert isinstance(found, Transitions)
    users = np.nonzero(histories.validation.lengths)[0]
    seen, target = padded(histories.train, users), padded(histories.validation, users)
    recall = {}
    for second, cosine in itertools.product((0.0, 0.5, 1.0), (0.3, 1.0, 3.0)):
        tried = Transitions(Counted(histories.train, "train"), N, TextCosine(catalogue.text), second, cosine)
        metric = RankingMetrics(cutoffs=(10,))
        warm = torch.ones(N, dtype=torch.bool)
        metric.update(torch.from_numpy(users), top_groups(mask_seen(tried.score(seen), seen), warm, 10), target, warm)
        recall[second, cosine] = metric.compute().value("recall@10")
    assert recall[found.second, found.cosine] == max(recall.values())


def test_rows_that_count_stand_twice_where_train_alone_is_asked_for() -> None:
    catalogue, histories = world()
    once, twice = (fit_baselines(catalogue, histories, "test", alone) for alone in (False, True))
    assert list(twice) == [
        "popularity", "item_cf", "item_cf_train", "text", "item_cf_text", "item_cf_text_train", "transitions",
        "transitions_train",
    ]  # fmt: skip
    for name, baseline in once.items():
        assert torch.equal(baseline.score(HISTORY), twice[name].score(HISTORY))
    in_train = fit_baselines(catalogue, histories, "validation", True)
    assert list(in_train) == list(once)  # what lies before validation is training
    for name in ("item_cf", "item_cf_text", "transitions"):
        assert torch.equal(in_train[name].score(HISTORY), twice[f"{name}_train"].score(HISTORY))
        assert not torch.equal(twice[name].score(HISTORY), twice[f"{name}_train"].score(HISTORY))
        assert in_train[name].describe() == twice[f"{name}_train"].describe()


def test_weight_is_the_one_with_the_best_validation_recall() -> None:
    catalogue, histories = world()
    assert catalogue.text is not None
    texts = {kind: TextSimilarity(TextCosine(catalogue.text), kind) for kind in ("mean", "sharpened")}
    cf = ItemCF(histories.train, N)
    choice = choose_weight(cf, texts, histories, weights=(0.0, 0.5, 4.0), batch_size=7)
    users = np.nonzero(histories.validation.lengths)[0]
    seen, target = padded(histories.train, users), padded(histories.validation, users)
    warm = torch.ones(N, dtype=torch.bool)
    for (kind, weight), recall in choice.recall.items():
        scores = mask_seen(ItemCFText(cf, texts[kind], weight).score(seen), seen)
        metric = RankingMetrics(cutoffs=(10,))
        metric.update(torch.from_numpy(users), top_groups(scores, warm, 10), target, warm)
        assert recall == pytest.approx(metric.compute().value("recall@10"), abs=1e-9)
    assert len(set(choice.recall.values())) > 2
    assert choice.recall[choice.kind, choice.weight] == max(choice.recall.values())


def test_no_validation_items_still_gives_a_baseline() -> None:
    catalogue, histories = world()
    empty = histories.__class__(histories.ids, histories.train, Ragged.from_rows([[]] * 40), histories.test)
    assert fit_baselines(catalogue, empty)["item_cf_text"].score(HISTORY).isfinite().all()


def test_padded_rows() -> None:
    rows = Ragged.from_rows([[4, 5], [], [6]])
    assert padded(rows, np.array([2, 0, 1])).tolist() == [[6, -1], [4, 5], [-1, -1]]
    assert padded(rows, np.array([1])).shape == (1, 0)


@pytest.fixture(scope="session")
def toys(toys_raw, tmp_path_factory):  # type: ignore[no-untyped-def]
    from setrec.data import OfficialRelease

    log = OfficialRelease().read(toys_raw)
    n = len(log.items)
    text = torch.from_numpy(np.load(toys_raw / "toys.emb-minilm-tdcb.npy"))
    count = torch.from_numpy(np.bincount(log.train.items, minlength=n))
    catalogue = Catalogue("toys", [""] * n, [""] * n, text, (), (), count, "")
    return catalogue, Histories([""] * len(log.train), log.train, log.validation, log.test)


@pytest.mark.slow
def test_toys_figures(toys: tuple[Catalogue, Histories]) -> None:
    """The measured figures, Recall@10 / NDCG@10 (All): to four decimals."""
    catalogue, histories = toys
    assert catalogue.text is not None
    users = np.nonzero(histories.test.lengths)[0]
    full = histories.train.joined(histories.validation)
    cf, text, popularity = (
        ItemCF(full, catalogue.n_items),
        TextSimilarity(TextCosine(catalogue.text), "mean"),
        Popularity(catalogue.count),
    )
    popular = RandomTieMetrics(cutoffs=(10,))
    ranked = {name: RankingMetrics(cutoffs=(10,)) for name in ("item_cf", "text", "hybrid")}
    for start in range(0, len(users), 512):
        part = users[start : start + 512]
        user, history, target = torch.from_numpy(part), padded(full, part), padded(histories.test, part)
        popular.update(user, popularity.score(history), target, catalogue.warm)
        scores = {"item_cf": cf.score(history), "text": text.score(history)}
        scores["hybrid"] = scores["item_cf"] + scores["text"]
        for name, metric in ranked.items():
            lists = top_groups(mask_seen(scores[name], history), catalogue.warm, 10)
            metric.update(user, lists, target, catalogue.warm)
    tables = {"popularity": popular.compute()} | {name: metric.compute() for name, metric in ranked.items()}
    assert tables["text"].n_users() == {"all": 5559, "warm": 4489, "cold": 2053}
    expected = {
        ("popularity", "all"): (0.0078, 0.0041),  # seen not masked
        ("popularity", "warm"): (0.0108, 0.0055),
        ("item_cf", "all"): (0.0184, 0.0129),  # seen masked, from here on
        ("text", "all"): (0.0121, 0.0081),
        ("text", "warm"): (0.0125, 0.0084),
        ("text", "cold"): (0.0798, 0.0487),
        ("hybrid", "all"): (0.0226, 0.0150),
        ("hybrid", "warm"): (0.0277, 0.0181),
    }
    for (name, group), figures in expected.items():
        got = [round(tables[name].value(metric, group), 4) for metric in ("recall@10", "ndcg@10")]
        assert got == pytest.approx(figures, abs=1.01e-4), (name, group)
    assert tables["popularity"].value("recall@10", "cold") == pytest.approx(10 / 623, rel=1e-6)


def test_a_model_in_half_precision_leaves_the_baselines_alone() -> None:
    text = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    history = torch.tensor([[1, 2, 3], [4, -1, -1]])
    for kind in ("mean", "sharpened"):
        plain = TextSimilarity(TextCosine(text), kind).score(history)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(TextSimilarity(TextCosine(text), kind).score(history), plain)
