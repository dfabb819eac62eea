"""The public API of a trained model: histories in, recommended items out, all in the ids of the user's own data.

    from setrec import Recommender
    r = Recommender.load("lightning_logs/version_0/checkpoints/epoch-03.ckpt")
    r.recommend([["B0002F7KUG", "B003EIK136"]], k=5)

Any number of threads may call it at the same time. Each call works on a snapshot that never changes; a change of the catalogue
makes a new snapshot and puts it in place of the old one.
"""

import json
import logging
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import torch

from setrec.errors import ConfigError, DataError, ModelError, SETRecError
from setrec.inference import browse
from setrec.inference.answers import (
    RankedItem,
    Recommendation,
    SearchOptions,
    Snapshot,
    asked,
    batches,
    chosen_beta,
    index_recall,
    lower_titles_of,
    make_snapshot,
    ranked,
    read_histories,
    try_snapshot,
)
from setrec.inference.attributes import Attributes
from setrec.inference.browse import Item, ItemDetails, SimilarItem
from setrec.inference.explain import Why
from setrec.inference.exported import Exported, Format, write_exported
from setrec.inference.hub import HubModel, summary
from setrec.inference.item_encoders import ItemEncoders
from setrec.inference.journal import Journal, JournalWriteError, Mark
from setrec.inference.journal_applied import apply_journal, items_of
from setrec.inference.journal_lines import Change
from setrec.inference.journal_place import journal_path
from setrec.inference.new_items import check_items, vector_column
from setrec.inference.options import Boost, RecommendOptions, Unknown
from setrec.inference.published import is_published, read_published
from setrec.inference.restore import Trained, build, read_trained, rebuild
from setrec.inference.versions import (
    NO_CHANGES,
    VERSION,
    Changes,
    apply_changes,
    catalogue_of,
    current,
    next_path,
    read_version,
    retitled,
    table_of,
    with_added,
    with_patched,
    with_removed,
    write_version,
)
from setrec.text import TextVectors

log = logging.getLogger(__name__)

__all__ = [
    "Boost", "Item", "ItemDetails", "RankedItem", "RecommendOptions", "Recommendation", "Recommender", "SimilarItem", "Why",
]  # fmt: skip


