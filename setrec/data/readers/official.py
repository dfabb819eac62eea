"""The authors' release (github.com/Linxyhaha/SETRec): dicts of users, sets of items, a pickled SASRec matrix."""

import json
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from setrec.data.readers.base import Reader, SplitLog
from setrec.data.readers.download import Source
from setrec.errors import DataError
from setrec.files.pickles import load_object_npy
from setrec.files.ragged import Ragged
from setrec.files.vectorfile import count_rows

_COMMIT = "5175629145fc6523e66a932d7498554cb3896465"  # of the release's repository: what is fetched never changes
_PUBLIC = f"https://raw.githubusercontent.com/Linxyhaha/SETRec/{_COMMIT}/data"
_PUBLISHED = ("toys", "beauty", "sports", "steam")


class OfficialRelease(Reader):
    """Reads the official SETRec release, with the splits and the item ids that the authors made.

    The sets and dicts of warm and cold items follow from the training dict (cold = absent from it). They may be missing
    (Sports, Beauty). If they are there, they must agree with it.

    Args:
        training: file of the training dict, {user: [item, ...]} pickled into a .npy.
        validation: file of the validation dict.
        testing: file of the test dict.
        testing_warm: file of the test dict's warm items; optional.
        testing_cold: file of the test dict's cold items; optional.
        warm: file of the set of warm items; optional.
        cold: file of the set of cold items; optional.
        items: one JSON line per item in id order: item_id, asin, title, keywords; optional.
        vectors: a matrix of the release with one row per item, which gives the number of items; optional.
        download: files to download where --data.raw is not given; null: those of the authors' repository, for the data sets
            called toys, beauty, sports and steam.
    """

    gives_splits: ClassVar[bool] = True

    def __init__(
        self,
        training: str = "training_dict.npy",
        validation: str = "validation_dict.npy",
        testing: str = "testing_dict.npy",
        testing_warm: str = "testing_warm_dict.npy",
        testing_cold: str = "testing_cold_dict.npy",
        warm: str = "warm_item.npy",
        cold: str = "cold_item.npy",
        items: str = "items.jsonl",
        vectors: str = "SASRec_item_embed.pkl",
        download: list[Source] | None = None,
    ) -> None:
        self.training, self.validation, self.testing = training, validation, testing
        self.testing_warm, self.testing_cold = testing_warm, testing_cold
        self.warm, self.cold, self.items, self.vectors = warm, cold, items, vectors
        self.download = download

    def public(self, name: str) -> list[Source]:
        """See `Reader.public`. Not every data set has every file."""
        if self.download is not None or name not in _PUBLISHED:
            return super().public(name)
        needed = (self.training, self.validation, self.testing)
        files = (*needed, self.testing_warm, self.testing_cold, self.warm, self.cold, self.vectors)
        return [Source(f"{_PUBLIC}/{name}/{file}", optional=file not in needed) for file in files]

    def sources(self, raw: Path | None) -> list[Path]:
        """See `Reader.sources`."""
        if raw is None:
            return []
        required = (self.training, self.validation, self.testing)
        optional = (self.testing_warm, self.testing_cold, self.warm, self.cold, self.items, self.vectors)
        return [raw / name for name in required] + [raw / name for name in optional if (raw / name).is_file()]

    def read(self, raw: Path | None) -> SplitLog:
        """See `Reader.read`. A user's own id is the dict's key; an item's is the asin in items.jsonl, or the item's number."""
        assert raw is not None, "prepare() asks for the folder first"
        names = (self.training, self.validation, self.testing)
        splits = [_read_dict(raw / name) for name in names]
        table = _read_items(raw / self.items) if (raw / self.items).is_file() else None
        warm, cold = (_read_set(raw / name) if (raw / name).is_file() else None for name in (self.warm, self.cold))
        n_items = self._count(raw, table, warm, cold, splits)
        for name, split in zip(names, splits, strict=True):
            _check_range(name, split, n_items)

        trained = set(chain.from_iterable(splits[0].values()))
        expected_cold = set(range(n_items)) - trained
        for name, found, expected in ((self.warm, warm, trained), (self.cold, cold, expected_cold)):
            if found is not None and found != expected:
                item = min(found ^ expected)
                raise DataError(
                    f"{name} and {self.training} disagree about {len(found ^ expected)} items, e.g. {item} "
                    f"(cold means absent from training); delete {name} to have it rebuilt, or download it again."
                )
        for name, part in ((self.testing_warm, trained), (self.testing_cold, expected_cold)):
            if (raw / name).is_file():
                self._check_part(name, _read_dict(raw / name), splits[2], part)

        users = sorted(set().union(*splits))
        train, validation, test = (Ragged.from_rows([split.get(user, []) for user in users]) for split in splits)
        if table is None:
            ids = [str(item) for item in range(n_items)]
            table = pl.DataFrame({"id": ids, "title": "", "text": ""}, schema_overrides={"id": pl.String})
        return SplitLog([str(user) for user in users], table, train, validation, test)

    def _count(
        self,
        raw: Path,
        table: pl.DataFrame | None,
        warm: set[int] | None,
        cold: set[int] | None,
        splits: list[dict[int, list[int]]],
    ) -> int:
        """The number of items, N. All files that hold it must agree."""
        known: dict[str, int] = {}
        if table is not None:
            known[self.items] = len(table)
        if (raw / self.vectors).is_file():
            rows = count_rows(raw / self.vectors)
            if rows is not None:
                known[self.vectors] = rows
        if warm is not None and cold is not None:
            known[f"{self.warm} with {self.cold}"] = max(warm | cold, default=-1) + 1
        if len(set(known.values())) > 1:
            counts = ", ".join(f"{count} in {name}" for name, count in known.items())
            raise DataError(
                f"{raw}: its files disagree about the number of items ({counts}); use files of one release."
            )
        if known:
            return next(iter(known.values()))
        return max((item for split in splits for row in split.values() for item in row), default=-1) + 1

    def _check_part(self, name: str, part: dict[int, list[int]], whole: dict[int, list[int]], kept: set[int]) -> None:
        """Check that a dict of warm or cold items holds the `kept` items of the whole dict."""
        for user in sorted(set(part) | set(whole)):
            if part.get(user, []) != [item for item in whole.get(user, []) if item in kept]:
                raise DataError(
                    f"{name} disagrees with {self.testing} and {self.training} about user {user}; delete {name} (it is "
                    "rebuilt from the other two), or download the release again."
                )


