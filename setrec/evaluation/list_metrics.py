"""What lists of recommendations hold, beside what they hit: the first 10 items for every user, out of all items.

    coverage     share of the catalogue that stands in somebody's list
    gini         inequality of how often the items are recommended: 0, all alike; towards 1, always the same few
    novelty      mean self-information of an item, -log2 p, with p = (count + 1) / (training events + N)
    diversity    mean over the pairs of a list of 1 - cosine of their text vectors; none without text vectors
    popularity   mean count of an item in training
    calibration  Jensen-Shannon divergence, 0 to 1, between the shares of three groups of items in the user's history and in the
                 list: 0, the list has the user's own taste for popular items. The groups, from the most to the least popular,
                 have a third of the training events each.

Coverage and Gini are of all lists together; the others are means over users. (torchmetrics has none of them.)
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from setrec.data.catalogue import Catalogue, Histories
from setrec.evaluation.distributed_metric import DistributedMetric
from setrec.schemas import EvalSplit, mask_of

LENGTH = 10  # of the lists
GROUPS_OF_POPULARITY = 3
BLOCK = 4096  # users at once


class ListTable(NamedTuple):
    """The lists of all users; users ascending, each once; on the CPU."""

    user: Tensor  # (n,) int64
    items: Tensor  # (n, k) int64, best first, padded


class ListMetrics(DistributedMetric):
    """Collects lists batch by batch, on any number of processes; compute() returns a ListTable."""

    user: list[Tensor]
    items: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("user", "items"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, user: Tensor, ranked: Tensor) -> None:
        """Add a batch: user (B,) int64, row in the table of users; ranked (B, k or more) int64 item ids, best first, padded."""
        self.user.append(user.long())  # (B,)
        self.items.append(ranked[:, :LENGTH].to(torch.int32))  # (B, k)

    def empty_states(self) -> dict[str, Tensor]:
        """See `DistributedMetric.empty_states`."""
        return {
            "user": torch.empty(0, dtype=torch.int64, device=self.device),
            "items": torch.empty(0, LENGTH, dtype=torch.int32, device=self.device),
        }

    def compute(self) -> ListTable:
        """The lists of all users that were added; a user that a padded sampler repeats counts once."""
        states = self.empty_states() if isinstance(self.user, list) and not self.user else vars(self)
        user, order = dim_zero_cat(states["user"]).cpu().sort(stable=True)  # (n with repeats,)
        once = user.diff(prepend=user[:1] - 1) != 0  # (n with repeats,)
        return ListTable(user[once], dim_zero_cat(states["items"]).cpu()[order[once]].long())


class ListFacts:
    """What the figures of lists are computed from, on the CPU.

    Args:
        catalogue: The items.
        histories: The users.
        split: The split that is evaluated.
    """

    def __init__(self, catalogue: Catalogue, histories: Histories, split: EvalSplit) -> None:
        self.n_items = n = catalogue.n_items
        self.count = catalogue.count.cpu().double()  # (N,)
        self.information = -((self.count + 1) / (self.count.sum() + n)).log2()  # (N,)
        self.text = catalogue.text
        group = popularity_groups(catalogue.count.cpu().numpy())  # (N,)
        self.group = torch.nn.functional.one_hot(torch.from_numpy(group), GROUPS_OF_POPULARITY).double()  # (N, groups)
        past = histories.train if split == "validation" else histories.train.joined(histories.validation)
        place = np.repeat(np.arange(len(past)), past.lengths) * GROUPS_OF_POPULARITY + group[past.items]
        counts = np.bincount(place, minlength=len(past) * GROUPS_OF_POPULARITY)
        self.history = torch.from_numpy(counts.reshape(len(past), -1)).double()  # (users, groups)

    def figures(self, table: ListTable) -> dict[str, float]:
        """Every figure by name: coverage@10, ... A mean over no users is left out, and so is diversity without text."""
        real = mask_of(table.items)  # (n, k)
        times = torch.bincount(table.items[real], minlength=self.n_items)  # (N,)
        found = {"coverage": float((times > 0).double().mean()), "gini": gini(times)}
        parts: dict[str, list[Tensor]] = {"novelty": [], "diversity": [], "popularity": [], "calibration": []}
        for start in range(0, len(real), BLOCK):
            rows = slice(start, start + BLOCK)
            for name, values in self._per_user(table.user[rows], table.items[rows].clamp(min=0), real[rows]).items():
                parts[name].append(values)
        for name, blocks in parts.items():
            values = torch.cat(blocks) if blocks else torch.empty(0)  # (users that have one,)
            if len(values):
                found[name] = float(values.mean())
        return {f"{name}@{LENGTH}": value for name, value in found.items()}

    def _per_user(self, user: Tensor, items: Tensor, real: Tensor) -> dict[str, Tensor]:
        """The figures of the users that have them: user (b,), items (b, k), real (b, k) -> (b or fewer,) float64 each."""
        size = real.sum(dim=1).double()  # (b,)
        some, pairs = size > 0, size > 1  # (b,)
        found = {
            "novelty": ((self.information[items] * real).sum(dim=1) / size)[some],
            "popularity": ((self.count[items] * real).sum(dim=1) / size)[some],
        }
        if self.text is not None:
            vectors = torch.nn.functional.normalize(self.text[items].float(), dim=2) * real[..., None]  # (b, k, F)
            # the cosines of all ordered pairs, those of an item with itself included, are the square of the sum
            both = vectors.sum(dim=1).square().sum(dim=1).double()  # (b,)
            alone = vectors.square().sum(dim=(1, 2)).double()  # (b,)
            found["diversity"] = (1 - (both - alone) / (size * (size - 1)))[pairs]
        theirs, ours = self.history[user], (self.group[items] * real[..., None]).sum(dim=1)  # (b, groups) twice
        known = some & (theirs.sum(dim=1) > 0)  # (b,)
        found["calibration"] = jensen_shannon(theirs[known], ours[known])
        return found


def popularity_groups(count: np.ndarray) -> np.ndarray:
    """The group of every item, 0 for the most popular: (N,) occurrences in training -> (N,) int64.

    Items are in order of their counts; an item's place is the share of the events of all more popular items and half of those of
    its equals. So items with one count are in one group.
    """
    values, which, items = np.unique(-count, return_inverse=True, return_counts=True)  # from the most popular
    events = -values * items  # (distinct counts,)
    place = (events.cumsum() - events / 2) / max(events.sum(), 1)  # (distinct counts,)
    place[values == 0] = 1  # cold items
    group: np.ndarray = np.minimum((place * GROUPS_OF_POPULARITY).astype(np.int64), GROUPS_OF_POPULARITY - 1)[which]
    return group


def gini(times: Tensor) -> float:
    """The Gini coefficient of counts (N,): 0 where all are alike, 1 - 1/N where one item has everything; 0 of no counts."""
    ordered = times.double().sort().values  # (N,)
    n, total = len(ordered), float(ordered.sum())
    rank = torch.arange(1, n + 1, dtype=torch.float64)  # (N,)
    return float(((2 * rank - n - 1) * ordered).sum()) / (n * total) if total else 0.0


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence in bits, 0 to 1, of two distributions given as counts: (b, groups) twice -> (b,)."""
    shares = [counts / counts.sum(dim=1, keepdim=True) for counts in (one, other)]  # of (b, groups)
    middle = (shares[0] + shares[1]) / 2  # (b, groups)
    divergence = torch.zeros(len(one), dtype=torch.float64)  # (b,)
    for share in shares:
        divergence += torch.xlogy(share, share / middle.clamp(min=1e-300)).sum(dim=1) / 2  # (b,)
    return divergence.clamp(min=0) / math.log(2)  # (b,)
