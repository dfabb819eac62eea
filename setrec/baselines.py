"""Simple baselines that a model has to beat, counted honestly and shown beside it in every table.

    popularity     occurrences in training; ties, all cold items among them, count at their expected value under random
                   order (metrics.RandomTieMetrics)
    item_cf        item-item cosine of co-occurrence: C(i, j) = pairs of i and j within 5 steps of one history, in
                   either order; S(i, j) = C(i, j) / sqrt(n_i n_j); a user's score is the sum of 0.9^age S(i, .) over
                   the last 10 items
    text           mean cosine of the text vectors with the last 10 items
    item_cf_text   item_cf + weight * text, where text is that mean or `sharpened`, the sum of 0.85^age max(cosine, 0)^6
                   over the last 10 items; weight and kind are those with the best Recall@10 over all items on
                   validation (seen masked)
    item_cf_letters  the same with text = sharpened + likeness of the texts' letters / 2 (letters.py); where texts are kept

What a baseline may know is what the history it is given holds: co-occurrence and n are counted in train + validation
when test is answered, in train alone when validation is. Popularity counts training only, as the catalogue does: its
cold items stay those without a count. Nothing here looks at test. All work is on the CPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from setrec.data import batches
from setrec.data.catalogue import Catalogue, Histories, Ragged
from setrec.letters import SHARE, Letters
from setrec.metrics import group_targets
from setrec.schemas import PAD, mask_of
from setrec.topk import mask_seen, top_items

Kind = Literal["mean", "sharpened"]
WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
TABLE_BYTES = 800 << 20  # item-item cosines are kept whole up to this size (N = 14,481), computed as needed above it
BLOCK = 256  # rows of a matrix product: always this many, so that its rounding does not depend on the batch


class Baseline(ABC):
    """Scores items from a history alone."""

    @abstractmethod
    def score(self, history: Tensor) -> Tensor:
        """history: (B, L) int64 on the CPU, oldest first, padded at the end; returns (B, N) float32, no -inf."""

    @abstractmethod
    def describe(self) -> str:
        """Its rule in one line, for the protocol."""


def recent(history: Tensor, last: int) -> tuple[Tensor, Tensor]:
    """The last items of each history, newest first: (B, last) int64, 0 where none is; and (B, last) bool: is one."""
    length = mask_of(history).sum(1, keepdim=True)  # (B, 1)
    place = length - 1 - torch.arange(last, device=history.device)  # (B, last)
    there = place >= 0  # (B, last)
    if history.shape[1] == 0:
        return torch.zeros_like(place), there
    return history.gather(1, place.clamp(min=0)).masked_fill(~there, 0), there


def faded(history: Tensor, last: int, decay: float) -> tuple[Tensor, Tensor]:
    """The last items of each history, newest first, and decay^age: (B, last) int64 and (B, last) float32, 0 where none is."""
    items, there = recent(history, last)  # (B, last)
    return items, there * decay ** torch.arange(last, device=history.device)  # (B, last)


class Popularity(Baseline):
    """Everyone gets the items that occur most. count: (N,) occurrences in training."""

    def __init__(self, count: Tensor) -> None:
        self.count = count.to(torch.float32)  # (N,), exact up to 2^24

    def score(self, history: Tensor) -> Tensor:
        return self.count.expand(len(history), -1)  # (B, N)

    def describe(self) -> str:
        return "occurrences in train; tied items at their expected value under random order"


class ItemCF(Baseline):
    """Item-item cosine of co-occurrence.

    Args:
        sequences: Histories to count in, oldest item first.
        n_items: N.
        counted: Which splits these are, for the protocol.
        window: Steps within which two items of a history count as a pair.
        last: Items of a history that score.
        decay: Factor per step back from the newest item.
    """

    def __init__(
        self,
        sequences: Ragged,
        n_items: int,
        counted: str = "train",
        window: int = 5,
        last: int = 10,
        decay: float = 0.9,
    ) -> None:
        self.counted, self.window, self.last, self.decay = counted, window, last, decay
        items = sequences.items
        owner = np.repeat(np.arange(len(sequences)), sequences.lengths)  # (all,)
        pairs = sp.csr_matrix((n_items, n_items), dtype=np.float32)
        for step in range(1, window + 1):  # one step at a time bounds the memory
            same = owner[step:] == owner[:-step]  # (all - step,)
            one, other = items[:-step][same], items[step:][same]
            ones = np.ones(len(one), np.float32)
            pairs = pairs + sp.csr_matrix((ones, (one, other)), shape=(n_items, n_items))
        pairs = (pairs + pairs.T).tocsr()
        scale = 1 / np.sqrt(np.maximum(np.bincount(items, minlength=n_items), 1))  # (N,)
        row, column = np.repeat(np.arange(n_items), np.diff(pairs.indptr)), pairs.indices  # (pairs,)
        cosine = pairs.data * scale[row] * scale[column]  # (pairs,)
        pairs.data = np.where(row == column, 0, cosine).astype(np.float32)  # (pairs,)
        self.similarity = pairs  # (N, N) sparse, no item is similar to itself

    def score(self, history: Tensor) -> Tensor:
        items, there = recent(history, self.last)  # (B, last)
        weight = self.decay ** np.arange(self.last, dtype=np.float32)  # (last,)
        user, age = np.nonzero(there.numpy())
        shape = (len(history), self.similarity.shape[0])
        taste = sp.csr_matrix((weight[age], (user, items.numpy()[user, age])), shape=shape)
        return torch.from_numpy((taste @ self.similarity).toarray())  # (B, N)

    def describe(self) -> str:
        return (
            f"cosine of co-occurrence within {self.window} steps, counted in {self.counted}; last {self.last} items, "
            f"decay {self.decay} a step"
        )


class TextSimilarity(Baseline):
    """Cosine of text vectors with the last items of the history: their mean, or a sharpened, decayed sum.

    Args:
        text: (N, F) float text vectors; a row of zeros is similar to nothing.
        kind: mean | sharpened.
        last: Items of a history that score.
        power: Exponent of the sharpened cosine.
        decay: Factor per step back from the newest item (sharpened only).
    """

    def __init__(self, text: Tensor, kind: Kind = "mean", last: int = 10, power: int = 6, decay: float = 0.85) -> None:
        self.kind, self.last, self.power, self.decay = kind, last, power, decay
        self.vectors = torch.nn.functional.normalize(text.float(), dim=1)  # (N, F)
        self.table: Tensor | None = None  # (N, N) of sharpened cosines, made when first needed

    def score(self, history: Tensor) -> Tensor:
        if self.kind == "mean":
            items, there = recent(history, self.last)  # (B, last)
            weight = there / there.sum(1, keepdim=True).clamp(min=1)  # (B, last)
            return self._cosines((self.vectors[items] * weight[..., None]).sum(1))  # (B, N)
        items, weight = faded(history, self.last, self.decay)  # (B, last)
        n = len(self.vectors)
        if n * n * 4 <= TABLE_BYTES:
            if self.table is None:
                self.table = torch.empty(n, n)  # (N, N)
                for start in range(0, n, BLOCK):
                    self.table[start : start + BLOCK] = self.sharpened(torch.arange(start, min(start + BLOCK, n)))
            return torch.nn.functional.embedding_bag(items, self.table, per_sample_weights=weight, mode="sum")  # (B, N)
        scores = torch.empty(len(items), n)  # (B, N)
        users = BLOCK // self.last
        for start in range(0, len(items), users):
            part = items[start : start + users]  # (users, last)
            place = torch.arange(part.numel()).view(part.shape)  # (users, last)
            scores[start : start + users] = torch.nn.functional.embedding_bag(
                place, self.sharpened(part.flatten()), per_sample_weights=weight[start : start + users], mode="sum"
            )  # (users, N)
        return scores

    def _cosines(self, rows: Tensor) -> Tensor:
        """Inner products with every item: (m, F) -> (m, N), in blocks of one size."""
        scores = torch.empty(len(rows), len(self.vectors))  # (m, N)
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]  # (up to BLOCK, F)
            full = torch.nn.functional.pad(part, (0, 0, 0, BLOCK - len(part)))  # (BLOCK, F)
            with torch.autocast("cpu", enabled=False):  # a baseline's figures don't depend on how a model is trained
                scores[start : start + BLOCK] = (full @ self.vectors.T)[: len(part)]  # (up to BLOCK, N)
        return scores

    def sharpened(self, items: Tensor) -> Tensor:
        """max(cosine, 0)^power of these items (m,) with every item: (m, N)."""
        return self._cosines(self.vectors[items]).clamp_(min=0).pow_(self.power)

    def describe(self) -> str:
        if self.kind == "mean":
            return f"mean cosine of text vectors with the last {self.last} items"
        return (
            f"sum of max(cosine, 0)^{self.power} of text vectors with the last {self.last} items, "
            f"decay {self.decay} a step"
        )


class LetterSimilarity(Baseline):
    """Sharpened cosine of the text vectors, and half the likeness of the texts' letters, with the last items."""

    def __init__(self, sharpened: TextSimilarity, letters: Letters) -> None:
        self.sharpened, self.letters = sharpened, letters

    def score(self, history: Tensor) -> Tensor:
        items, weight = faded(history, self.sharpened.last, self.sharpened.decay)  # (B, last)
        return self.sharpened.score(history).add_(self.letters.score(items, weight), alpha=SHARE)  # (B, N)

    def describe(self) -> str:
        return f"{self.sharpened.describe()}, + {SHARE:g} x cosine of tf-idf of 3 to 5 letters, likewise"


