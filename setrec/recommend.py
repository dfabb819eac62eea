"""The public API of a trained model: histories in, items out, in the users' own ids.

    from setrec import Recommender
    r = Recommender.load("lightning_logs/version_0/checkpoints/epoch-03.ckpt")
    r.recommend([["B0002F7KUG", "B003EIK136"]], k=5)

Any number of threads may ask at once. What they ask is an immutable state; a change of the catalogue makes another one and
puts it in its place.
"""

import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
import torch
from safetensors.numpy import load_file

from setrec.errors import ConfigError, DataError
from setrec.hparams import to_plain
from setrec.inference.answers import (
    RankedItem,
    Recommendation,
    Snapshot,
    Wanted,
    allowed_items,
    batches,
    chosen_beta,
    make_snapshot,
    ranked,
    read_histories,
)
from setrec.inference.explain import Why
from setrec.inference.hub import HubModel, summary
from setrec.inference.new_items import VECTOR, ItemEncoder, described, given_vectors
from setrec.inference.published import is_published, read_published
from setrec.inference.restore import Trained, build, instance_of, read_trained, rebuild
from setrec.inference.versions import (
    NONE,
    VERSION,
    Changes,
    apply,
    next_path,
    read_version,
    versioned,
    with_added,
    without,
    write_version,
)
from setrec.text import TextVectors

__all__ = ["Item", "RankedItem", "Recommendation", "Recommender", "Why"]


class Item(NamedTuple):
    """An item of the catalogue."""

    id: str
    title: str
    warm: bool


