"""Versions of a catalogue: items added to, and removed from, the one that a model was trained on.

    <checkpoint>.items-001/version.json    the model it belongs to, the removed ids, changed attributes, fingerprints, hashes,
                                           the lines of the journal that it includes
                           added.parquet   the added items: id, title, text, ..., vector (F), and vector_NAME of every source of
                                           --data.vectors; absent without any

A version is a folder beside the checkpoint: a snapshot of its journal (journal.py), with vectors. It holds only the differences, is
written whole or not at all, and is never overwritten. The catalogue of a checkpoint is its newest version and the lines of the
journal that come after it, see `current`; `Recommender.load` of a version gives that version.
"""

import dataclasses
import glob
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from setrec.class_names import current_names
from setrec.data.catalogue import Catalogue, Vectors
from setrec.errors import ConfigError, DataError
from setrec.files.hashes import file_hash, read_sealed, sealed
from setrec.files.whole import whole_folder
from setrec.inference.journal import Journal, Mark
from setrec.inference.new_items import VECTOR, vector_column

VERSION, ADDED = "version.json", "added.parquet"
_FORMAT = 1
_WITH_PATCHES = 2  # with "patched", which versions of this project that know format 1 only would overlook
log = logging.getLogger("uvicorn.error")


class Changes(NamedTuple):
    """The differences between a version and the catalogue of the training."""

    removed: frozenset[str]  # own ids of removed items of the training
    added: pl.DataFrame | None  # id, title, text, ..., vector Array(Float32, F), in the order they were added
    encoder: dict[str, Any] | None  # {"class_path", "init_args"}; None: the encoder of the training
    ngrams_of_all: bool = (
        False  # n-grams count as in the texts of all items here, as up to 0.2.0; False: of the training
    )
    patched: dict[str, dict[str, Any]] = {}  # noqa: RUF012  (never changed) own id -> attributes changed since, and the title


NO_CHANGES = Changes(frozenset(), None, None)


def with_added(
    changes: Changes,
    table: pl.DataFrame,
    vectors: np.ndarray | None,
    encoder: dict[str, Any] | None,
    more: Mapping[str, tuple[np.ndarray, np.ndarray]] = {},
) -> Changes:
    """Add items.

    Args:
        changes: those before.
        table: the new items.
        vectors: their text vectors, (items, F) float32; None: a catalogue without text.
        encoder: settings of the text encoder.
        more: of further sources, vectors (items, W) float32 and present (items,) bool, by name.
    """
    columns = [] if vectors is None else [pl.Series(VECTOR, vectors, dtype=pl.Array(pl.Float32, vectors.shape[1]))]
    for name, (found, present) in more.items():
        rows = [row if there else None for row, there in zip(found.tolist(), present.tolist(), strict=True)]
        columns.append(pl.Series(vector_column(name), rows, dtype=pl.Array(pl.Float32, found.shape[1])))
    table = table.with_columns(columns)
    added = table if changes.added is None else pl.concat([changes.added, table], how="diagonal_relaxed")
    return changes._replace(added=added, encoder=encoder or changes.encoder)


def with_removed(changes: Changes, ids: set[str]) -> Changes:
    """Remove items: added ones are dropped, those of the training are marked as removed."""
    added, dropped = changes.added, set()
    if added is not None:
        dropped = ids & set(added["id"])
        added = added.filter(~pl.col("id").is_in(sorted(dropped)))
    patched = {own: fields for own, fields in changes.patched.items() if own not in ids}
    return changes._replace(
        added=added if added is not None and len(added) else None,
        removed=changes.removed | (ids - dropped),
        patched=patched,
    )


def with_patched(changes: Changes, patches: Mapping[str, Mapping[str, Any]]) -> Changes:
    """Change attributes, or titles, of items: own id -> name -> value."""
    patched = {own: {**changes.patched.get(own, {}), **fields} for own, fields in patches.items()}
    return changes._replace(patched=changes.patched | patched)