class ItemCFText(Baseline):
    """item_cf + weight * text."""

    def __init__(self, cf: ItemCF, text: Baseline, weight: float) -> None:
        self.cf, self.text, self.weight = cf, text, weight

    def score(self, history: Tensor) -> Tensor:
        return self.cf.score(history).add_(self.text.score(history), alpha=self.weight)  # (B, N)

    def describe(self) -> str:
        chosen = "weight and kind by validation Recall@10 (All), seen masked"
        return f"item CF + {self.weight:g} x ({self.text.describe()}); {chosen}"


class Choice(NamedTuple):
    """What validation chose for a hybrid."""

    weight: float
    kind: str
    recall: dict[tuple[str, float], float]  # Recall@10 over all items of everything tried

    @classmethod
    def best(cls, recall: dict[tuple[str, float], float]) -> "Choice":
        """The weight and kind with the highest recall; of equals the first."""
        kind, weight = max(recall, key=lambda option: recall[option])
        return cls(weight, kind, recall)

    def among(self, kinds: tuple[str, ...]) -> "Choice":
        """What it would have been from some of the kinds."""
        return Choice.best({option: value for option, value in self.recall.items() if option[0] in kinds})


def choose_weight(
    cf: ItemCF,
    texts: Mapping[str, Baseline],
    histories: Histories,
    weights: tuple[float, ...] = WEIGHTS,
    batch_size: int = BLOCK,
) -> Choice:
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
    return Choice.best(recall)