class Recommender(HubModel):
    """A trained SETRec model with its catalogue. `load` makes one; `from_pretrained` gets one from the Hugging Face hub.

    `save_pretrained(folder)` and `push_to_hub(name)` publish it, see inference/hub.py.
    """

    def __init__(self, trained: Trained, snapshot: Snapshot) -> None:
        self._trained = trained
        self._snapshot = snapshot
        self._changing = threading.RLock()  # one change of the catalogue at a time
        self._pending: Snapshot | None = None  # of `at_once`: its catalogue and attributes are new, its model is not
        self._pending_new: list[str] = []
        self._encoders = ItemEncoders(trained)
        self._unsaved: list[Change] = []  # what `save` writes to the journal
        self.journal: Journal | None = None  # of the checkpoint; None: this is a version, which stays as it is
        self.lines = 0  # of the journal that the catalogue includes
        self._version: Path | None = None  # that it began with
        self.index_recall: float | None = (
            None  # of the approximate index when it was loaded: recall@10 against exact lists
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "cpu",
        data: str | Path | None = None,
        index: str | None = None,
        prefix_cache: int = 0,
        encoder: TextVectors | None = None,
    ) -> "Recommender":
        """Load a model from the disk.

        Args:
            path: a checkpoint that `fit` wrote or a published folder, with the items added and removed since: its newest version,
                and what its journal holds beyond that. Or a version that `save` or `add-items` wrote: exactly that one.
            device: where the model computes: cpu, cuda, cuda:1.
            data: the folder of the prepared data, if it is not where the checkpoint says.
            index: search approximately by faiss: "PQ", for large catalogues, or any that it builds, "HNSW32"; None: exactly. See
                `setrec.search.FaissSearch`. `index_recall` then says what share of the exact lists it finds.
            prefix_cache: MiB for what was read of histories, so that a history that has grown costs its new items only; 0:
                none. With it, a history longer than max_history is cut where the cut moves in steps of max_history / 5 items.
            encoder: text encoder for items of the journal; None: the one that it names, or that of the training.

        Raises:
            ConfigError: the file does not exist, is damaged, is not a SETRec checkpoint, or belongs to other data.
            DataError: the prepared data is not there, or was changed; or the journal is damaged, or does not fit the model.
        """
        path = Path(path)
        if not path.exists():
            raise ConfigError(f"{path}: no such file; give the path that fit printed at its end.")
        try:
            return cls._read(path, device, data, SearchOptions(index, prefix_cache), encoder)
        except SETRecError:
            raise
        except Exception as error:  # a damaged file can fail anywhere between here and the model; one sentence names it
            reason = (str(error).splitlines() or [""])[0]
            raise ConfigError(f"{path} cannot be loaded ({type(error).__name__}: {reason[:300]}).") from error

    @classmethod
    def _read(
        cls, path: Path, device: str, data: str | Path | None, search: SearchOptions, encoder: TextVectors | None
    ) -> "Recommender":
        version = read_version(path) if (path / VERSION).is_file() else None
        model = path if version is None else version.model
        folder = Path(data) if data is not None else version.data if version is not None else None
        trained = read_published(model) if is_published(model) else read_trained(model, folder)
        journal, lines, found = None, 0, path.resolve() if version is not None else None
        if version is None:
            journal = Journal(journal_path(path), writable=False)
            found, version, lines = current(path, trained.catalogue, journal)
        catalogue = trained.catalogue if version is None else catalogue_of(trained.catalogue, version, found or path)
        changes = NO_CHANGES if version is None else version.changes
        restored = build(trained, catalogue, torch.device(device), changes.ngrams_of_all)
        items = table_of(trained.items, changes)
        made = cls(trained, make_snapshot(restored, catalogue, changes, items, trained.max_history, search))
        made.journal, made._version = journal, found
        if journal is not None:
            apply_journal(made, journal.path, journal.changes[lines:], encoder)
            made._unsaved, made.lines = [], len(journal.changes)
        if search.index is not None:
            made.index_recall = index_recall(made._snapshot)
        return made

    # ---------------------------------------------------------------------------------------------------- recommending
    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Collection[str] | None = None,
        explain: bool = False,
        beta: float | None = None,
        unknown: Unknown = "skip",
        filter: str | None = None,
        diversity: float = 0.0,
        caps: dict[str, int] | None = None,
        boosts: list[Boost] | None = None,
        kinds: Sequence[Sequence[str] | None] | None = None,
    ) -> list[Recommendation]:
        """Recommend items for each history.

        `histories` holds the item ids of each user, oldest first. An empty history gets what the model recommends to anyone. The
        model reads the last max_history items of a history, but `exclude_seen` leaves out all of them. `RecommendOptions`
        describes the other arguments.

        `kinds` holds the kind of every event, such as view or buy, in lists as long as those of `histories`. Events of kinds that
        the model was not trained to read (`--data.kinds`) are left out, and `exclude_seen` leaves out the items of events of target
        kinds only. None, for one history or for all: every event counts as one that is read.

        Returns:
            One Recommendation for each history, in the same order.

        Raises:
            ConfigError: an option is out of range, or a filter is wrong.
            DataError: `unknown` is "refuse" and an id is not in the catalogue, or a history is not a list of texts, or has another
                number of kinds.
            ModelError: a score is not a finite number.
        """
        options = RecommendOptions(k, exclude_seen, candidates, explain, beta, unknown, filter, diversity, caps, boosts)
        found: dict[int, Recommendation] = {}
        for places, answers in self.stream(histories, options, kinds=kinds):
            found |= zip(places, answers, strict=True)
        return [found[place] for place in range(len(found))]

    def stream(
        self,
        histories: Sequence[Sequence[str]],
        options: RecommendOptions | None = None,
        share: tuple[int, int] = (0, 1),
        kinds: Sequence[Sequence[str] | None] | None = None,
    ) -> Iterator[tuple[list[int], list[Recommendation]]]:
        """Recommend as `recommend` does, one batch after the other, without holding all answers.

        Args:
            histories: see `recommend`.
            options: see `RecommendOptions`; None: the defaults.
            share: (r, n) gives every n-th batch, starting with batch r: the share of process r of n.
            kinds: see `recommend`.

        Yields:
            The places of some histories, and their answers.

        Raises:
            DataError: see `recommend`.
        """
        snapshot = self._snapshot  # the same one to the end, even if the catalogue changes meanwhile
        options = options or RecommendOptions()
        told = read_histories(snapshot, histories, options.unknown, kinds)
        what = asked(snapshot, options)
        for places, batch in batches(snapshot, told.rows, share, told.wanted):
            answers = zip(places, *ranked(snapshot, batch, what), strict=True)
            yield places, [Recommendation(items, told.unknown[at], kept) for at, items, kept in answers]

    # --------------------------------------------------------------------------------------------------- the catalogue
    def add_items(
        self,
        items: pl.DataFrame | list[dict[str, Any]],
        encoder: TextVectors | None = None,
        keep: Callable[[], None] | None = None,
    ) -> list[str]:
        """Add new items to the catalogue. They can be recommended, and stand in histories, at once.

        Each gets semantic slots from its text, which is encoded as the texts of the training were. It has no CF vector: its row is
        zero under both choices of `missing_cf`. Its vector of a further source (--data.vectors) is the one in the column
        `vector_NAME`; without one it is encoded, if the source is an encoder, and otherwise zero.

        Args:
            items: columns id, title, text (in the form of the training's `text` column; default: the title), and what else the
                encoder's template names; or the text vector itself in `vector`, a list of F numbers. `vector_NAME`: vectors of
                further sources, as they stand in the file of the training.
            encoder: what made the training's text vectors. Needed if the data got them from a file. It is first tried on
                known items.
            keep: is called once the new catalogue has been tried, and before it is used; if it fails, nothing is added. It keeps
                the change in place of `save`.

        Returns:
            The ids of the added items.

        Raises:
            DataError: an id is blank, repeated or in the catalogue already; an item has no text; the encoder makes other
                vectors; a vector is far too long, or makes scores that are not finite. Nothing is added.
            ConfigError: the model has no semantic slots, or the encoder cannot be loaded.
        """
        with self._changing:
            snapshot = self._pending or self._snapshot
            sources = self._encoders.sources_of_new_items(snapshot.restored.model.chosen_tokens)
            if not snapshot.restored.model.n_sem and not sources:
                raise ConfigError(
                    "this model has collaborative slots only (n_sem 0), so it knows nothing of an item that nobody has bought: "
                    "train with text, or with other vectors of items, to add items."
                )
            table = check_items(items, snapshot.row)
            snapshot.attributes.check_added(table)
            vectors = self._encoders(table, encoder, snapshot.changes.encoder)
            ids: list[str] = table["id"].to_list()
            self._change(with_added(snapshot.changes, table, vectors.text, vectors.encoder, vectors.more), ids, keep)
            if keep is None:
                named = {"encoder": vectors.encoder} if vectors.encoder is not None else {}
                self._unsaved.append({"add": items_of(table.to_dicts())} | named)
            return ids

    def remove_items(self, ids: Collection[str], keep: Callable[[], None] | None = None) -> None:
        """Remove items from the catalogue: they are not recommended any more, and are unknown in histories.

        If an item is only out of stock, use `candidates` instead: then histories may still hold it.

        Args:
            ids: own ids of the items.
            keep: see `add_items`.

        Raises:
            DataError: an id is not in the catalogue, no item would be left, or scores would not be finite. Nothing is removed.
        """
        with self._changing:
            snapshot = self._pending or self._snapshot
            gone = set(ids)
            unknown = sorted(gone - snapshot.row.keys())
            if unknown:
                raise DataError(f"item {unknown[0]!r} is not in the catalogue, so it cannot be removed.")
            if len(gone) == snapshot.catalogue.n_items:
                raise DataError("these are all items of the catalogue: nothing would be left to recommend.")
            self._change(with_removed(snapshot.changes, gone), (), keep)
            if keep is None:
                self._unsaved.append({"remove": sorted(gone)})

    def patch_items(self, patches: Mapping[str, Mapping[str, Any]], keep: Callable[[], None] | None = None) -> None:
        """Change attributes of items, such as price or stock, or their titles. No vector and no score changes.

        Args:
            patches: own id -> attribute, or "title" -> its new value: a text, a number, true, false; None: missing. A new name
                becomes a column of the catalogue.
            keep: see `add_items`.

        Raises:
            DataError: an id is not in the catalogue, a value does not fit its column, or the item's vector is made of what would
                change. Nothing is changed.
        """
        with self._changing:
            snapshot, settings = self._pending or self._snapshot, self._trained.text
            template = json.dumps((snapshot.changes.encoder or settings or {}).get("init_args", {}))
            fixed = set(re.findall(r"\{(\w+)\}", template + json.dumps(self._trained.vectors)))
            fixed |= {made.get("init_args", {}).get("field") for made in self._trained.vectors.values()} - {None}
            fixed |= {vector_column(name) for name in self._trained.catalogue.vectors}
            fitted = {}
            for own, fields in patches.items():
                if own not in snapshot.row:
                    raise DataError(f"item {own!r} is not in the catalogue, so it cannot be changed.")
                fitted[own] = snapshot.attributes.fitting(own, fields, fixed)
            changes = with_patched(snapshot.changes, fitted)
            catalogue = retitled(snapshot.catalogue, changes)
            changed = snapshot._replace(
                changes=changes,
                catalogue=catalogue,
                lower_titles=lower_titles_of(catalogue),
                attributes=Attributes(table_of(self._trained.items, changes), changes.patched),
            )
            if keep is not None:
                keep()
            else:
                self._unsaved.append({"patch": [{"id": own, "fields": fields} for own, fields in fitted.items()]})
            if self._pending is not None:
                self._pending = changed
            else:
                self._snapshot = changed

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Make several changes of the catalogue one: answers see all of them or none, and the model is made ready once.

        Raises:
            DataError: the changed catalogue gives scores that are not finite. Then, as after any other error in the block, nothing
                is changed.
        """
        with self._changing:
            before, unsaved = self._snapshot, len(self._unsaved)
            self._pending, self._pending_new = before, []
            try:
                yield
                made, new = self._pending, self._pending_new
                self._pending = None
                if made.catalogue.ids == before.catalogue.ids and not new:
                    self._snapshot = made
                else:
                    self._change(made.changes, [own for own in new if own in made.row], None)
            except BaseException:
                del self._unsaved[unsaved:]
                raise
            finally:
                self._pending = None

    def save(self, path: str | Path | None = None) -> Path:
        """Write this version of the catalogue to a new folder, which `load` takes in place of the checkpoint.

        Without `path` it becomes the current catalogue of the checkpoint: the changes are written to its journal too, from which
        running servers read them.

        Args:
            path: a folder of its own, which changes nothing for the checkpoint; None: beside the checkpoint, <checkpoint>.items-001
                and so on.

        Returns:
            The folder.

        Raises:
            DataError: the folder exists, or it cannot be written; or the catalogue of the checkpoint has changed since it was
            loaded.
        """
        with self._changing:
            snapshot, trained = self._snapshot, self._trained

            def write(folder: Path, write_journal: Callable[[], Mark] | None) -> Path:
                catalogues = trained.catalogue, snapshot.catalogue
                write_version(folder, trained.path, trained.data, *catalogues, snapshot.changes, write_journal)
                return folder

            if path is not None:
                return write(Path(path), None)
            journal = self.journal or Journal(journal_path(trained.path), writable=False)
            try:
                with journal.locked():
                    folder = write(next_path(trained.path), lambda: self._write_unsaved(journal))
            except JournalWriteError as error:
                raise DataError(f"the version cannot be written ({error}); nothing was changed.") from None
            self.journal, self.lines, self._version, self._unsaved = journal, journal.mark.lines, folder.resolve(), []
            return folder

    def export(self, folder: str | Path, formats: Sequence[Format] = ("onnx",)) -> Exported:
        """Write the model into an empty folder, for other programs to serve; inference/exported.py describes the files.

        Args:
            folder: the folder.
            formats: how the user tower is written: onnx, torch, or both.

        Raises:
            ConfigError: see `write_exported`.
        """
        return write_exported(Path(folder), self._snapshot, formats)

    def _write_unsaved(self, journal: Journal) -> Mark:
        """Write the changes since `load` to the journal; its lock is held.

        Raises:
            DataError: what was loaded is not the current catalogue of the checkpoint.
        """
        newest, _, lines = current(self._trained.path, self._trained.catalogue, journal)
        known = self.lines if self.journal is not None else lines
        if newest != self._version or known != journal.mark.lines:
            raise DataError(
                f"the catalogue of {self._trained.path} has changed since this one was loaded (by add-items or a server): load the "
                "checkpoint again, or name a folder for this version."
            )
        journal.append(self._unsaved)
        return journal.mark

    def _change(self, changes: Changes, new: Sequence[str], keep: Callable[[], None] | None) -> None:
        """Make the snapshot of a changed catalogue, try it, and put it in place; calls that have begun keep the old one.

        Raises:
            DataError: the changed catalogue gives scores that are not finite.
        """
        snapshot = self._snapshot
        catalogue = apply_changes(self._trained.catalogue, changes)
        if self._pending is not None:
            self._pending = self._pending._replace(
                changes=changes, catalogue=catalogue, row={own: i for i, own in enumerate(catalogue.ids)},
                attributes=Attributes(table_of(self._trained.items, changes), changes.patched),
            )  # fmt: skip
            self._pending_new += new
            return
        restored = rebuild(snapshot.restored, self._trained, catalogue, changes.ngrams_of_all)
        items = table_of(self._trained.items, changes)
        changed = make_snapshot(restored, catalogue, changes, items, snapshot.max_history, snapshot.search)
        try:
            try_snapshot(changed, new)
        except ModelError:
            raise DataError("with this change, scores would not be finite numbers; nothing was changed.") from None
        if keep is not None:
            keep()
        self._snapshot = changed

    # ------------------------------------------------------------------------------------------------------- the model
    def __len__(self) -> int:
        """Count the items of the catalogue."""
        return len(self._snapshot.row)

    def __contains__(self, own: object) -> bool:
        """Say whether an item id is in the catalogue."""
        return own in self._snapshot.row

    def search(self, text: str, limit: int = 20, filter: str | None = None) -> list[Item]:
        """Find items whose title contains `text`, or whose id it is; the most frequent in training first.

        Raises:
            ConfigError: the filter is wrong.
        """
        return browse.search(self._snapshot, text, limit, filter)

    def item(self, own: str) -> ItemDetails:
        """All that is known of an item.

        Raises:
            DataError: it is not in the catalogue.
        """
        return browse.details(self._snapshot, own)

    def similar(self, own: str, by: str = "text", k: int = 10, filter: str | None = None) -> list[SimilarItem]:
        """Items that are similar to an item, most similar first.

        Args:
            own: the id of the item.
            by: text, cosine of the text vectors; co_occurrence, how often both stand in one history (of models with item graphs);
                slots, cosine of the item's tokens, what the model reads; cf, cosine of the CF vectors; or the name of a source of
                --data.vectors, cosine of its vectors.
            k: the most items.
            filter: only items with these attributes, see `RecommendOptions`.

        Raises:
            ConfigError: the model knows nothing of this kind, or the filter is wrong.
            DataError: the item is not in the catalogue.
        """
        return browse.similar(self._snapshot, own, by, k, filter)

    def popular(
        self, limit: int = 20, filter: str | None = None, counts: Mapping[str, float] | None = None
    ) -> list[Item]:
        """The items that occur most often, most often first.

        Args:
            limit: the most items.
            filter: only items with these attributes, see `RecommendOptions`.
            counts: own id -> how often it occurred lately, which goes before the counts of the training; None: those alone.

        Raises:
            ConfigError: the filter is wrong.
        """
        return browse.popular(self._snapshot, limit, filter, counts or {})

    def latest(self, limit: int = 20, filter: str | None = None) -> list[Item]:
        """The items that were added last, then those that stand last in the prepared data.

        Raises:
            ConfigError: the filter is wrong.
        """
        return browse.latest(self._snapshot, limit, filter)

    @property
    def betas(self) -> tuple[float, ...]:
        """The values of beta that validation tried; one value if the model has one kind of slot."""
        return self._snapshot.restored.scorer.betas

    @property
    def beta(self) -> float:
        """The weight of the semantic slots that validation chose."""
        return chosen_beta(self._snapshot)

    @property
    def prefix_cache_bytes(self) -> int:
        """What the prefix cache holds of histories, in bytes."""
        return self._snapshot.reader.bytes

    def info(self) -> dict[str, Any]:
        """Describe the model and its catalogue in plain types."""
        snapshot, trained = self._snapshot, self._trained
        model, catalogue = snapshot.restored.model, snapshot.catalogue
        n_warm = int(catalogue.warm.sum())
        backbone = trained.arguments["backbone"]
        size = backbone.get("init_args", {})
        return {
            "name": catalogue.name,
            "n_items": catalogue.n_items,
            "warm": n_warm,
            "cold": catalogue.n_items - n_warm,
            "slots": {"cf": model.n_cf, "sem": model.n_sem}
            | {name: one.slots for name, one in model.chosen_tokens.items()},
            "beta": round(chosen_beta(snapshot), 6),
            "max_history": trained.max_history,
            "fingerprint": catalogue.fingerprint,
            "index": snapshot.search.index,
            "index_recall@10": None if self.index_recall is None else round(self.index_recall, 4),
            "attributes": snapshot.attributes.columns,
            "added": 0 if snapshot.changes.added is None else len(snapshot.changes.added),
            "removed": len(snapshot.changes.removed),
            "model": {
                "label": "SETRec",
                "backbone": backbone["class_path"].rpartition(".")[2],
                "size": size.get("pretrained") or size.get("shape"),
                "weights": sum(p.numel() for p in model.parameters()),
            },
            "path": str(trained.path),
            "results": summary(trained.results),
        }