def _read_dict(path: Path) -> dict[int, list[int]]:
    """Read a split: {user: [item, ...]}, every user and item a whole number."""
    content = load_object_npy(path)
    if not isinstance(content, dict):
        raise DataError(f"{path.name} holds a {type(content).__name__}, not a dict of users; download it again.")
    for user, row in content.items():
        if type(user) is not int or user < 0:
            raise DataError(f"{path.name}: user {user!r} is not a whole number from 0; number the users 0, 1, 2, ...")
        if isinstance(row, np.ndarray):
            content[user] = row = row.tolist()
        if not isinstance(row, list | tuple):
            raise DataError(f"{path.name}: user {user} has a {type(row).__name__}, not a list of item ids; fix it.")
    kinds = set(map(type, chain.from_iterable(content.values())))
    if not kinds <= {int}:
        user, item = next((u, i) for u, row in content.items() for i in row if type(i) is not int)
        raise DataError(
            f"{path.name}: user {user} has item {item!r}, which is not a whole number; use item ids 0..N-1."
        )
    return content


def _read_set(path: Path) -> set[int]:
    content = load_object_npy(path)
    if isinstance(content, np.ndarray):
        content = content.ravel().tolist()
    if not isinstance(content, set | frozenset | list | tuple) or not all(type(item) is int for item in content):
        raise DataError(
            f"{path.name} must hold a set of item ids; delete it to have it rebuilt from the training dict."
        )
    return set(content)


def _check_range(name: str, split: dict[int, list[int]], n_items: int) -> None:
    for user, row in split.items():
        if row and not (min(row) >= 0 and max(row) < n_items):
            item = next(item for item in row if not 0 <= item < n_items)
            raise DataError(
                f"{name}: user {user} has item id {item}, outside 0..{n_items - 1} (the release has {n_items} items); "
                "use files of one release."
            )


def _read_items(path: Path) -> pl.DataFrame:
    """items.jsonl -> id, title, text ("title. keywords", what the MiniLM vectors were made from), keywords."""
    rows = []
    with path.open(encoding="utf8") as file:
        for number, line in enumerate(file):
            try:
                entry = json.loads(line)
                item, own = entry["item_id"], entry.get("asin", entry.get("id", entry["item_id"]))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{path.name} line {number + 1} is not a JSON object with an item_id ({error}); fix the line."
                ) from None
            if item != number:
                raise DataError(
                    f"{path.name} line {number + 1} has item_id {item!r}, expected {number}; sort it by item id."
                )
            title, keywords = (str(entry.get(key) or "").strip() for key in ("title", "keywords"))
            rows.append((str(own), title, ". ".join(part for part in (title, keywords) if part), keywords))
    table = pl.DataFrame(rows, schema=dict.fromkeys(("id", "title", "text", "keywords"), pl.String), orient="row")
    repeated = table.filter(pl.col("id").is_duplicated())
    if len(repeated):
        raise DataError(f"{path.name} gives the id {repeated['id'][0]!r} to several items; every item needs its own.")
    return table
