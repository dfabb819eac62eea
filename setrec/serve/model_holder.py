"""The model in service, and the takeover: another checkpoint takes its place while requests go on."""

import hashlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from setrec.errors import ConfigError, DataError, ModelError, SETRecError
from setrec.files.hashes import file_hash
from setrec.hparams import to_plain
from setrec.inference.journal import Journal
from setrec.inference.journal_applied import apply_journal, rows_of
from setrec.inference.journal_lines import Change
from setrec.recommend import Recommender
from setrec.text import TextVectors

log = logging.getLogger("uvicorn.error")


class ServedModel(NamedTuple):
    """A model in service. A request takes it once and keeps it until it is answered."""

    recommender: Recommender
    path: Path
    generation: int  # 0 at the start, one more after every takeover
    since: datetime
    fingerprint: str  # of its files; "": nobody needs it

    @property
    def name(self) -> str:
        """The model in the log of answers."""
        return f"{self.path.name}#{self.fingerprint}"


class _Followed:
    """A journal that the catalogue in service follows."""

    def __init__(self, journal: Journal, lines: int) -> None:
        self.journal = journal
        self.lines = lines  # that the catalogue includes

    def behind(self) -> bool:
        return self.journal.grown() or self.lines < len(self.journal.changes)


class TakeoverRunningError(Exception):
    """Another checkpoint is being loaded right now."""


