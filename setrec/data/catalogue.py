"""The prepared data: the items that can be recommended, and the users' histories.

Vectors and histories are memory-mapped: the system reads what is asked for, and drops it again when memory is short.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from setrec.data.identity import Identity, identify, known_identity
from setrec.errors import DataError
from setrec.files.hashes import ids_hash, stamp
from setrec.files.ragged import Ragged, Splits
from setrec.schemas import EvalSplit

ITEMS, USERS, MANIFEST = "items.parquet", "users.parquet", "manifest.json"
TEXT, CF, ENCODER = "text.safetensors", "cf.safetensors", "encoder.safetensors"
VECTORS = "vectors.safetensors"  # of the sources of --data.vectors
HISTORIES = "histories.safetensors"
KINDS = "kinds"  # in its metadata: the table of kinds


class Vectors(NamedTuple):
    """The vectors of a source of --data.vectors. An item without one has a zero row."""

    table: Tensor  # (N, W) float32 or float16
    present: Tensor  # (N,) bool: the items that have one


@dataclass(frozen=True)
class Catalogue:
    """Every item that can be recommended. Row i of everything here is item id i.

    Attributes:
        name: the data set's name.
        ids: the items' own ids (such as ASINs), N of them.
        titles: N titles, "" where none is known.
        text: (N, F) float32 or float16 text vectors; None: a data set without text.
        cf: for each CF slot, (N, E) float32 or float16 CF vectors.
        present: for each CF slot, (N,) bool: the rows that the CF model learned.
        count: (N,) int64, occurrences in the training split.
        fingerprint: sha256 of the ids, the counts and the vectors. A checkpoint accepts no other.
        texts: N texts, "" where none is known; None: they were not kept.
        identity: how checkpoints know the catalogue again; None: it did not come from prepared data.
        grown_from: fingerprints of the catalogues that `update` made this one from: weights for them are a start for this one.
        vectors: of the sources of --data.vectors, by name, in their order.
    """

    name: str
    ids: list[str]
    titles: list[str]
    text: Tensor | None
    cf: tuple[Tensor, ...]
    present: tuple[Tensor, ...]
    count: Tensor
    fingerprint: str
    texts: list[str] | None = None
    identity: Identity | None = None
    grown_from: tuple[str, ...] = ()
    vectors: Mapping[str, Vectors] = field(default_factory=dict)

    @property
    def n_items(self) -> int:
        """The number of items, N."""
        return len(self.ids)

    def plain_identity(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the catalogue that it was trained on."""
        assert self.identity is not None, "training loads its catalogue"
        return self.identity.plain(self.name)

    def check(self, trained_on: Mapping[str, Any], what: str) -> None:
        """Check that a checkpoint was trained on this catalogue.

        Args:
            trained_on: what it holds of its catalogue.
            what: what the message calls it.

        Raises:
            ConfigError: it was trained on another one.
        """
        assert self.identity is not None, "what is trained or restored loads its catalogue"
        self.identity.check(
            trained_on,
            self.name,
            what,
            "give it its own data (without --data flags it is read from the checkpoint), or train again",
        )

    @property
    def warm(self) -> Tensor:
        """(N,) bool: the items that occur in training. The others are cold."""
        return self.count > 0

    def group_sizes(self) -> dict[str, int]:
        """The number of items in each group: {"all": N, "warm": ..., "cold": ...}."""
        n_warm = int(self.warm.sum())
        return {"all": self.n_items, "warm": n_warm, "cold": self.n_items - n_warm}

    @classmethod
    def load(cls, folder: str | Path) -> "Catalogue":
        """Read the items of a prepared data set.

        Raises:
            DataError: the folder is not prepared, a file is damaged, or a matrix was made for other items.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise DataError(f"{folder} holds no prepared data (no {MANIFEST}); prepare it with --data.raw DIR first.")
        try:
            items = pl.read_parquet(folder / ITEMS)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise _damaged(folder / ITEMS, error) from None
        ids = items["id"].to_list()
        count = torch.from_numpy(items["count"].to_numpy().astype(np.int64))  # (N,)
        text = _load_tensors(folder / TEXT, ids).get("vectors")  # (N, F)
        tables = _load_tensors(folder / CF, ids)
        slots = range(len(tables) // 2)
        cf = [(tables[f"vectors_{c}"].numpy(), tables[f"present_{c}"].numpy()) for c in slots]
        found = _load_tensors(folder / VECTORS, ids)
        vectors = {
            name: Vectors(found[f"{name}.vectors"], found[f"{name}.present"]) for name in manifest.get("vectors", {})
        }
        stamps = manifest.get("file_stamps", {})
        files = [folder / name for name in (ITEMS, TEXT, CF, VECTORS)]
        same = all(stamps.get(path.name) == stamp(path) for path in files if path.exists())
        identity = known_identity(manifest) if same else None  # else every vector is read
        plain = {name: (one.table.numpy(), one.present.numpy()) for name, one in vectors.items()}
        identity = identity or identify(
            ids, count.numpy(), manifest, text.numpy() if text is not None else None, cf, plain
        )
        return cls(
            name=manifest["name"],
            ids=ids,
            titles=items["title"].to_list(),
            text=text,
            cf=tuple(tables[f"vectors_{c}"] for c in slots),  # each (N, E)
            present=tuple(tables[f"present_{c}"] for c in slots),  # each (N,)
            count=count,
            fingerprint=identity.fingerprint,
            texts=items["text"].to_list(),
            identity=identity,
            grown_from=tuple(manifest.get("grown_from", ())),
            vectors=vectors,
        )


@dataclass(frozen=True)
class Histories:
    """The items of each user, in order. Row u of everything here is user u.

    Attributes:
        ids: the users' own ids.
        train: item ids of the training split, oldest first.
        validation: item ids of the validation split, oldest first.
        test: item ids of the test split, oldest first.
        times: the time of every event, int64 microseconds since 1970, UTC; `UNKNOWN` where it is not known. None: none is.
        kinds: the kind of every event, uint8, its place in `kind_names`; None: the raw data has no kinds.
        kind_names: view, cart, buy and so on; "" for events without a kind.
        since: (users,) int64, of data that `update` made: the place in `train` of each user's first new event, or its length.
        wanted: bool, the events that are to be predicted, see `Kinds`; None: all.
        worth: float32, how many times every event counts, see `Kinds`; None: once.
    """

    ids: list[str]
    train: Ragged
    validation: Ragged
    test: Ragged
    times: Splits | None = None
    kinds: Splits | None = None
    kind_names: tuple[str, ...] = ()
    since: np.ndarray | None = None
    wanted: Splits | None = None
    worth: Splits | None = None

    def targets(self, split: str) -> Ragged:
        """The items of a split that are to be predicted, oldest first."""
        rows: Ragged = getattr(self, split)
        return rows if self.wanted is None else rows.where(getattr(self.wanted, split).items)

    def past(self, split: EvalSplit) -> Ragged:
        """The items before a split: training for validation; training and validation for test."""
        return self.train if split == "validation" else self.train.joined(self.validation)

    def beside(self, name: Literal["wanted", "worth"], split: EvalSplit) -> Ragged | None:
        """What stands beside the items before a split, see `past`; None: nothing does."""
        of: Splits | None = getattr(self, name)
        return None if of is None else of.train if split == "validation" else of.train.joined(of.validation)

    def with_validation_of(self, keep: np.ndarray) -> "Histories":
        """The same, where only some users have a validation split. keep: (users,) bool."""
        beside = {name: getattr(self, name) for name in ("times", "kinds", "wanted", "worth")}
        changed = {
            name: splits._replace(validation=splits.validation.only(keep))
            for name, splits in beside.items()
            if splits is not None
        }
        return replace(self, validation=self.validation.only(keep), **changed)

    @classmethod
    def load(cls, folder: str | Path) -> "Histories":
        """Read the users of a prepared data set.

        Raises:
            DataError: a file is missing or damaged.
        """
        flat = Path(folder) / HISTORIES
        mapped = flat.exists()  # version 0.2.0 had no such file
        try:
            users = pl.read_parquet(Path(folder) / USERS, columns=["id"] if mapped else None)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise _damaged(Path(folder) / USERS, error) from None
        ids = users["id"].to_list()
        if not mapped:
            return cls(ids, *Splits(*(Ragged.from_series(users[split]) for split in Splits._fields)))
        tensors, about = _load_file(flat, ids, USERS)

        def rows(what: str) -> Splits | None:
            if f"train_{what}" not in tensors:
                return None
            parts = ((tensors[f"{split}_offsets"], tensors[f"{split}_{what}"]) for split in Splits._fields)
            return Splits(*(Ragged(offsets.numpy(), flat.numpy()) for offsets, flat in parts))

        items = rows("items")
        if items is None:
            raise _damaged(flat, KeyError("train_items"))
        names, since = tuple(json.loads(about.get(KINDS, "[]"))), tensors.get("train_since")
        return cls(ids, *items, rows("times"), rows("kinds"), names, None if since is None else since.numpy())


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a prepared folder; None: there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _load_tensors(path: Path, ids: list[str]) -> dict[str, Tensor]:
    """Map all tensors of a file that was made for the items `ids`; {}: there is no file."""
    return _load_file(path, ids, ITEMS)[0] if path.exists() else {}


def _load_file(path: Path, ids: list[str], beside: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map all tensors of a file that was made for `ids`, those of the file `beside` it. Returns its metadata too."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("ids_sha256") != ids_hash(ids):
                rows = "items" if beside == ITEMS else "users"
                raise DataError(
                    f"{path} was made for other {rows} than {beside} beside it; delete the folder, prepare again."
                )
            return {key: file.get_tensor(key) for key in file.keys()}, about  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({error}); delete the folder and prepare it again with --data.raw DIR.")
