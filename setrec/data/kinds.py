"""Kinds of events, such as view, cart and buy: which are read, and which of those are to be predicted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from setrec.data.catalogue import Histories
from setrec.errors import ConfigError
from setrec.files.ragged import Ragged, Splits


@dataclass(frozen=True)
class Kinds:
    """Which kinds of events are read and predicted. Prepared data holds all of them; these options only choose.

    Args:
        context: kinds that are read in histories and counted, such as [view, buy]; null: all.
        targets: kinds among these that a model learns to predict and that figures count, such as [buy]; null: all that are read.
            `filter_seen` then leaves out items that the user had by an event of these kinds.
        weights: how many times an event of a kind counts in co-occurrence, transitions and recency of a model's item graphs, such
            as {view: 0.2}; a kind that is not named counts once. Two events that stand together count the product.
    """

    context: list[str] | None = None
    targets: list[str] | None = None
    weights: dict[str, float] | None = None

    @property
    def choose(self) -> bool:
        """Whether these options change anything."""
        return self.context is not None or self.targets is not None or bool(self.weights)

    def reads(self, kind: str) -> bool:
        """Whether events of a kind are read."""
        return self.context is None or kind in self.context

    def predicts(self, kind: str) -> bool:
        """Whether events of a kind are to be predicted."""
        return self.reads(kind) and (self.targets is None or kind in self.targets)

    def words(self, which: Literal["context", "targets"]) -> str:
        """The kinds that are read, or those that are predicted, in words; "": all."""
        kinds = self.targets if which == "targets" and self.targets is not None else self.context
        return "" if kinds is None else f"kind{'s' if len(kinds) > 1 else ''} {', '.join(kinds)}"

    def check(self, names: Sequence[str]) -> None:
        """Check these options against the kinds of the data.

        Raises:
            ConfigError: a kind is not there, is not read, or nothing is left to read or to predict.
        """
        if not self.choose:
            return
        if not names:
            raise ConfigError(
                "--data.kinds chooses kinds of events, but the prepared data has none: name their column with "
                "--data.reader.kind, and prepare it again with --data.raw DIR."
            )
        there = ", ".join(map(repr, names))
        for option, chosen in (("context", self.context), ("targets", self.targets), ("weights", self.weights)):
            for kind in chosen or ():
                if kind not in names:
                    raise ConfigError(f"--data.kinds.{option}: no event is of the kind {kind!r}; there are {there}.")
            if chosen == []:
                raise ConfigError(f"--data.kinds.{option} is empty: name kinds of events, of {there}.")
        for kind, weight in (self.weights or {}).items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"--data.kinds.weights: {kind!r} has {weight}; it must be 0 or more.")
        for kind in self.targets or ():
            if not self.reads(kind):
                raise ConfigError(f"--data.kinds.targets: {kind!r} is not read; add it to --data.kinds.context.")

    def apply(self, histories: Histories) -> Histories:
        """The histories with the events that are read, and marks at those that are to be predicted.

        Raises:
            ConfigError: see `check`.
        """
        self.check(histories.kind_names)
        if not self.choose:
            return histories
        assert histories.kinds is not None, "kinds have names"
        names = histories.kind_names
        read, wanted = (np.array([of(name) for name in names]) for of in (self.reads, self.predicts))  # (kinds,) each
        if not read.all():
            keep = [read[rows.items] for rows in histories.kinds]  # (all,) bool for each split
            histories = _only_events(histories, keep)
        assert histories.kinds is not None

        def marked(of_kind: np.ndarray) -> Splits:
            return Splits(*(Ragged(rows.offsets, of_kind[rows.items]) for rows in kinds))

        kinds, found = histories.kinds, histories
        if self.targets is not None:
            found = replace(found, wanted=marked(wanted))
        if self.weights:
            found = replace(found, worth=marked(np.array([self.weights.get(name, 1.0) for name in names], np.float32)))
        return found


def _only_events(histories: Histories, keep: Sequence[np.ndarray]) -> Histories:
    """The histories without some events. keep: for each split (all,) bool."""

    def kept(splits: Splits) -> Splits:
        return Splits(*(rows.where(some) for rows, some in zip(splits, keep, strict=True)))

    items = kept(Splits(histories.train, histories.validation, histories.test))
    since = histories.since
    if since is not None:
        before = np.concatenate([[0], np.cumsum(keep[0])])  # (all + 1,) events that stay before each
        begin = histories.train.offsets[:-1]  # (users,)
        since = before[begin + since] - before[begin]  # (users,)
    times = None if histories.times is None else kept(histories.times)
    kinds = None if histories.kinds is None else kept(histories.kinds)
    return replace(
        histories,
        train=items.train,
        validation=items.validation,
        test=items.test,
        times=times,
        kinds=kinds,
        since=since,
    )
