"""Simple baselines, which every table shows: a model must beat them.

    popularity      occurrences in training; tied items, such as all cold ones, are reported at their expected value under
                    random order (metrics.RandomTieMetrics)
    item_cf         cosine of co-occurrence: an item's score is the sum of 0.9^age * cosine over the last 10 items
    text            mean cosine of the text vectors with the last 10 items
    item_cf_text    item_cf + weight * text, where text is that mean or `sharpened`, the sum of 0.85^age max(cosine, 0)^6
                    over the last 10 items; validation chooses weight and kind by Recall@10 over all items (seen masked)
    item_cf_ngrams  the same with text = sharpened + similarity of char n-grams / 2, where the data set holds the texts
    transitions     after TGH (arXiv 2605.07125): what followed the last item or two, in this order, plus text cosines

The similarities are those of scoring/similarity.py. Co-occurrence is counted in what the histories hold before the evaluated split:
train + validation for test, train for validation. Where a leave-one-out split is tested, every row that counts stands a second
time, counted in train alone (NAME_train). Popularity is counted in train only, like the catalogue's counts, so that cold items have
none. No baseline reads the targets of test. All work is on the CPU. Stronger methods that take minutes are in rivals.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from setrec.data import batches
from setrec.data.catalogue import Catalogue, Histories
from setrec.data.past import past_events
from setrec.evaluation.ranking_table import group_targets
from setrec.evaluation.results import TRAIN_ALONE
from setrec.files.ragged import Ragged
from setrec.schemas import PAD, EvalSplit
from setrec.scoring.char_ngrams import SHARE, CharNgrams
from setrec.scoring.similarity import BLOCK, WINDOW, TextCosine, cooccurrence_cosine, faded_items, last_items
from setrec.scoring.topk import mask_seen, top_items

Option = TypeVar("Option", bound=Hashable)
CHOSEN = "by validation Recall@10 (All), seen masked"
SECOND, COSINE = (
    (0.0, 0.5, 1.0),
    (0.3, 1.0, 3.0),
)  # of transitions: weights of the last item but one, and of the text cosine
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


class Counted(NamedTuple):
    """What a row of the table may count."""

    sequences: Ragged  # histories, oldest item first
    where: str  # the splits that they hold, for the protocol


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


class Transitions(Baseline):
    """How often an item followed the last item of the history, and the one before, plus text cosines with them.

    score(v) = sum over the last two items j of d_j * (log(1 + n(j, v)) / max over w of log(1 + n(j, w)) + cosine * cos(j, v)),
    where n(j, v) counts v right after j, and d is 1 for the last item and `second` for the one before.

    Args:
        counted: Histories to count in.
        n_items: N.
        text: Cosines of the text vectors; None: transitions alone.
        second: Weight of the last item but one.
        cosine: Weight of the text cosine.
    """

    def __init__(self, counted: Counted, n_items: int, text: TextCosine | None, second: float, cosine: float) -> None:
        self.where, self.text, self.second, self.cosine = counted.where, text, second, cosine
        items = counted.sequences.items
        user = np.repeat(np.arange(len(counted.sequences)), counted.sequences.lengths)
        follows = user[1:] == user[:-1]  # (all - 1,)
        place = items[:-1][follows], items[1:][follows]
        table = sp.csr_matrix((np.ones(len(place[0]), np.float32), place), (n_items, n_items))
        table.sum_duplicates()
        table.data = np.log1p(table.data)
        most = table.max(axis=1).toarray().ravel()  # (N,)
        table.data /= np.repeat(most, np.diff(table.indptr))
        self.table = table  # (N, N) sparse, 0 to 1

    def parts(self, history: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For the last item, then the one before: transitions and cosines, (B, N) each."""
        items, there = last_items(history, 2)  # (B, 2)
        found = []
        for age in range(2):
            here = there[:, age, None].float()  # (B, 1)
            counts = torch.from_numpy(self.table[items[:, age].numpy()].toarray()) * here  # (B, N)
            cosines = (
                torch.zeros(()) if self.text is None else self.text.cosines(self.text.vectors[items[:, age]]) * here
            )
            found.append((counts, cosines))  # (B, N) twice
        return found

    def score(self, history: Tensor) -> Tensor:
        """See `Baseline.score`."""
        (last, last_text), (second, second_text) = self.parts(history)
        return last + self.cosine * last_text + self.second * (second + self.cosine * second_text)  # (B, N)

    def describe(self) -> str:
        """See `Baseline.describe`."""
        text = "" if self.text is None else f" + {self.cosine:g} x cosine of text vectors"
        return (
            f"log count of what followed the last item, as a share of its most frequent follower{text}; the item before, "
            f"likewise, x {self.second:g}; counted in {self.where}; weights {CHOSEN}"
        )


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

    def tried(history: Tensor, seen: Tensor) -> Iterator[tuple[tuple[str, float], Tensor]]:
        base = mask_seen(cf.score(history), seen)  # (B, N)
        for kind, text in texts.items():
            similar = text.score(history)  # (B, N)
            for weight in weights:
                yield (kind, weight), torch.add(base, similar, alpha=weight)  # (B, N)

    options = [(kind, weight) for kind in texts for weight in weights]
    return HybridChoice.best(validation_recall(options, tried, histories, cf.similarity.shape[0], batch_size))