class Recommender(HubModel):
    """A trained SETRec with its catalogue. Make one with `load`, or `from_pretrained` for one on the Hugging Face hub.

    `save_pretrained(folder)` and `push_to_hub(name)` hand it on; see hub.py.
    """

    def __init__(self, trained: Trained, snapshot: Snapshot) -> None:
        self._trained = trained
        self._snapshot = snapshot
        self._changing = threading.Lock()  # one change of the catalogue at a time
        self._encoder: ItemEncoder | None = None  # loaded when it is first needed

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu", data: str | Path | None = None) -> "Recommender":
        """A model from the disk.

        Args:
            path: a checkpoint of fit, a version of its catalogue that `save` wrote, or a published folder.
            device: where it computes: cpu, cuda, cuda:1.
            data: the folder of prepared data, where it is not where the checkpoint says.

        Raises:
            ConfigError: no such file, no SETRec checkpoint, or one of other data.
            DataError: its prepared data is not there.
        """
        path = Path(path)
        if not path.exists():
            raise ConfigError(f"{path}: no such file; give the path that fit printed at its end.")
        version = read_version(path) if (path / VERSION).is_file() else None
        model = path if version is None else version.model
        folder = Path(data) if data is not None else version.data if version is not None else None
        trained = read_published(model) if is_published(model) else read_trained(model, folder)
        catalogue = trained.catalogue if version is None else versioned(trained.catalogue, version, path)
        restored = build(trained, catalogue, torch.device(device))
        changes = NONE if version is None else version.changes
        return cls(trained, make_snapshot(restored, catalogue, changes, trained.max_history))

    # ---------------------------------------------------------------------------------------------------- recommending
    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Collection[str] | None = None,
        explain: bool = False,
        beta: float | None = None,
        unknown: Literal["skip", "refuse"] = "skip",
    ) -> list[Recommendation]:
        """The best items for each history.

        Args:
            histories: each user's items, oldest first, in own ids; an empty one gets what the model recommends anybody.
                Only the last max_history items are read, but all of them count as seen.
            k: items for each history.
            exclude_seen: leave the history's own items out.
            candidates: only these items, in own ids (in stock, in a region); None: the whole catalogue.
            explain: say why; costs about as much again.
            beta: weight of the semantic slots, 0 to 1; None: as chosen on validation.
            unknown: an id that the catalogue doesn't have is skipped, and reported in the answer; or refused.

        Returns:
            One Recommendation for each history, in their order.

        Raises:
            ConfigError: k or beta out of range.
            DataError: unknown ids under `refuse`; a history that is no list of texts.
        """
        found: dict[int, Recommendation] = {}
        for places, answers in self.stream(histories, k, exclude_seen, candidates, explain, beta, unknown):
            found |= zip(places, answers, strict=True)
        return [found[place] for place in range(len(found))]

    def stream(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Collection[str] | None = None,
        explain: bool = False,
        beta: float | None = None,
        unknown: Literal["skip", "refuse"] = "skip",
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[list[int], list[Recommendation]]]:
        """As `recommend`, block by block as they are done: the places of some histories, and their answers.

        Args:
            share: (r, n) gives every n-th block from the r-th on, for the r-th of n processes; together they give all.
        """
        snapshot = self._snapshot  # the same one to the end, whatever else happens
        if k < 1:
            raise ConfigError(f"k is {k}; it must be 1 or more.")
        rows, strange = read_histories(histories, snapshot.row, unknown)
        allowed = allowed_items(snapshot, candidates, unknown)
        wanted = Wanted(k, exclude_seen, allowed, chosen_beta(snapshot, beta), explain)
        for places, batch in batches(snapshot, rows, share):
            lists = ranked(snapshot, batch, wanted)
            yield places, [Recommendation(items, strange[at]) for at, items in zip(places, lists, strict=True)]

    # --------------------------------------------------------------------------------------------------- the catalogue
    def add_items(self, items: pl.DataFrame | list[dict[str, Any]], encoder: TextVectors | None = None) -> list[str]:
        """Put new items into the catalogue; they can be recommended, and stand in histories, at once.

        Each gets semantic slots from its text, encoded as the texts of the training were, and no CF vector: what the model
        makes of a missing one is a zero vector under either choice of `missing_cf`.

        Args:
            items: id (own), title, text (default: the title; in the form of the training's `text` column), and whatever
                else the encoder's template names; or the ready text vector in `vector`, a list of F numbers.
            encoder: what made the training's vectors, where the data knows them from a file only. Tried on known items.

        Returns:
            The ids that were added.

        Raises:
            DataError: an id that is blank, there twice or known; no words; an encoder of other vectors. Nothing is added.
            ConfigError: the model has no semantic slots; the encoder cannot be loaded.
        """
        with self._changing:
            snapshot = self._snapshot
            text = self._trained.catalogue.text
            if not snapshot.restored.model.n_sem or text is None:
                raise ConfigError(
                    "this model has collaborative slots only (n_sem 0), so it knows nothing of an item that nobody has bought: "
                    "train with text to add items."
                )
            table = described(items, snapshot.row)
            about = None
            if VECTOR in table.columns:
                vectors = given_vectors(table, text.shape[1])  # (items, F)
            else:
                chosen = self._item_encoder(snapshot, encoder)
                vectors = chosen(table)  # (items, F)
                self._encoder = chosen  # it works: kept for the next items
                about = to_plain(encoder) if encoder is not None else None
            self._change(with_added(snapshot.changes, table, vectors, about))
            return table["id"].to_list()

    def remove_items(self, ids: Collection[str]) -> None:
        """Take items out of the catalogue: not recommended any more, unknown in histories.

        For what is only out of stock, `candidates` is the better way: the item stays known.

        Raises:
            DataError: an id is unknown, or nothing would be left.
        """
        with self._changing:
            snapshot = self._snapshot
            gone = set(ids)
            unknown = sorted(gone - snapshot.row.keys())
            if unknown:
                raise DataError(f"item {unknown[0]!r} is not in the catalogue, so it cannot be removed.")
            if len(gone) == snapshot.catalogue.n_items:
                raise DataError("these are all items of the catalogue: nothing would be left to recommend.")
            self._change(without(snapshot.changes, gone))

    def save(self, path: str | Path | None = None) -> Path:
        """Write this version of the catalogue; `load` takes it in place of the checkpoint. Nothing is ever overwritten.

        Args:
            path: a folder to make; None: beside the checkpoint, <checkpoint>.items-001 and so on.

        Raises:
            DataError: the folder exists, or the disk refuses.
        """
        with self._changing:
            snapshot, trained = self._snapshot, self._trained
            folder = Path(path) if path is not None else next_path(trained.path)
            write_version(folder, trained.path, trained.data, trained.catalogue, snapshot.catalogue, snapshot.changes)
            return folder

    def _change(self, changes: Changes) -> None:
        """Make the state of a changed catalogue and put it in place; who is being answered keeps the old one."""
        snapshot = self._snapshot
        catalogue = apply(self._trained.catalogue, changes)
        restored = rebuild(snapshot.restored, self._trained, catalogue)
        self._snapshot = make_snapshot(restored, catalogue, changes, snapshot.max_history)

    def _item_encoder(self, snapshot: Snapshot, named: TextVectors | None) -> ItemEncoder:
        """The encoder that was named now, or for this version before, or in training."""
        trained = self._trained
        if self._encoder is not None and (named is None or to_plain(named) == to_plain(self._encoder.text)):
            return self._encoder
        arguments = snapshot.changes.encoder or trained.text
        assert trained.catalogue.text is not None
        text = named if named is not None else instance_of(arguments, TextVectors) if arguments is not None else None
        if text is None:
            raise DataError("the data names no text encoder: give each item's vector in a column `vector`.")
        learned = load_file(trained.encoder) if trained.encoder is not None else {}
        return ItemEncoder(text, learned, trained.catalogue.text, trained.items)

    # ------------------------------------------------------------------------------------------------------- the model
    def __contains__(self, own: object) -> bool:
        """Whether an own id is in the catalogue."""
        return own in self._snapshot.row

    def search(self, text: str, limit: int = 20) -> list[Item]:
        """Items whose title holds `text`, or whose id it is; the most bought first."""
        snapshot, wanted = self._snapshot, text.casefold().strip()
        catalogue, folded = snapshot.catalogue, snapshot.folded
        places = [i for i in snapshot.by_fame.tolist() if wanted in folded[i]]
        own = snapshot.row.get(text.strip())
        if own is not None:
            places = [own, *(i for i in places if i != own)]
        return [
            Item(catalogue.ids[i], catalogue.titles[i], bool(catalogue.count[i] > 0)) for i in places[: max(limit, 0)]
        ]

    @property
    def betas(self) -> tuple[float, ...]:
        """The grid that validation chose from; one value where there is nothing to weigh."""
        return self._snapshot.restored.scorer.betas

    @property
    def beta(self) -> float:
        """What it chose."""
        return chosen_beta(self._snapshot, None)

    def info(self) -> dict[str, Any]:
        """What is being served, in plain types."""
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
            "slots": {"cf": model.n_cf, "sem": model.n_sem},
            "beta": round(chosen_beta(snapshot, None), 6),
            "max_history": trained.max_history,
            "fingerprint": catalogue.fingerprint,
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
