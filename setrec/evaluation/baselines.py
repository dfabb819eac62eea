"""Simple baselines, which every table shows: a model must beat them.

    popularity      occurrences in training; tied items, such as all cold ones, are reported at their expected value under
                    random order (metrics.RandomTieMetrics)
    item_cf         cosine of co-occurrence: an item's score is the sum of 0.9^age * cosine over the last 10 items
    text            mean cosine of the text vectors with the last 10 items
    item_cf_text    item_cf + weight * text, where text is that mean or `sharpened`, the sum of 0.85^age max(cosine, 0)^6
                    over the last 10 items; validation chooses weight and kind by Recall@10 over all items (seen masked)
    item_cf_ngrams  the same with text = sharpened + similarity of char n-grams / 2, where the data set holds the texts

The similarities are those of scoring/similarity.py. Co-occurrence is counted in what the histories hold before the evaluated split:
train + validation for test, train for validation. Popularity is counted in train only, like the catalogue's counts, so that cold
items have none. No baseline reads the targets of test. All work is on the CPU.
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
LAST = 10  # items of a history that are scored from
CF_DECAY, TEXT_DECAY = 0.9, 0.85  # factor of each step back from the newest item


class Baseline(ABC):
    """Scores items from a history, without a trained model."""

    @abstractmethod
    def score(self, history: Tensor) -> Tensor:
        """Score all items: history (B, L) int64 on the CPU, oldest first, padded at the end -> (B, N) float32, no -inf."""

    @abstractmethod
    def describe(self) -> str:
        """Its rule in one line, for the protocol."""


class Popularity(Baseline):
    """Scores items by their occurrences in training. count: (N,) int64."""

    def __init__(self, count: Tensor) -> None:
        self.count = count.to(torch.float32)  # (N,), exact up to 2^24

    def score(self, history: Tensor) -> Tensor:
        """See `Baseline.score`."""
        return self.count.expand(len(history), -1)  # (B, N)

    def describe(self) -> str:
        """See `Baseline.describe`."""
        return "occurrences in train; tied items at their expected value under random order"


class ItemCF(Baseline):
    """Item-item cosine of co-occurrence with the last items of the history.

    Args:
        sequences: Histories to count in, oldest item first.
        n_items: N.
        counted: The splits that the histories hold, for the protocol.
    """

    def __init__(self, sequences: Ragged, n_items: int, counted: str = "train") -> None:
        self.counted = counted
        self.similarity = cooccurrence_cosine(sequences, n_items)  # (N, N) sparse

    def score(self, history: Tensor) -> Tensor:
        """See `Baseline.score`."""
        items, real = last_items(history, LAST)  # (B, last)
        weight = CF_DECAY ** np.arange(LAST, dtype=np.float32)  # (last,)
        user, age = np.nonzero(real.numpy())
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
        cosine: Cosines of the text vectors.
        kind: mean | sharpened.
    """

    def __init__(self, cosine: TextCosine, kind: Literal["mean", "sharpened"]) -> None:
        self.cosine, self.kind = cosine, kind

    def score(self, history: Tensor) -> Tensor:
        """See `Baseline.score`."""
        if self.kind == "mean":
            items, real = last_items(history, LAST)  # (B, last)
            weight = real / real.sum(1, keepdim=True).clamp(min=1)  # (B, last)
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
    """Sharpened cosine of the text vectors, plus half the similarity of char n-grams, with the last items."""

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
    """The sum item_cf + weight * text."""

    def __init__(self, cf: ItemCF, text: Baseline, weight: float) -> None:
        self.cf, self.text, self.weight = cf, text, weight

    def score(self, history: Tensor) -> Tensor:
        """See `Baseline.score`."""
        return self.cf.score(history).add_(self.text.score(history), alpha=self.weight)  # (B, N)

    def describe(self) -> str:
        """See `Baseline.describe`."""
        chosen = "weight and kind by validation Recall@10 (All), seen masked"
        return f"item CF + {self.weight:g} x ({self.text.describe()}); {chosen}"


class HybridChoice(NamedTuple):
    """The weight and the kind of text that validation chose."""

    weight: float
    kind: str
    recall: dict[tuple[str, float], float]  # (kind, weight) -> Recall@10 over all items, for everything tried

    @classmethod
    def best(cls, recall: dict[tuple[str, float], float]) -> "HybridChoice":
        """The weight and kind with the highest recall; the first one of equals."""
        kind, weight = max(recall, key=lambda option: recall[option])
        return cls(weight, kind, recall)

    def among(self, kinds: tuple[str, ...]) -> "HybridChoice":
        """The choice from some of the kinds only."""
        return HybridChoice.best({option: value for option, value in self.recall.items() if option[0] in kinds})


def choose_weight(
    cf: ItemCF,
    texts: Mapping[str, Baseline],
    histories: Histories,
    weights: tuple[float, ...] = WEIGHTS,
    batch_size: int = BLOCK,
) -> HybridChoice:
    """Choose weight and kind of text by Recall@10 over all items on validation, seen items masked.

    Args:
        cf: Counted in train only.
        texts: The kinds to try.
        histories: The users; those with a validation item count. Without any, the first weight and kind are chosen.
        weights: The weights to try; the first one of equals is chosen.
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
        target = target.masked_fill(~real, PAD - 1)  # (B, R): an id that no list holds
        base = mask_seen(cf.score(history), history)  # (B, N)
        for kind, text in texts.items():
            similar = text.score(history)  # (B, N)
            for weight in weights:
                top = top_items(torch.add(base, similar, alpha=weight), 10)  # (B, 10)
                hits = (top[:, :, None] == target[:, None]).sum((1, 2))  # (B,)
                recall[kind, weight] += float((hits.double() / real.sum(1)).sum()) / len(users)
    return HybridChoice.best(recall)


def padded(rows: Ragged, which: np.ndarray) -> Tensor:
    """Some rows as one matrix: `which` (B,) -> (B, longest) int64, padded with -1 at the end."""
    return torch.from_numpy(batches.padded(rows, rows.offsets[which], rows.lengths[which]))  # (B, longest)


def fit_baselines(catalogue: Catalogue, histories: Histories, split: EvalSplit = "test") -> dict[str, Baseline]:
    """All baselines for a split, by name, in the order of the table; without those that need text the catalogue lacks."""
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
