"""The model that is being served, and how another one takes its place while requests go on."""

import math
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from setrec.errors import ConfigError, DataError, SETRecError
from setrec.serve.journal import Journal, NotKeptError

if TYPE_CHECKING:
    from setrec.recommend import Recommender
    from setrec.text import TextVectors


class Served(NamedTuple):
    """A model in service. Requests take it once and keep it until they are answered."""

    recommender: "Recommender"
    path: Path
    generation: int  # 0 at the start, one more at every takeover
    since: datetime


class TakeoverRunningError(Exception):
    """Another checkpoint is being loaded right now."""


class Models:
    """The model in service, its journal of items, and the takeover of another checkpoint.

    Reading `served` is one attribute access: a takeover swaps it when everything is ready, and what is being computed ends
    with the model it began with. Changes of the catalogue and the swap itself exclude each other.

    Args:
        path: the first checkpoint.
        load: makes a Recommender of a path.
        journal: the items added and removed since training.
        folder: checkpoints named later must lie in it, or below.
        encoder: encodes new items where the data names no encoder; None: the one of the training.

    Raises:
        SETRecError: the checkpoint is broken; see `Recommender.load`.
    """

    def __init__(
        self,
        path: Path,
        load: "Callable[[Path], Recommender]",
        journal: Journal,
        folder: Path,
        encoder: "TextVectors | None" = None,
    ) -> None:
        self._load = load
        self._encoder = encoder
        self.journal = journal
        self.folder = folder.resolve()
        self._changing = threading.Lock()
        self._taking_over = threading.Lock()
        self.served = Served(self._ready(path), path, 0, datetime.now(UTC))
        self._replay(self.served.recommender)

    def add(self, items: Sequence[dict[str, Any]]) -> list[str]:
        """Add items to the catalogue and keep them; returns their ids.

        Raises:
            SETRecError: an id that is there already, no encoder, a wrong vector; nothing was added.
            NotKeptError: they could not be written down; nothing was added.
        """
        with self._changing:
            recommender = self.served.recommender
            ids = self._put(recommender, items)
            try:
                self.journal.add(items)
            except NotKeptError:
                recommender.remove_items(ids)
                raise
            return ids

    def remove(self, ids: Sequence[str]) -> list[str]:
        """Take items out of the catalogue for good; returns their ids.

        Raises:
            DataError: an id that is not there, or nothing would be left; nothing was removed.
            NotKeptError: the removal could not be written down; nothing was removed.
        """
        with self._changing:
            recommender = self.served.recommender
            for name in ids:
                if name not in recommender:
                    raise DataError(f"{name!a} is not in the catalogue; nothing was removed.")
            if len(set(ids)) == recommender.info()["n_items"]:
                raise DataError("These are all items of the catalogue: nothing would be left to recommend.")
            self.journal.remove(ids)
            recommender.remove_items(ids)
            return list(ids)

    def allowed(self, path: str) -> Path:
        """A path that a request names, as one that may be loaded.

        Raises:
            ConfigError: it lies outside of `folder`, or nothing is there.
        """
        try:
            found = Path(path).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise ConfigError(f"path: {ascii(path)[:200]} is not there; the old checkpoint goes on serving.") from None
        if found != self.served.path.resolve() and not found.is_relative_to(self.folder):
            raise ConfigError(f"path: {ascii(path)[:200]} lies outside of the folder that --models allows.")
        return found

    def take_over(self, path: Path) -> Served:
        """Load a checkpoint, bring its catalogue up to date, let it answer from now on; takes seconds.

        Raises:
            SETRecError: it is broken; the old one goes on serving.
            TakeoverRunningError: another takeover has not ended.
        """
        if not self._taking_over.acquire(blocking=False):
            raise TakeoverRunningError
        try:
            recommender = self._ready(path)
            with self._changing:
                self._replay(recommender)
                self.served = Served(recommender, path, self.served.generation + 1, datetime.now(UTC))
            return self.served
        finally:
            self._taking_over.release()

    def _ready(self, path: Path) -> "Recommender":
        """A loaded model that has given an answer.

        Raises:
            SETRecError: it can't be loaded, or its scores are no numbers.
        """
        try:
            recommender = self._load(path)
            (first,) = recommender.recommend([[]], k=1)
            (again,) = recommender.recommend([[one.id for one in first.items]], k=1, exclude_seen=False)
        except SETRecError:
            raise
        except Exception as error:  # whatever is wrong with the file, one sentence says so and names it
            reason = (str(error).splitlines() or [""])[0]
            raise DataError(f"{path} can't be served ({type(error).__name__}: {reason[:300]}).") from error
        if not first.items:
            raise DataError(f"{path} recommends nothing: its catalogue is empty.")
        if not all(math.isfinite(one.score) for one in (*first.items, *again.items)):
            raise DataError(f"{path} gives scores that are no numbers; its training has diverged.")
        return recommender

    def _replay(self, recommender: "Recommender") -> None:
        """Bring a trained catalogue to where the journal is; what training has learned meanwhile stays as trained."""
        gone = [name for name in self.journal.removed if name in recommender]
        if gone:
            recommender.remove_items(gone)
        new = [item for name, item in self.journal.added.items() if name not in recommender]
        for with_vector in (False, True):
            some = [item for item in new if (item.get("vector") is not None) == with_vector]
            if some:
                self._put(recommender, some)

    def _put(self, recommender: "Recommender", items: Sequence[dict[str, Any]]) -> list[str]:
        """Add items as they were given over HTTP; returns their ids."""
        rows = [{name: item[name] for name in ("id", "title", "text", "vector") if item.get(name) is not None}
                | {name: value for name, value in (item.get("fields") or {}).items() if name not in item}
                for item in items]  # fmt: skip
        return recommender.add_items(rows, encoder=self._encoder)
