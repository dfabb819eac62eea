"""Simple baselines that a model has to beat, counted honestly and shown beside it in every table.

    popularity      occurrences in training; ties, all cold items among them, count at their expected value under random
                    order (metrics.RandomTieMetrics)
    item_cf         cosine of co-occurrence: a user's score is the sum of 0.9^age S(i, .) over the last 10 items
    text            mean cosine of the text vectors with the last 10 items
    item_cf_text    item_cf + weight * text, where text is that mean or `sharpened`, the sum of 0.85^age max(cosine, 0)^6
                    over the last 10 items; weight and kind are those with the best Recall@10 over all items on
                    validation (seen masked)
    item_cf_ngrams  the same with text = sharpened + similarity of character n-grams / 2; where texts are kept

The similarities are those of scoring/similarity.py. A baseline may know what the histories hold before the split that is answered:
co-occurrence is counted in train + validation when test is answered, in train alone when validation is. Popularity counts training
only, as the catalogue does: its cold items stay those without a count. Nothing here looks at test. All work is on the CPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from setrec.data import batches
from setrec.data.catalogue import Catalogue, Histories
from setrec.data.past import past_events
from setrec.evaluation.ranking_table import group_targets
from setrec.files.ragged import Ragged
from setrec.schemas import PAD, EvalSplit
from setrec.scoring.char_ngrams import SHARE, CharNgrams
from setrec.scoring.similarity import BLOCK, WINDOW, TextCosine, cooccurrence_cosine, faded_items, last_items
from setrec.scoring.topk import mask_seen, top_items

WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
LAST = 10  # items of a history that score
CF_DECAY, TEXT_DECAY = 0.9, 0.85  # a step back from the newest item


class Baseline(ABC):
    """Scores items from a history alone."""

    @abstractmethod
    def score(self, history: Tensor) -> Tensor:
        """history: (B, L) int64 on the CPU, oldest first, padded at the end; returns (B, N) float32, no -inf."""

    @abstractmethod
    def describe(self) -> str:
        """Its rule in one line, for the protocol."""


class Popularity(Baseline):
    """Everyone gets the items that occur most. count: (N,) occurrences in training."""

    def __init__(self, count: Tensor) -> None:
        self.count = count.to(torch.float32)  # (N,), exact up to 2^24

    def score(self, history: Tensor) -> Tensor:
        return self.count.expand(len(history), -1)  # (B, N)

    def describe(self) -> str:
        return "occurrences in train; tied items at their expected value under random order"


class ItemCF(Baseline):
    """Item-item cosine of co-occurrence with the last items of the history.

    Args:
        sequences: Histories to count in, oldest item first.
        n_items: N.
        counted: Which splits these are, for the protocol.
    """

    def __init__(self, sequences: Ragged, n_items: int, counted: str = "train") -> None:
        self.counted = counted
        self.similarity = cooccurrence_cosine(sequences, n_items)  # (N, N) sparse

    def score(self, history: Tensor) -> Tensor:
        """See `Baseline.score`."""
        items, there = last_items(history, LAST)  # (B, last)
        weight = CF_DECAY ** np.arange(LAST, dtype=np.float32)  # (last,)
        user, age = np.nonzero(there.numpy())
        shape = (len(history), self.similarity.shape[0])
        profile = sp.csr_matrix((weight[age], (user, items.numpy()[user, age])), shape=shape)  # (B, N)
        return torch.from_numpy((profile @ self.similarity).toarray())  # (B, N)

    def describe(self) -> str:
        """See `Baseline.describe`."""
        return (
            f"cosine of co-occurrence within {WINDOW} steps, counted in {self.counted}; last {LAST} items, "
            f"decay {CF_DECAY} a step"
        )


class TextSimilarity(Baseline):
    """Cosine of text vectors with the last items of the history: their mean, or a sharpened, decayed sum.

    Args:
        cosine: of the text vectors.
        kind: mean | sharpened.
    """

    def __init__(self, cosine: TextCosine, kind: Literal["mean", "sharpened"]) -> None:
        self.cosine, self.kind = cosine, kind

    def score(self, history: Tensor) -> Tensor:
        """See `Baseline.score`."""
        if self.kind == "mean":
            items, there = last_items(history, LAST)  # (B, last)
            weight = there / there.sum(1, keepdim=True).clamp(min=1)  # (B, last)
            return self.cosine.cosines((self.cosine.vectors[items] * weight[..., None]).sum(1))  # (B, N)
        return self.cosine.sharpened_sum(*faded_items(history, LAST, TEXT_DECAY))  # (B, N)

    def describe(self) -> str:
        """See `Baseline.describe`."""
        if self.kind == "mean":
            return f"mean cosine of text vectors with the last {LAST} items"
        return (
            f"sum of max(cosine, 0)^{self.cosine.power} of text vectors with the last {LAST} items, "
            f"decay {TEXT_DECAY} a step"
        )


class NgramSimilarity(Baseline):
    """Sharpened cosine of the text vectors, and half the similarity of character n-grams, with the last items."""

    def __init__(self, sharpened: TextSimilarity, ngrams: CharNgrams) -> None:
        self.sharpened, self.ngrams = sharpened, ngrams

    def score(self, history: Tensor) -> Tensor:
        """See `Baseline.score`."""
        items, weight = faded_items(history, LAST, TEXT_DECAY)  # (B, last)
        return self.sharpened.score(history).add_(self.ngrams.score(items, weight), alpha=SHARE)  # (B, N)

    def describe(self) -> str:
        """See `Baseline.describe`."""
        return f"{self.sharpened.describe()}, + {SHARE:g} x cosine of tf-idf of character 3- to 5-grams, likewise"


class ItemCFText(Baseline):
    """item_cf + weight * text."""

    def __init__(self, cf: ItemCF, text: Baseline, weight: float) -> None:
        self.cf, self.text, self.weight = cf, text, weight

    def score(self, history: Tensor) -> Tensor:
        return self.cf.score(history).add_(self.text.score(history), alpha=self.weight)  # (B, N)

    def describe(self) -> str:
        chosen = "weight and kind by validation Recall@10 (All), seen masked"
        return f"item CF + {self.weight:g} x ({self.text.describe()}); {chosen}"


class HybridChoice(NamedTuple):
    """What validation chose for a hybrid."""

    weight: float
    kind: str
    recall: dict[tuple[str, float], float]  # Recall@10 over all items of everything tried

    @classmethod
    def best(cls, recall: dict[tuple[str, float], float]) -> "HybridChoice":
        """The weight and kind with the highest recall; of equals the first."""
        kind, weight = max(recall, key=lambda option: recall[option])
        return cls(weight, kind, recall)

    def among(self, kinds: tuple[str, ...]) -> "HybridChoice":
        """What it would have been from some of the kinds."""
        return HybridChoice.best({option: value for option, value in self.recall.items() if option[0] in kinds})


def choose_weight(
    cf: ItemCF,
    texts: Mapping[str, Baseline],
    histories: Histories,
    weights: tuple[float, ...] = WEIGHTS,
    batch_size: int = BLOCK,
) -> HybridChoice:
    """Weight and kind of text with the best Recall@10 over all items on validation, seen items masked.

    Args:
        cf: Counted in train only.
        texts: The kinds to try.
        histories: Users; those with a validation item are used. Without any the first weight and kind win.
        weights: Grid; of equals the first wins.
        batch_size: Users scored at once.
    """
    every = torch.ones(cf.similarity.shape[0], dtype=torch.bool)  # (N,)
    recall = {(kind, weight): 0.0 for kind in texts for weight in weights}
    users = np.nonzero(histories.validation.lengths)[0]  # (n,)
    for start in range(0, len(users), batch_size):
        part = users[start : start + batch_size]
        history = padded(histories.train, part)  # (B, L)
        target = padded(histories.validation, part)  # (B, R)
        target, (real, *_) = group_targets(target, every)  # (B, R) twice
        target = target.masked_fill(~real, PAD - 1)  # (B, R): equal to nothing in a list
        base = mask_seen(cf.score(history), history)  # (B, N)
        for kind, text in texts.items():
            similar = text.score(history)  # (B, N)
            for weight in weights:
                top = top_items(torch.add(base, similar, alpha=weight), 10)  # (B, 10)
                hits = (top[:, :, None] == target[:, None]).sum((1, 2))  # (B,)
                recall[kind, weight] += float((hits.double() / real.sum(1)).sum()) / len(users)
    return HybridChoice.best(recall)


def padded(rows: Ragged, which: np.ndarray) -> Tensor:
    """The rows `which` (B,) as one matrix: (B, longest) int64, padded with -1 at the end."""
    return torch.from_numpy(batches.padded(rows, rows.offsets[which], rows.lengths[which]))  # (B, longest)


def fit_baselines(catalogue: Catalogue, histories: Histories, split: EvalSplit = "test") -> dict[str, Baseline]:
    """All baselines for answering a split, by name, in the order of the table.

    Those that read text are left out when the catalogue has none.
    """
    n = catalogue.n_items
    in_train = ItemCF(histories.train, n)
    cf = in_train
    if split == "test":
        cf = ItemCF(past_events(histories, n, "test").sequences, n, "train + validation")
    baselines: dict[str, Baseline] = {"popularity": Popularity(catalogue.count), "item_cf": cf}
    if catalogue.text is not None:
        cosine = TextCosine(catalogue.text)
        mean, sharpened = TextSimilarity(cosine, "mean"), TextSimilarity(cosine, "sharpened")
        baselines["text"] = mean
        texts: dict[str, Baseline] = {"mean": mean, "sharpened": sharpened}
        hybrids: dict[str, tuple[str, ...]] = {"item_cf_text": ("mean", "sharpened")}
        if catalogue.texts is not None and any(catalogue.texts):
            texts["ngrams"] = NgramSimilarity(sharpened, CharNgrams(catalogue.texts))
            hybrids["item_cf_ngrams"] = ("ngrams",)
        tried = choose_weight(in_train, texts, histories)  # one pass over validation for all of them
        for name, kinds in hybrids.items():
            choice = tried.among(kinds)
            baselines[name] = ItemCFText(cf, texts[choice.kind], choice.weight)
    return baselines