class ModelHolder:
    """Holds the model in service and its journal of items, and takes over other checkpoints.

    A takeover replaces `current` when the new model is ready; calls that have begun end with the model they began with.
    Changes of the catalogue and this replacement never happen at the same time. Other processes write to the same journal:
    `catch_up` applies what they wrote.

    Attributes:
        taken_over: the models that have served since the start, the last hundred: path, generation, since.
        answered: when the model last answered well, by `time.monotonic`.
        fault: why the journal cannot be followed; "" as long as it can.
        followers: other models beside this one, by variant; each follows a `Journal` of its own on the same file.

    Args:
        path: the first checkpoint.
        load: loads a checkpoint.
        journal: items added and removed by this server and others; beside it, the checkpoint's own journal is followed.
        folder: checkpoints that a request names must lie in this folder, or below it.
        encoder: text encoder for new items, if the data names none; None: the encoder of the training.
        generation: that of the checkpoint; above 0 in a worker that takes the place of another one.
        named: compute the hash of the files of a model, which the database names it by.

    Raises:
        SETRecError: the checkpoint is broken; see `Recommender.load`.
    """

    def __init__(
        self,
        path: Path,
        load: Callable[[Path], Recommender],
        journal: Journal,
        folder: Path,
        encoder: TextVectors | None = None,
        generation: int = 0,
        named: bool = True,
    ) -> None:
        self._named = named
        self._load = load
        self.followers: dict[str, ModelHolder] = {}
        self._encoder = encoder
        self.journal = journal
        self.folder = folder.resolve()
        self._changing = threading.Lock()
        self._taking_over = threading.Lock()
        self.fault = ""
        self._failed: list[int] = []  # lines of the journals when `fault` was seen
        mark = self._mark(path)
        recommender = self._load_and_try(path)
        self._followed = self._follow(recommender)
        self.current = ServedModel(recommender, path, generation, datetime.now(UTC), mark)
        self.taken_over = deque([(path, generation, self.current.since)], maxlen=100)
        self.answered = time.monotonic()

    def add(self, items: Sequence[dict[str, Any]]) -> list[str]:
        """Add items to the catalogue and to the journal; returns their ids.

        Raises:
            SETRecError: an id is in the catalogue already, there is no encoder, or a vector is wrong; nothing was added.
            JournalWriteError: the journal cannot be written; nothing was added.
        """
        encoder = to_plain(self._encoder) if self._encoder is not None else None
        line = {"add": list(items)} | ({"encoder": encoder} if encoder is not None else {})
        with self._changing, self.journal.locked():
            self._catch_up()
            recommender = self.current.recommender
            return recommender.add_items(rows_of(items), self._encoder, keep=lambda: self._write(line))

    def remove(self, ids: Sequence[str]) -> list[str]:
        """Remove items from the catalogue for good; returns their ids.

        Raises:
            DataError: an id is not in the catalogue, or no item would be left; nothing was removed.
            JournalWriteError: the journal cannot be written; nothing was removed.
        """
        with self._changing, self.journal.locked():
            self._catch_up()
            recommender = self.current.recommender
            for own in ids:
                if own not in recommender:
                    raise DataError(f"{own!a} is not in the catalogue; nothing was removed.")
            if len(set(ids)) == len(recommender):
                raise DataError("These are all items of the catalogue: nothing would be left to recommend.")
            recommender.remove_items(ids, keep=lambda: self._write({"remove": list(ids)}))
            return list(ids)

    def behind(self) -> bool:
        """Whether another process has changed the catalogue; this costs a look at the size of a file or two."""
        own = any(one.behind() for one in self._followed) and self._failed != self._sizes()
        return own or any(other.behind() for other in self.followers.values())

    def wait_for(self, ids: Iterable[str]) -> None:
        """Wait for items that another process has added, however long it takes to encode them; not for unknown ones."""
        while self.behind() and self._awaits({own for own in ids if own not in self.current.recommender}):
            self.catch_up()

    def _awaits(self, missing: set[str]) -> bool:
        """Whether the journal names one of some items, or has lines that nobody has read yet."""
        if not missing:
            return False
        pending = [change for one in self._followed for change in one.journal.changes[one.lines :]]
        named = {item["id"] for change in pending for item in change.get("add", [])}
        return not named.isdisjoint(missing) or any(one.journal.grown() for one in self._followed)

    def catch_up(self) -> None:
        """Apply what is new in the journal. If it cannot be applied, `fault` says so, and the catalogue stays."""
        with self._changing:
            if any(one.behind() for one in self._followed) and self._failed != self._sizes():
                try:
                    self._catch_up()
                except DataError as error:
                    self.fault, self._failed = str(error), self._sizes()
                    log.error("%s", error)
        for other in self.followers.values():
            other.catch_up()

    def _sizes(self) -> list[int]:
        return [one.journal.size_now() for one in self._followed]

    def _catch_up(self) -> None:
        for one in self._followed:
            one.journal.read_on()
            new = one.journal.changes[one.lines :]
            if new:
                apply_journal(self.current.recommender, one.journal.path, new, self._encoder)
                one.lines = len(one.journal.changes)
        self.fault, self._failed = "", []

    def _write(self, change: Change) -> None:
        """Write a change that the catalogue in service is about to get; the lock of the journal is held."""
        self.journal.append([change])
        for one in self._followed:
            if one.journal is self.journal:
                one.lines = len(self.journal.changes)

    def patch(self, patches: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Change attributes of items, id -> name -> value, in the catalogue and in the journal; returns their ids.

        Raises:
            DataError: an id is not in the catalogue, or a value does not fit; nothing was changed.
            JournalWriteError: the journal cannot be written; nothing was changed.
        """
        line = {"patch": [{"id": own, "fields": dict(fields)} for own, fields in patches.items()]}
        with self._changing, self.journal.locked():
            self._catch_up()
            self.current.recommender.patch_items(patches, keep=lambda: self._write(line))
            return list(patches)

    def allowed(self, path: str) -> Path:
        """Check a path that a request names.

        Raises:
            ConfigError: there is no such file, or it lies outside of `folder`.
        """
        try:
            found = Path(path).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise ConfigError(
                f"path: {ascii(path)[:200]} does not exist; the old checkpoint stays in service."
            ) from None
        if found != self.current.path.resolve() and not found.is_relative_to(self.folder):
            raise ConfigError(f"path: {ascii(path)[:200]} lies outside of the folder that --models allows.")
        return found

    def take_over(self, path: Path) -> ServedModel:
        """Load a checkpoint, bring its catalogue up to date, and put it into service. This takes seconds.

        Raises:
            SETRecError: the checkpoint is broken; the old model stays in service.
            TakeoverRunningError: another takeover is running.
        """
        if not self._taking_over.acquire(blocking=False):
            raise TakeoverRunningError
        try:
            mark = self._mark(path)
            recommender = self._load_and_try(path)
            with self._changing:
                self._followed = self._follow(recommender)
                self.fault, self._failed = "", []
                self.current = ServedModel(recommender, path, self.current.generation + 1, datetime.now(UTC), mark)
                self.taken_over.append((path, self.current.generation, self.current.since))
            return self.current
        finally:
            self._taking_over.release()

    def _mark(self, path: Path) -> str:
        """The hash that names a model. Take it before it is loaded: it must not be that of a later file."""
        return _fingerprint(path) if self._named else ""

    def _load_and_try(self, path: Path) -> Recommender:
        """Load a model and let it answer once.

        Raises:
            SETRecError: it cannot be loaded, or its scores are not finite.
        """
        try:
            recommender = self._load(path)
            (first,) = recommender.recommend([[]], k=1)
            (again,) = recommender.recommend([[one.id for one in first.items]], k=1, exclude_seen=False)
        except ModelError:
            raise DataError(f"{path} gives scores that are not finite numbers; its training has diverged.") from None
        except SETRecError:
            raise
        except Exception as error:  # whatever is wrong with the file: one sentence that names it
            reason = (str(error).splitlines() or [""])[0]
            raise DataError(f"{path} cannot be served ({type(error).__name__}: {reason[:300]}).") from error
        if not first.items:
            raise DataError(f"{path} recommends nothing: its catalogue is empty.")
        if not all(math.isfinite(one.score) for one in (*first.items, *again.items)):
            raise DataError(f"{path} gives scores that are not finite numbers; its training has diverged.")
        return recommender

    def _follow(self, recommender: Recommender) -> list[_Followed]:
        """Bring a catalogue up to date with the journals. Items that the training has seen meanwhile stay as trained.

        Raises:
            DataError: an item of the journal does not fit the model.
        """
        self.journal.read_on()
        own = recommender.journal
        if own is not None and own.path.resolve() == self.journal.path.resolve():
            followed = [_Followed(self.journal, recommender.lines)]
        else:
            followed = [_Followed(self.journal, 0)]
            followed += [_Followed(own, recommender.lines)] if own is not None else []
        for one in followed:
            apply_journal(recommender, one.journal.path, one.journal.changes[one.lines :], self._encoder)
            one.lines = len(one.journal.changes)
        return followed


def _fingerprint(path: Path) -> str:
    """12 letters that differ where the files of a model differ; those of nothing, if they cannot be read."""
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        hashes = [file_hash(file) for file in files]
    except OSError:  # loading says why
        hashes = []
    return (hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest())[:12]
