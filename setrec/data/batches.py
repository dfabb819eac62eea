"""Which users or prefixes stand together in a batch, and the batch as tensors.

Three parts: rows (`TrainRows`, `EvalRows`) turn row numbers into a `Batch`; plans (`TrainPlan`, `EvalPlan`) say which
rows every batch holds, on every process; `BatchLoader` walks through a plan and can go on in the middle of an epoch.
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
    """Slices of the flat items as rows of one width, PAD at the end.

    Args:
        ragged: only its flat items are read.
        first: (B,) where each slice begins in the flat items.
        length: (B,) how long it is.
        least: the width is at least this.

    Returns:
        (B, max(longest, least)) int64.
    """
    column = np.arange(max(int(length.max(initial=0)), least))
    real = column < length[:, None]  # (B, L)
    out = np.full(real.shape, PAD, np.int64)
    out[real] = ragged.items[(first[:, None] + column)[real]]
    return out


class TrainRows(Dataset):
    """Training prefixes as rows of batches.

    Each user's training items are cut to the last max_history + 1, the window. Its prefix t shows window[:t] and is
    asked for window[t]. Prefix 0, the empty history, is there only where the window begins at the user's beginning.

    Args:
        train: each user's training items.
        max_history: most history items a prefix shows.
        prefix_parallel: True: a row is a user, with all prefixes of the window. A number: they are shared out evenly to so many
            rows. False: a row is one prefix, as in the paper. The same prefixes in all.
        since: (users,) the first item of each user that is asked for, counted from the user's beginning; None: all are.
    """

    def __init__(
        self, train: Ragged, max_history: int, prefix_parallel: bool | int = True, since: np.ndarray | None = None
    ) -> None:
        length = train.lengths  # (users,)
        window = np.minimum(length, max_history + 1)
        begin = train.offsets[1:] - window  # (users,) where the window stands in the flat items
        least = (length > window).astype(np.int64)  # (users,) the first prefix: 0, or 1 in a cut window
        if since is not None:
            least = np.maximum(least, since - (length - window))  # (users,)
        user = np.flatnonzero(window > least)
        prefixes = (window - least)[user]  # (those users,)
        n_rows = prefixes if prefix_parallel is False else np.minimum(int(prefix_parallel), prefixes)  # (those users,)
        row_user = np.repeat(np.arange(len(user)), n_rows)  # (rows,)
        part = np.arange(len(row_user)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)  # (rows,) 0, 1 .. in each user
        start, stop = ((part + i) * prefixes[row_user] // n_rows[row_user] for i in (0, 1))  # (rows,), (rows,)
        self.train = train
        self.user, self.begin = user[row_user], begin[user][row_user]  # (rows,), (rows,)
        self.first, self.prefixes = least[user][row_user] + start, stop - start  # (rows,), (rows,)
        self.history = self.first + self.prefixes - 1  # (rows,) history items of the row's longest prefix

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, rows: np.ndarray) -> Batch:
        """The batch of these rows. target is (B, P), seen (B, 0)."""
        begin, first, count = self.begin[rows], self.first[rows], self.prefixes[rows]  # each (B,)
        history = padded(self.train, begin, self.history[rows], least=1)  # (B, L)
        target = padded(self.train, begin + first, count)  # (B, P)
        prefix = np.where(target != PAD, first[:, None] + np.arange(target.shape[1]), PAD)  # (B, P)
        seen = np.empty((len(rows), 0), np.int64)
        return _batch(self.user[rows], history, prefix, target, seen)


class EvalRows(Dataset):
    """Users with their whole history and all their targets.

    Args:
        history: each user's history, uncut; what is shown is its last max_history items, `seen` is all of it.
        targets: each user's targets.
        max_history: most history items that are shown.
    """

    def __init__(self, history: Ragged, targets: Ragged, max_history: int) -> None:
        self.whole, self.targets = history, targets
        self.shown = np.minimum(history.lengths, max_history)  # (users,)

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, rows: np.ndarray) -> Batch:
        """The batch of these users. prefix is (B, 1), target and seen as wide as their longest row."""
        shown = self.shown[rows]  # (B,)
        history = padded(self.whole, self.whole.offsets[rows + 1] - shown, shown, least=1)  # (B, L)
        target = padded(self.targets, self.targets.offsets[rows], self.targets.lengths[rows], least=1)  # (B, any)
        seen = padded(self.whole, self.whole.offsets[rows], self.whole.lengths[rows])  # (B, any)
        return _batch(rows, history, shown[:, None], target, seen)


def _batch(user: np.ndarray, history: np.ndarray, prefix: np.ndarray, target: np.ndarray, seen: np.ndarray) -> Batch:
    """Add what follows from the rest. A row's prefixes are consecutive: those beyond place i are a subtraction."""
    real = history != PAD  # (B, L)
    unique, inverse = np.unique(history[real], return_inverse=True)  # (U,), (real items,)
    if not len(unique):  # only empty histories: item 0, with weight 0, so that `position` always points somewhere
        unique = np.zeros(1, np.int64)
    position = np.zeros_like(history)
    position[real] = inverse
    last = prefix.max(1, keepdims=True)  # (B, 1) the longest prefix
    shortest = np.where(prefix != PAD, prefix, np.iinfo(np.int64).max).min(1, keepdims=True)  # (B, 1)
    beyond = last - np.maximum(np.arange(history.shape[1]), shortest - 1)  # (B, L) prefixes that see place i
    weight = np.bincount(inverse, np.maximum(beyond, 0)[real], len(unique))  # (U,)
    valid = np.flatnonzero(prefix != PAD)  # (M,)
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