def apply_changes(base: Catalogue, changes: Changes) -> Catalogue:
    """Make the catalogue of a version: the kept items of the base in their order, then the added items.

    An added item was not seen in training: it is cold (count 0) and has no CF vector (a zero row, not present).
    """
    if not changes.removed and changes.added is None:
        return retitled(base, changes)
    keep = torch.tensor([own not in changes.removed for own in base.ids], dtype=torch.bool)  # (N,)
    rows = keep.nonzero().flatten()  # (kept,)
    added = changes.added
    n_added = 0 if added is None else len(added)
    text = base.text[rows] if base.text is not None else None  # (kept, F)
    if added is not None and text is not None:
        text = torch.cat([text, torch.from_numpy(np.ascontiguousarray(vectors_of(added)))])  # (N', F)
    ids = [base.ids[i] for i in rows.tolist()] + (added["id"].to_list() if added is not None else [])
    titles = [base.titles[i] for i in rows.tolist()] + (added["title"].to_list() if added is not None else [])
    texts = None
    if base.texts is not None:
        texts = [base.texts[i] for i in rows.tolist()] + (added["text"].to_list() if added is not None else [])
    catalogue = dataclasses.replace(
        base,
        ids=ids,
        titles=titles,
        texts=texts,
        text=text,
        cf=tuple(torch.cat([table[rows], table.new_zeros(n_added, table.shape[1])]) for table in base.cf),  # (N', E)
        present=tuple(torch.cat([there[rows], there.new_zeros(n_added)]) for there in base.present),  # (N',)
        count=torch.cat([base.count[rows], base.count.new_zeros(n_added)]),  # (N',)
        vectors={name: _extended(name, one, rows, added) for name, one in base.vectors.items()},
        fingerprint=_fingerprint(base.fingerprint, changes),
    )
    return retitled(catalogue, changes)


def retitled(catalogue: Catalogue, changes: Changes) -> Catalogue:
    """The same catalogue with the titles that were changed. Vectors stay, and so does the fingerprint."""
    titles = {own: fields["title"] for own, fields in changes.patched.items() if "title" in fields}
    if not titles:
        return catalogue
    pairs = zip(catalogue.ids, catalogue.titles, strict=True)
    return dataclasses.replace(catalogue, titles=[titles.get(own, title) for own, title in pairs])


def vectors_of(added: pl.DataFrame) -> np.ndarray:
    """The vectors of added items, (items, F) float32."""
    return np.stack([np.asarray(vector, np.float32) for vector in added[VECTOR].to_list()])


