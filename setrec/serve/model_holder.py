"""The model in service, and the takeover: another checkpoint takes its place while requests go on."""

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from setrec.errors import ConfigError, DataError, ModelError, SETRecError
from setrec.files.hashes import file_hash
from setrec.recommend import Recommender
from setrec.serve.journal import Journal
from setrec.text import TextVectors

log = logging.getLogger("uvicorn.error")


class ServedModel(NamedTuple):
    """A model in service. A request takes it once and keeps it until it is answered."""

    recommender: Recommender
    path: Path
    generation: int  # 0 at the start, one more after every takeover
    since: datetime
    fingerprint: str  # of its files

    @property
    def name(self) -> str:
        """The model in the log of answers."""
        return f"{self.path.name}#{self.fingerprint}"


class TakeoverRunningError(Exception):
    """Another checkpoint is being loaded right now."""


class ModelHolder:
    """Holds the model in service and its journal of items, and takes over other checkpoints.

    A takeover replaces `current` when the new model is ready; calls that have begun end with the model they began with.
    Changes of the catalogue and this replacement never happen at the same time.

    Attributes:
        answered: when the model last answered well, by `time.monotonic`.

    Args:
        path: the first checkpoint.
        load: loads a checkpoint.
        journal: the items added and removed since training.
        folder: checkpoints that a request names must lie in this folder, or below it.
        encoder: text encoder for new items, if the data names none; None: the encoder of the training.

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
    ) -> None:
        self._load = load
        self.followers: dict[str, ModelHolder] = {}  # variant -> a model that has the same changes of the catalogue
        self._encoder = encoder
        self.journal = journal
        self.folder = folder.resolve()
        self._changing = threading.Lock()
        self._taking_over = threading.Lock()
        mark = _fingerprint(path)  # before it is loaded: it must not be that of a later file
        self.current = ServedModel(self._load_and_try(path), path, 0, datetime.now(UTC), mark)
        self.answered = time.monotonic()
        self._replay(self.current.recommender)

    def add(self, items: Sequence[dict[str, Any]]) -> list[str]:
        """Add items to the catalogue and to the journal; returns their ids.

        Raises:
            SETRecError: an id is in the catalogue already, there is no encoder, or a vector is wrong; nothing was added.
            JournalWriteError: the journal cannot be written; nothing was added.
        """
        with self._changing:
            ids = self._add_to(self.current.recommender, items, lambda: self.journal.add(items))
            for name, other in self.followers.items():
                other.follow(name, lambda one: one._replay(one.current.recommender))
            return ids

    def remove(self, ids: Sequence[str]) -> list[str]:
        """Remove items from the catalogue for good; returns their ids.

        Raises:
            DataError: an id is not in the catalogue, or no item would be left; nothing was removed.
            JournalWriteError: the journal cannot be written; nothing was removed.
        """
        with self._changing:
            recommender = self.current.recommender
            for own in ids:
                if own not in recommender:
                    raise DataError(f"{own!a} is not in the catalogue; nothing was removed.")
            if len(set(ids)) == recommender.info()["n_items"]:
                raise DataError("These are all items of the catalogue: nothing would be left to recommend.")
            recommender.remove_items(ids, keep=lambda: self.journal.remove(ids))
            for name, other in self.followers.items():
                gone = [own for own in ids if own in other.current.recommender]
                other.follow(name, partial(_remove, gone))
            return list(ids)

    def follow(self, name: str, change: Callable[["ModelHolder"], object]) -> None:
        """Make a change of the main model's catalogue here too. If this model cannot, it goes on without, and the log says so."""
        try:
            with self._changing:
                change(self)
        except SETRecError as error:
            log.error("the %s goes on without a change of the catalogue: %s", name, error)

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
            mark = _fingerprint(path)
            recommender = self._load_and_try(path)
            with self._changing:
                self._replay(recommender)
                self.current = ServedModel(recommender, path, self.current.generation + 1, datetime.now(UTC), mark)
            return self.current
        finally:
            self._taking_over.release()

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

    def _replay(self, recommender: Recommender) -> None:
        """Apply the journal to a trained catalogue. Items that the training has seen meanwhile stay as trained.

        Raises:
            DataError: an item of the journal does not fit the model.
        """
        gone = [own for own in self.journal.removed if own in recommender]
        if gone:
            recommender.remove_items(gone)
        new = [item for own, item in self.journal.added.items() if own not in recommender]
        for with_vector in (False, True):
            some = [item for item in new if (item.get("vector") is not None) == with_vector]
            if some:
                try:
                    self._add_to(recommender, some)
                except SETRecError as error:
                    raise DataError(
                        f"the items in {self.journal.path} cannot be added to this model ({error}); correct that file, or name "
                        "another with --items."
                    ) from error

    def _add_to(
        self, recommender: Recommender, items: Sequence[dict[str, Any]], keep: Callable[[], None] | None = None
    ) -> list[str]:
        """Add items in the form that requests have; returns their ids."""
        rows = [{name: item[name] for name in ("id", "title", "text", "vector") if item.get(name) is not None}
                | {name: value for name, value in (item.get("fields") or {}).items() if name not in item}
                for item in items]  # fmt: skip
        return recommender.add_items(rows, encoder=self._encoder, keep=keep)


def _remove(ids: Sequence[str], holder: ModelHolder) -> None:
    if ids:
        holder.current.recommender.remove_items(ids)


def _fingerprint(path: Path) -> str:
    """12 letters that differ where the files of a model differ; those of nothing, if they cannot be read."""
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        hashes = [file_hash(file) for file in files]
    except OSError:  # loading says why
        hashes = []
    return (hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest())[:12]