def _place() -> tuple[int, int]:
    """Rank and world size of this process: the one place of the project that asks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class TrainPlan:
    """Batches of one epoch: about batch_size prefixes each, rows of like length together, order from (seed, epoch).

    Their number is that of the prefixes / batch_size, rounded up, in every epoch: Lightning counts batches once and validates
    after as many, so an epoch of fewer would go without validation and one of more would lose the rest. A batch ends at
    the row that is nearest to its share.

    The global batches do not depend on the number of processes: process r of w takes rows r, r + w, ... of each, so
    that 1 and 2 processes take the same optimiser steps.

    Args:
        prefixes: (rows,) prefixes of each row.
        length: (rows,) history items of each row.
        batch_size: prefixes in a global batch (paper: 512).
        seed: with the epoch, decides everything.
        chunk: batches' worth of rows that are sorted by length among themselves.
    """

    def __init__(self, prefixes: np.ndarray, length: np.ndarray, batch_size: int, seed: int, chunk: int = 32) -> None:
        self.prefixes, self.length = prefixes, length
        self.batch_size, self.seed, self.chunk, self.epoch = batch_size, seed, chunk, 0
        self._made: tuple[int, list[np.ndarray]] = (-1, [])

    @property
    def sampler(self) -> "TrainPlan":
        """Lightning calls set_epoch on batch_sampler.sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.global_batches())

    def global_batches(self) -> list[np.ndarray]:
        """This epoch's batches, all processes together: arrays of row numbers."""
        if self._made[0] != self.epoch:
            self._made = (self.epoch, self._make(np.random.default_rng((self.seed, self.epoch))))
        return self._made[1]

    def batches(self) -> list[np.ndarray]:
        """This process's share of every batch.

        Raises:
            ConfigError: a batch has fewer rows than there are processes.
        """
        rank, world = _place()
        whole = self.global_batches()
        smallest = min(map(len, whole), default=world)
        if smallest < world:
            raise ConfigError(
                f"a batch of {smallest} rows cannot be shared by {world} processes; raise --data.batch_size "
                f"({self.batch_size} prefixes) or use fewer processes."
            )
        return [rows[rank::world] for rows in whole]

    def _make(self, rng: np.random.Generator) -> list[np.ndarray]:
        order = rng.permutation(len(self.prefixes))
        if not len(order):
            return []
        n_chunks = max(1, round(self.prefixes.sum() / (self.batch_size * self.chunk)))
        chunks = [part[np.argsort(self.length[part], kind="stable")] for part in np.array_split(order, n_chunks)]
        # up, down, up: at the seam of two chunks the lengths are alike, so no batch mixes the longest with the shortest
        order = np.concatenate([part[::-1] if i % 2 else part for i, part in enumerate(chunks)])
        end = np.cumsum(self.prefixes[order])  # (rows,) prefixes up to and with each row
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
    """Users in fixed batches, by length of history; batch i goes whole to process i mod w.

    A batch looks the same on any number of processes, so scores agree to the bit. Where the batches do not come out
    even, the last processes repeat the first batches: metrics count every user once.

    Args:
        users: (users,) row numbers of those who are evaluated.
        length: (users,) their history lengths.
        batch_size: users in a batch.
    """

    def __init__(self, users: np.ndarray, length: np.ndarray, batch_size: int) -> None:
        order = users[np.argsort(length, kind="stable")]
        self._batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        _, world = _place()
        return -(-len(self._batches) // world)

    def batches(self) -> list[np.ndarray]:
        """This process's batches."""
        rank, world = _place()
        return [self._batches[(i * world + rank) % len(self._batches)] for i in range(len(self))]


class BatchLoader:
    """Batches of a plan, one after the other; Stateful in Lightning's sense: a run resumes in the middle of an epoch.

    Not a torch DataLoader on purpose: Lightning takes those apart and puts its own samplers in.

    Args:
        rows: makes the batch of an array of row numbers.
        plan: which rows each batch holds.
        num_workers: processes that collate ahead; 0 is fast enough.
        pin_memory: page-locked tensors, for a GPU.
    """

    def __init__(
        self, rows: TrainRows | EvalRows, plan: TrainPlan | EvalPlan, num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        self.rows, self.batch_sampler = rows, plan
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self._handed, self._handed_in = 0, 0  # batches given out, and the epoch they belong to
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.batch_sampler)

    @property
    def epoch(self) -> int:
        return getattr(self.batch_sampler, "epoch", 0)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: this runs at the first next(), when Lightning has set the epoch (it makes iterators before that).
        done = 0
        if self._resume is not None:
            epoch, handed = self._resume
            done = handed if epoch == self.epoch and handed < len(self) else 0
            self._resume = None
        self._handed, self._handed_in = done, self.epoch
        rest: Any = self.batch_sampler.batches()[done:]
        workers, pin = self.num_workers, self.pin_memory
        loader = DataLoader(self.rows, None, sampler=rest, collate_fn=_as_is, num_workers=workers, pin_memory=pin)
        for batch in loader:
            self._handed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How far this epoch is: plain numbers."""
        return {"epoch": self._handed_in, "batches": self._handed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass, if it is over the same epoch, leaves out the batches that were given out already."""
        self._resume = (state["epoch"], state["batches"])


def _as_is(batch: Any) -> Any:
    return batch