def source_vectors_of(added: pl.DataFrame, name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of added items in a further source, (items, W) float32, zeros where there is none; present, (items,) bool."""
    vectors, present = np.zeros((len(added), width), np.float32), np.zeros(len(added), bool)
    if vector_column(name) in added.columns:
        for row, vector in enumerate(added[vector_column(name)].to_list()):
            if vector is not None:
                vectors[row], present[row] = vector, True
    return vectors, present


def without_vectors(added: pl.DataFrame) -> pl.DataFrame:
    """The table of added items without the columns of their vectors."""
    arrays = [name for name, dtype in added.schema.items() if dtype.is_nested()]
    return added.drop([name for name in arrays if name == VECTOR or name.startswith(vector_column(""))])


def _extended(name: str, one: Vectors, rows: torch.Tensor, added: pl.DataFrame | None) -> Vectors:
    """The vectors of a further source in a version. rows: (kept,) int64, of the base."""
    table, present = one.table[rows], one.present[rows]  # (kept, W), (kept,)
    if added is None:
        return Vectors(table, present)
    vectors, there = source_vectors_of(added, name, table.shape[1])  # (items, W), (items,)
    return Vectors(
        torch.cat([table, torch.from_numpy(vectors).to(table.dtype)]), torch.cat([present, torch.from_numpy(there)])
    )  # (N', W), (N',)


def table_of(items: pl.DataFrame, changes: Changes) -> pl.DataFrame:
    """The table of a version's items, in the order of `apply_changes`, without vectors and as it was before patches."""
    table = items.filter(~pl.col("id").is_in(sorted(changes.removed))) if changes.removed else items
    if changes.added is not None:
        count = pl.lit(0, pl.Int64).alias("count"), pl.lit(False).alias("warm")
        table = pl.concat([table, without_vectors(changes.added).with_columns(*count)], how="diagonal_relaxed")
    return table


def _fingerprint(base: str, changes: Changes) -> str:
    digest = hashlib.sha256(json.dumps([base, sorted(changes.removed)]).encode())
    if changes.added is not None:
        digest.update(json.dumps(changes.added.select("id", "title", "text").rows()).encode("utf8", "surrogatepass"))
        for name in sorted(set(changes.added.columns) - set(without_vectors(changes.added).columns)):
            if name == VECTOR:
                digest.update(vectors_of(changes.added).tobytes())
            else:  # an item without a vector is null
                digest.update(json.dumps([name, changes.added[name].to_list()]).encode())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------- on the disk
def stem_of(path: Path) -> Path:
    """The path that version names begin with: of a checkpoint without .ckpt, of a published folder, of a version's model."""
    path = Path(os.path.realpath(path))  # a link, such as `update` keeps, stands for what it leads to
    if (path / VERSION).is_file():
        return path.with_name(re.sub(r"\.items-\d+$", "", path.name))
    return path.with_suffix("") if path.suffix == ".ckpt" else path


def list_versions(path: str | Path) -> list[Path]:
    """List the versions beside a checkpoint, a published folder or another version, oldest first."""
    stem = stem_of(Path(path))
    numbered = {}
    for folder in stem.parent.glob(f"{glob.escape(stem.name)}.items-*"):
        match = re.fullmatch(r"\.items-(\d+)", folder.name.removeprefix(stem.name))
        if match and (folder / VERSION).is_file():
            numbered[int(match[1])] = folder
    return [numbered[number] for number in sorted(numbered)]


def next_path(path: str | Path) -> Path:
    """The folder of the next version beside a checkpoint."""
    stem, there = stem_of(Path(path)), list_versions(path)
    number = int(there[-1].name.rpartition("-")[2]) + 1 if there else 1
    return stem.with_name(f"{stem.name}.items-{number:03d}")


def write_version(
    folder: Path,
    model: Path,
    data: Path | None,
    base: Catalogue,
    catalogue: Catalogue,
    changes: Changes,
    write_journal: Callable[[], Mark] | None = None,
) -> None:
    """Write a version, whole or not at all.

    Args:
        folder: the folder to write; it must not exist.
        model: the checkpoint or the published folder.
        data: the folder of the prepared data; None for a published folder.
        base: the catalogue of the training.
        catalogue: the catalogue of the version.
        changes: the differences between the two.
        write_journal: writes the changes to the journal, once all else is on the disk, and returns the place in it that the version
            stands for; None: the version stands for none.

    Raises:
        DataError: the folder exists, or it cannot be written.
    """
    about = {
        "format": _WITH_PATCHES if changes.patched else _FORMAT,
        "model": _relative(model, folder),
        "data": _relative(data, folder) if data is not None else None,
        "base": base.fingerprint,
        "fingerprint": catalogue.fingerprint,
        "items": catalogue.n_items,
        "added": 0 if changes.added is None else len(changes.added),
        "removed": sorted(changes.removed),
        "encoder": changes.encoder,
        "ngrams_of_all": changes.ngrams_of_all,
        **({"patched": changes.patched} if changes.patched else {}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        with whole_folder(folder) as hidden:
            if changes.added is not None:
                changes.added.write_parquet(hidden / ADDED)
                about["added_sha256"] = file_hash(hidden / ADDED)
            (hidden / VERSION).write_text(json.dumps(about))  # a full disk shows before the journal is written
            about["journal"] = write_journal()._asdict() if write_journal is not None else None
            (hidden / VERSION).write_text(json.dumps(sealed(about), indent=2, ensure_ascii=False) + "\n")
    except FileExistsError:
        raise DataError(f"{folder} exists already, and versions are never overwritten: name another folder.") from None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"the version {folder} cannot be written ({error}); nothing was changed.") from None


def _relative(path: Path, folder: Path) -> str:
    """The path relative to the version's folder, so that both can be moved together."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))


class Version(NamedTuple):
    """A version as it was read from the disk."""

    model: Path
    data: Path | None
    base: str  # fingerprint of the catalogue of the training
    fingerprint: str
    changes: Changes
    mark: Mark | None  # the lines of the journal that it includes


def read_version(folder: Path) -> Version:
    """Read what `write_version` wrote.

    Raises:
        ConfigError: the version is damaged, or has another format.
    """
    try:
        about = read_sealed(folder / VERSION)
        if about["format"] not in (_FORMAT, _WITH_PATCHES):
            raise ValueError(f"format {about['format']}")
        if "added_sha256" in about and file_hash(folder / ADDED) != about["added_sha256"]:
            raise ValueError(f"{ADDED} is not the file that was written")
        added = pl.read_parquet(folder / ADDED) if about["added"] else None
        if (0 if added is None else len(added)) != about["added"]:
            raise ValueError(f"{ADDED} holds {0 if added is None else len(added)} items, not {about['added']}")
        of_all = about.get("ngrams_of_all", True)  # versions up to 0.2.0 do not say so
        patched = about.get("patched", {})
        changes = Changes(frozenset(about["removed"]), added, current_names(about["encoder"]), of_all, patched)
        model, data = folder / about["model"], about["data"]
        paths = Path(os.path.normpath(model)), Path(os.path.normpath(folder / data)) if data is not None else None
        mark = Mark(**about["journal"]) if about.get("journal") is not None else None
        return Version(*paths, about["base"], about["fingerprint"], changes, mark)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{folder} cannot be read as a version of a catalogue ({error}).") from None


def catalogue_of(base: Catalogue, version: Version, folder: Path) -> Catalogue:
    """Make the catalogue of a version.

    Args:
        base: the catalogue of the training.
        version: what `read_version` read.
        folder: the version's folder, for error messages.

    Raises:
        ConfigError: the version was made for another catalogue, or its items are not those that were written.
    """
    if base.fingerprint != version.base:
        raise ConfigError(
            f"{folder} was made for another catalogue ({version.base[:12]}) than {base.fingerprint[:12]}."
        )
    catalogue = apply_changes(base, version.changes)
    if catalogue.fingerprint != version.fingerprint:
        raise ConfigError(f"{folder} is damaged: its items are not those that were written; use the version before it.")
    return catalogue


def current(path: Path, base: Catalogue, journal: Journal) -> tuple[Path | None, Version | None, int]:
    """Find where the current catalogue of a checkpoint begins: its newest version, and how many lines of the journal that includes.

    A version of another catalogue, as it is left when the checkpoint was trained anew, is passed over. Its items are in the
    journal, which is then applied from its first line; if they are not, a warning says so.

    Args:
        path: the checkpoint or the published folder.
        base: the catalogue of its training.
        journal: its journal.

    Returns:
        The folder of the version and its content, None without one; the number of lines. Changes of lines that are in the
        version all the same, as it belongs to another journal or to none, must be passed over.

    Raises:
        ConfigError: the newest version is damaged.
    """
    for folder in reversed(list_versions(path)):
        version = read_version(folder)
        if version.base == base.fingerprint:
            return folder, version, version.mark.lines if version.mark is not None and journal.has(version.mark) else 0
        if not journal.has(version.mark):
            n_added = 0 if version.changes.added is None else len(version.changes.added)
            log.warning(
                "%s was made for another catalogue: its %d added and %d removed items are not applied.",
                folder, n_added, len(version.changes.removed),
            )  # fmt: skip
    return None, None, 0