def validation_recall(
    options: list[Option],
    score: Callable[[Tensor, Tensor], Iterator[tuple[Option, Tensor]]],
    histories: Histories,
    n_items: int,
    batch_size: int = BLOCK,
) -> dict[Option, float]:
    """Recall@10 over all items on validation, under everything that is tried.

    Args:
        options: What is tried.
        score: Histories (B, L), and the items in them that are masked (B, any) -> every option with its scores (B, N), -inf at
            the masked items.
        histories: The users; those with a validation item count. Without any, every recall is 0.
        n_items: N.
        batch_size: Users scored at once.
    """
    every = torch.ones(n_items, dtype=torch.bool)  # (N,)
    recall = dict.fromkeys(options, 0.0)
    targets, had = histories.targets("validation"), histories.targets("train")
    users = np.nonzero(targets.lengths)[0]  # (n,)
    for start in range(0, len(users), batch_size):
        part = users[start : start + batch_size]
        history = padded(histories.train, part)  # (B, L)
        target = padded(targets, part)  # (B, R)
        target, (real, *_) = group_targets(target, every)  # (B, R) twice
        target = target.masked_fill(~real, PAD - 1)  # (B, R): an id that no list holds
        for option, scores in score(history, padded(had, part)):
            top = top_items(scores, 10)  # (B, 10)
            hits = (top[:, :, None] == target[:, None]).sum((1, 2))  # (B,)
            recall[option] += float((hits.double() / real.sum(1)).sum()) / len(users)
    return recall


def what_counts(histories: Histories, n_items: int, split: EvalSplit, train_alone: bool) -> dict[str, Counted]:
    """What is counted for a split: ending of the row's name -> histories.

    Args:
        histories: The users.
        n_items: N.
        split: The split that is evaluated.
        train_alone: For test: each row a second time, counted in train alone.
    """
    train = Counted(histories.train, "train")
    if split == "validation":
        return {"": train}
    both = Counted(past_events(histories, n_items, split).sequences, "train + validation")
    return {"": both, TRAIN_ALONE: train} if train_alone else {"": both}


def fit_transitions(
    catalogue: Catalogue, histories: Histories, text: TextCosine | None, counts: Mapping[str, Counted]
) -> dict[str, Baseline]:
    """Transitions and text for every way to count, by the ending of the row's name; validation chooses the weights.

    Args:
        catalogue: The items.
        histories: The users.
        text: Cosines of the text vectors; None: transitions alone.
        counts: See `what_counts`.
    """
    n = catalogue.n_items
    options = [(second, cosine) for second in SECOND for cosine in (COSINE if text is not None else (0.0,))]
    in_train = Transitions(Counted(histories.train, "train"), n, text, *options[0])

    def tried(history: Tensor, seen: Tensor) -> Iterator[tuple[tuple[float, float], Tensor]]:
        (last, last_text), (before, before_text) = in_train.parts(history)
        last = mask_seen(last, seen)  # (B, N)
        for second, cosine in options:
            yield (second, cosine), last + cosine * last_text + second * (before + cosine * before_text)  # (B, N)

    recall = validation_recall(options, tried, histories, n)
    chosen = max(options, key=lambda option: recall[option])  # of equals the first
    return {ending: Transitions(counted, n, text, *chosen) for ending, counted in counts.items()}


def padded(rows: Ragged, which: np.ndarray) -> Tensor:
    """Some rows as one matrix: `which` (B,) -> (B, longest) int64, padded with -1 at the end."""
    return torch.from_numpy(batches.padded(rows, rows.offsets[which], rows.lengths[which]))  # (B, longest)


def fit_baselines(
    catalogue: Catalogue, histories: Histories, split: EvalSplit = "test", train_alone: bool = False
) -> dict[str, Baseline]:
    """All baselines for a split, by name, in the order of the table; without those that need text the catalogue lacks.

    Args:
        catalogue: The items.
        histories: The users.
        split: The split that is evaluated.
        train_alone: See `what_counts`.
    """
    n = catalogue.n_items
    in_train = ItemCF(histories.train, n)
    counts = what_counts(histories, n, split, train_alone)
    cfs = {
        ending: in_train if counted.where == "train" else ItemCF(counted.sequences, n, counted.where)
        for ending, counted in counts.items()
    }
    count = torch.from_numpy(np.bincount(histories.targets("train").items, minlength=n))  # (N,)
    baselines: dict[str, Baseline] = {"popularity": Popularity(count)}
    baselines |= {f"item_cf{ending}": cf for ending, cf in cfs.items()}
    cosine = None
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
            for ending, cf in cfs.items():
                baselines[name + ending] = ItemCFText(cf, texts[choice.kind], choice.weight)
    found = fit_transitions(catalogue, histories, cosine, counts)
    return baselines | {f"transitions{ending}": one for ending, one in found.items()}