def padded(rows: Ragged, which: np.ndarray) -> Tensor:
    """The rows `which` (B,) as one matrix: (B, longest) int64, padded with -1 at the end."""
    return torch.from_numpy(batches.padded(rows, rows.offsets[which], rows.lengths[which]))  # (B, longest)


def fit_baselines(catalogue: Catalogue, histories: Histories, split: str = "test") -> dict[str, Baseline]:
    """All baselines for answering `split` ("validation" | "test"), by name, in the order of the table.

    Those that read text are left out when the catalogue has none.
    """
    if split not in ("validation", "test"):
        raise ValueError(f"unknown split {split!r}: baselines answer validation or test")
    n = catalogue.n_items
    in_train = ItemCF(histories.train, n)
    cf = in_train
    if split == "test":
        cf = ItemCF(histories.train.joined(histories.validation), n, "train + validation")
    baselines: dict[str, Baseline] = {"popularity": Popularity(catalogue.count), "item_cf": cf}
    if catalogue.text is not None:
        mean, sharpened = TextSimilarity(catalogue.text, "mean"), TextSimilarity(catalogue.text, "sharpened")
        baselines["text"] = mean
        texts: dict[str, Baseline] = {"mean": mean, "sharpened": sharpened}
        hybrids: dict[str, tuple[str, ...]] = {"item_cf_text": ("mean", "sharpened")}
        if catalogue.texts is not None and any(catalogue.texts):
            texts["letters"] = LetterSimilarity(sharpened, Letters(catalogue.texts))
            hybrids["item_cf_letters"] = ("letters",)
        tried = choose_weight(in_train, texts, histories)  # one pass over validation for all of them
        for name, kinds in hybrids.items():
            choice = tried.among(kinds)
            baselines[name] = ItemCFText(cf, texts[choice.kind], choice.weight)
    return baselines
