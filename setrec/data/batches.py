"""Batches: which users or prefixes a batch holds, and the batch as tensors.

Three parts: rows (`TrainRows`, `EvalRows`) turn row numbers into a `Batch`; plans (`TrainPlan`, `EvalPlan`) say which rows each
batch holds, on every process; `BatchLoader` yields the batches of a plan and can resume in the middle of an epoch.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from setrec.errors import ConfigError
from setrec.files.ragged import Ragged
from setrec.schemas import PAD, Batch


def padded(ragged: Ragged, first: np.ndarray, length: np.ndarray, least: int = 0) -> np.ndarray:
    """Return slices of the flat items as rows of one width, with PAD at the end.

    Args:
        ragged: the flat items; its own rows are not looked at.
        first: (B,) int64, where each slice begins in the flat items.
        length: (B,) int64, the length of each slice.
        least: the least width.

    Returns:
        (B, max(longest, least)) int64.
    """
    column = np.arange(max(int(length.max(initial=0)), least))
    real = column < length[:, None]  # (B, L)
    out = np.full(real.shape, PAD, np.int64)
    out[real] = ragged.items[(first[:, None] + column)[real]]
    return out


class TrainRows(Dataset[Batch]):
    """Training prefixes as rows of batches.

    The window is the last max_history + 1 training items of a user. Its prefix t shows window[:t], and its targets are
    window[t] and up to `ahead - 1` items after it. Prefix 0, the empty history, exists only if the window begins with the user's
    first item.

    Args:
        train: each user's training items.
        max_history: the most history items of a prefix.
        prefix_parallel: True: a row is a user, with all prefixes of the window. A number: they are spread evenly over this many
            rows. False: a row is one prefix, as in the paper. The prefixes are always the same.
        since: (users,) int64, the place in each user's items of the first item that can be a target; None: 0 for all.
        wanted: which of the items can be a target, bool in rows beside theirs; None: all.
        ahead: the most targets of a prefix.

    Attributes:
        user: (rows,) int64, the user of each row.
        begin: (rows,) int64, where the user's window begins in the flat items.
        first: (rows,) int64, the row's shortest prefix; with `wanted`, the place of its target in the marked items.
        prefixes: (rows,) int64, the number of prefixes of the row.
        history: (rows,) int64, history items of the row's longest prefix.
    """

    def __init__(
        self,
        train: Ragged,
        max_history: int,
        prefix_parallel: bool | int = True,
        since: np.ndarray | None = None,
        wanted: Ragged | None = None,
        ahead: int = 1,
    ) -> None:
        length = train.lengths  # (users,)
        window = np.minimum(length, max_history + 1)
        begin = train.offsets[1:] - window  # (users,) where the window begins in the flat items
        least = (length > window).astype(np.int64)  # (users,) the first prefix: 0, or 1 in a cut window
        if since is not None:
            least = np.maximum(least, since - (length - window))  # (users,)
        prefixes = window - least  # (users,)
        self.wanted: Ragged | None = None  # where the targets of each user stand in the flat items
        if wanted is not None:
            place = np.arange(len(train.items)) - np.repeat(begin + least, length)  # (all,) from the first target on
            chosen = np.flatnonzero(wanted.items & (place >= 0))  # (targets,)
            self.wanted = Ragged(np.searchsorted(chosen, train.offsets), chosen)
            prefixes = self.wanted.lengths  # (users,)
        user = np.flatnonzero(prefixes > 0)
        prefixes = prefixes[user]  # (those users,)
        n_rows = prefixes if prefix_parallel is False else np.minimum(int(prefix_parallel), prefixes)  # (those users,)
        row_user = np.repeat(np.arange(len(user)), n_rows)  # (rows,)
        part = np.arange(len(row_user)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)  # (rows,) 0, 1 .. in each user
        start, stop = ((part + i) * prefixes[row_user] // n_rows[row_user] for i in (0, 1))  # (rows,), (rows,)
        self.train, self.ahead = train, ahead
        self.user, self.begin = user[row_user], begin[user][row_user]  # (rows,), (rows,)
        self.prefixes = stop - start  # (rows,)
        if self.wanted is None:
            self.first = least[user][row_user] + start  # (rows,)
            self.history = self.first + self.prefixes - 1  # (rows,) history items of the row's longest prefix
        else:
            self.first = self.wanted.offsets[self.user] + start  # (rows,), in `wanted`
            self.history = self.wanted.items[self.first + self.prefixes - 1] - self.begin  # (rows,)

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, rows: np.ndarray) -> Batch:
        """Return the batch of these row numbers, (B,) int64. target is (B, P, A), seen (B, 0)."""
        begin, first, count = self.begin[rows], self.first[rows], self.prefixes[rows]  # each (B,)
        history = padded(self.train, begin, self.history[rows], least=1)  # (B, L)
        column = np.arange(int(count.max(initial=0)))  # (P,)
        real = column < count[:, None]  # (B, P)
        # places of the targets among the items that can be one
        start, items = (begin + first, self.train) if self.wanted is None else (first, self.wanted)
        place = (start[:, None] + column)[..., None] + np.arange(self.ahead)  # (B, P, A)
        there = real[..., None] & (place < items.offsets[self.user[rows] + 1][:, None, None])  # (B, P, A)
        place = np.where(there, place, 0)  # (B, P, A)
        if self.wanted is not None:
            place = self.wanted.items[place]  # (B, P, A) in the flat items
        target = np.where(there, self.train.items[place], PAD)  # (B, P, A)
        prefix = np.where(real, place[..., 0] - begin[:, None], PAD)  # (B, P)
        seen = np.empty((len(rows), 0), np.int64)
        return _batch(self.user[rows], history, prefix, target, seen)


class EvalRows(Dataset[Batch]):
    """Users with their history and all their targets. Row u is user u.

    Args:
        history: each user's whole history. A batch's `history` is its last max_history items, its `seen` all of it,
            or what `wanted` marks.
        targets: each user's targets.
        max_history: the most history items of a row.
        step: where a longer history is cut moves by this many items, so that a cut history grows as others do: its row has
            from max_history - step + 1 to max_history items.
        wanted: which of the history's items `seen` holds, bool in rows beside theirs; None: all.

    Attributes:
        shown: (users,) int64, history items of each row.
    """

    def __init__(
        self, history: Ragged, targets: Ragged, max_history: int, step: int = 1, wanted: Ragged | None = None
    ) -> None:
        self.whole, self.targets = history, targets
        self.seen = history if wanted is None else history.where(wanted.items)
        cut = np.maximum(history.lengths - max_history, 0)  # (users,) items that do not fit
        self.shown = history.lengths - -(-cut // step) * step  # (users,)

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, rows: np.ndarray) -> Batch:
        """Return the batch of these users, (B,) int64. prefix is (B, 1); target and seen are as wide as their longest row."""
        shown = self.shown[rows]  # (B,)
        history = padded(self.whole, self.whole.offsets[rows + 1] - shown, shown, least=1)  # (B, L)
        target = padded(self.targets, self.targets.offsets[rows], self.targets.lengths[rows], least=1)  # (B, any)
        seen = padded(self.seen, self.seen.offsets[rows], self.seen.lengths[rows])  # (B, any)
        return _batch(rows, history, shown[:, None], target, seen)


def _batch(user: np.ndarray, history: np.ndarray, prefix: np.ndarray, target: np.ndarray, seen: np.ndarray) -> Batch:
    """Make a batch: add the fields that follow from these."""
    real = history != PAD  # (B, L)
    unique, inverse = np.unique(history[real], return_inverse=True)  # (U,), (real items,)
    if not len(unique):  # only empty histories: item 0 with weight 0, so that `position` always points to an item
        unique = np.zeros(1, np.int64)
    position = np.zeros_like(history)
    position[real] = inverse
    valid = np.flatnonzero(prefix != PAD)  # (M,)
    width = history.shape[1] + 1  # prefixes show 0..L items
    ends = np.bincount(valid // prefix.shape[1] * width + prefix.flat[valid], minlength=len(prefix) * width)
    ends = ends.reshape(-1, width)  # (B, L + 1): prefixes that show so many items
    seeing = ends[:, :0:-1].cumsum(1)[:, ::-1]  # (B, L): prefixes that see place i
    weight = np.bincount(inverse, seeing[real], len(unique))  # (U,)
    return Batch(
        user=_tensor(user),
        history=_tensor(history),
        prefix=_tensor(prefix),
        target=_tensor(target),
        seen=_tensor(seen),
        valid=_tensor(valid),
        unique=_tensor(unique),
        position=_tensor(position),
        weight=torch.from_numpy(weight.astype(np.float32)),
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.int64))


def _rank_and_world_size() -> tuple[int, int]:
    """Rank and world size of this process. Nothing else in the project asks for them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class TrainPlan:
    """The batches of an epoch: about batch_size prefixes each, rows of similar length together, in an order from (seed, epoch).

    Every epoch has the same number of batches: prefixes / batch_size, rounded up. Lightning counts batches once and validates
    after that many: an epoch with fewer would get no validation, and one with more would lose the rest. A batch ends at the
    row that brings it nearest to its share of the prefixes.

    The global batches do not depend on the number of processes: process r of w takes rows r, r + w, ... of each. So 1 and 2
    processes take the same optimiser steps.

    Args:
        prefixes: (rows,) int64, prefixes of each row.
        length: (rows,) int64, history items of each row.
        batch_size: prefixes in a global batch (paper: 512).
        seed: decides the batches, together with the epoch.
        chunk: rows are sorted by length within chunks of this many batches.
    """

    def __init__(self, prefixes: np.ndarray, length: np.ndarray, batch_size: int, seed: int, chunk: int = 32) -> None:
        self.prefixes, self.length = prefixes, length
        self.batch_size, self.seed, self.chunk, self.epoch = batch_size, seed, chunk, 0
        self._cached: tuple[int, list[np.ndarray]] = (-1, [])  # an epoch and its batches

    @property
    def sampler(self) -> "TrainPlan":
        """The plan itself: Lightning calls set_epoch on batch_sampler.sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.global_batches())

    def global_batches(self) -> list[np.ndarray]:
        """Return this epoch's batches for all processes together: arrays of row numbers, int64."""
        if self._cached[0] != self.epoch:
            self._cached = (self.epoch, self._make_batches(np.random.default_rng((self.seed, self.epoch))))
        return self._cached[1]

    def batches(self) -> list[np.ndarray]:
        """Return this process's share of every batch: arrays of row numbers, int64.

        Raises:
            ConfigError: a batch has fewer rows than there are processes.
        """
        rank, world = _rank_and_world_size()
        whole = self.global_batches()
        smallest = min(map(len, whole), default=world)
        if smallest < world:
            raise ConfigError(
                f"a batch of {smallest} rows cannot be shared by {world} processes; raise --data.batch_size "
                f"({self.batch_size} prefixes) or use fewer processes."
            )
        return [rows[rank::world] for rows in whole]

    def _make_batches(self, rng: np.random.Generator) -> list[np.ndarray]:
        order = rng.permutation(len(self.prefixes))
        if not len(order):
            return []
        n_chunks = max(1, round(self.prefixes.sum() / (self.batch_size * self.chunk)))
        chunks = [part[np.argsort(self.length[part], kind="stable")] for part in np.array_split(order, n_chunks)]
        # up, down, up: lengths are similar where two chunks meet, so no batch mixes the longest rows with the shortest
        order = np.concatenate([part[::-1] if i % 2 else part for i, part in enumerate(chunks)])
        end = np.cumsum(self.prefixes[order])  # (rows,) prefixes of all rows up to and including this one
        n = min(-(-int(end[-1]) // self.batch_size), len(order))
        share = np.arange(1, n) * (end[-1] / n)  # (n - 1,) where one batch should end and the next begin
        nearest = np.searchsorted(end - self.prefixes[order] / 2, share)  # (n - 1,) in rows
        step = np.arange(1, n)  # every batch has a row at least
        cuts = np.minimum(
            np.maximum.accumulate(np.maximum(nearest - step, 0)) + step, len(order) - n + step
        )  # (n - 1,)
        batches = np.split(order, cuts)
        return [batches[i] for i in rng.permutation(len(batches))]


class EvalPlan:
    """Fixed batches of users, in order of history length. Batch i goes to process i mod w.

    A batch is the same for any number of processes, so scores agree to the bit. If the batches do not divide evenly, the last
    processes repeat the first batches. Metrics count every user once.

    Args:
        users: (users,) int64, row numbers of the users who are evaluated.
        length: (users,) int64, their history lengths.
        batch_size: users in a batch.
    """

    def __init__(self, users: np.ndarray, length: np.ndarray, batch_size: int) -> None:
        order = users[np.argsort(length, kind="stable")]
        self._batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        _, world = _rank_and_world_size()
        return -(-len(self._batches) // world)

    def batches(self) -> list[np.ndarray]:
        """Return this process's batches: arrays of row numbers, int64."""
        rank, world = _rank_and_world_size()
        return [self._batches[(i * world + rank) % len(self._batches)] for i in range(len(self))]


class BatchLoader:
    """Yields the batches of a plan. A run can resume in the middle of an epoch (it is Stateful in Lightning's sense).

    It is not a torch DataLoader, because Lightning puts its own samplers into those.

    Args:
        rows: makes the batch of an array of row numbers.
        plan: which rows each batch holds.
        num_workers: processes that make batches ahead; 0 is fast enough.
        pin_memory: page-locked tensors, for a GPU.
    """

    def __init__(
        self, rows: TrainRows | EvalRows, plan: TrainPlan | EvalPlan, num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        self.rows, self.batch_sampler = rows, plan
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self._yielded, self._yielded_epoch = 0, 0  # batches of this epoch so far, and the epoch
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    @property
    def epoch(self) -> int:
        """The plan's epoch; 0 for a plan without epochs."""
        return getattr(self.batch_sampler, "epoch", 0)

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so this runs at the first next(): Lightning makes iterators before it sets the epoch.
        done = 0
        if self._resume is not None:
            epoch, batches = self._resume
            done = batches if epoch == self.epoch and batches < len(self) else 0
            self._resume = None
        self._yielded, self._yielded_epoch = done, self.epoch
        rest: Any = self.batch_sampler.batches()[done:]
        workers, pin = self.num_workers, self.pin_memory
        loader = DataLoader(self.rows, None, sampler=rest, collate_fn=_as_is, num_workers=workers, pin_memory=pin)
        for batch in loader:
            self._yielded += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how far this epoch is: {"epoch": ..., "batches": ...}."""
        return {"epoch": self._yielded_epoch, "batches": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass, if it is over the same epoch, leave out the batches that were yielded before."""
        self._resume = (state["epoch"], state["batches"])


def _as_is(batch: Any) -> Any:
    return batch
