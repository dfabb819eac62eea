"""The authors' release (github.com/Linxyhaha/SETRec): dicts of users, sets of items, texts, and matrices of vectors."""

import json
import re
import sys
from collections.abc import Mapping
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
_TEXTS = "combine_tdcb_maps.npy"  # {"recid2combine": {item id: text}}
_MAX_TEXT = 2000  # characters of an item's text, as in the other readers

# A text of the release: "The item title is T. D. It has the categories of C1 , C2. The brand of this item is B".
_OPENING = re.compile(r"The (?:\w+ )?title is ")
_MARKERS = {
    "categories": ("It has the categories of ", "The tags are "),
    "brand": ("The brand of this item is ", "The publisher is "),
}
_FIELDS = ("title", "description", "categories", "brand")
_MISSING = re.compile(r"(?:title|description|category|categories|brand)_\d+|unknown", re.IGNORECASE)  # placeholders
_NO_DESCRIPTION = re.compile(r"(.*?)\.? *description_\d+\.?", re.DOTALL)
# ". " after one of these ends no sentence
_ABBREVIATIONS = re.compile(
    r"(?:[a-z]\.)*[a-z]|dr|mrs?|ms|st|jr|sr|vs|no|vol|inc|co|ltd|corp|oz|in|ft|lbs?|pcs?|pk|asst|approx", re.IGNORECASE
)  # "G.I." and "E." too


class OfficialRelease(Reader):
    """Reads the official SETRec release, with the splits and the item ids that the authors made.

    The sets and dicts of warm and cold items follow from the training dict (cold = absent from it). They may be missing
    (Sports, Beauty). If they are there, they must agree with it.

    Texts come from the release's combine_tdcb_maps.npy: title, description, categories, brand, and all of them as text. A file
    of your own, items.jsonl, takes its place if it is there.

    Args:
        training: file of the training dict, {user: [item, ...]} pickled into a .npy.
        validation: file of the validation dict.
        testing: file of the test dict.
        testing_warm: file of the test dict's warm items; optional.
        testing_cold: file of the test dict's cold items; optional.
        warm: file of the set of warm items; optional.
        cold: file of the set of cold items; optional.
        items: a file that is not in the release: one JSON line per item in id order: item_id, asin, title, keywords; optional.
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
        lists = (self.testing_warm, self.testing_cold, self.warm, self.cold)
        files = (*needed, *lists, _TEXTS, self.vectors, f"{name}.emb-t5-tdcb.npy")
        return [Source(f"{_PUBLIC}/{name}/{file}", optional=file not in needed) for file in files]

    def sources(self, raw: Path | None) -> list[Path]:
        """See `Reader.sources`."""
        if raw is None:
            return []
        required = (self.training, self.validation, self.testing)
        texts = self.items if (raw / self.items).is_file() else _TEXTS
        optional = (self.testing_warm, self.testing_cold, self.warm, self.cold, texts, self.vectors)
        return [raw / name for name in required] + [raw / name for name in optional if (raw / name).is_file()]

    def read(self, raw: Path | None) -> SplitLog:
        """See `Reader.read`. A user's own id is the dict's key; an item's is the asin in items.jsonl, or the item's number."""
        assert raw is not None, "prepare() asks for the folder first"
        names = (self.training, self.validation, self.testing)
        splits = [_read_dict(raw / name) for name in names]
        texts: dict[int, str] | None = None
        table = _read_items(raw / self.items) if (raw / self.items).is_file() else None
        if table is None and (raw / _TEXTS).is_file():
            texts = _read_texts(raw / _TEXTS)
        warm, cold = (_read_set(raw / name) if (raw / name).is_file() else None for name in (self.warm, self.cold))
        n_items = self._count(raw, table, texts, warm, cold, splits)
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
            table = _items_of_texts(texts or {}, n_items)
        return SplitLog([str(user) for user in users], table, train, validation, test)

    def _count(
        self,
        raw: Path,
        table: pl.DataFrame | None,
        texts: dict[int, str] | None,
        warm: set[int] | None,
        cold: set[int] | None,
        splits: list[dict[int, list[int]]],
    ) -> int:
        """The number of items, N. All files that hold it must agree."""
        known: dict[str, int] = {}
        if table is not None:
            known[self.items] = len(table)
        if texts is not None:
            known[_TEXTS] = max(texts, default=-1) + 1
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


def _read_texts(path: Path) -> dict[int, str]:
    """Read combine_tdcb_maps.npy: item id -> text."""
    content = load_object_npy(path)
    texts = content.get("recid2combine") if isinstance(content, dict) else None
    if not isinstance(texts, dict):
        raise DataError(
            f"{path.name} must hold a dict with the entry 'recid2combine', the text of every item; download it again, or "
            "delete it to go on without texts."
        )
    for item, text in texts.items():
        if type(item) is not int or item < 0 or not isinstance(text, str):
            raise DataError(
                f"{path.name}: item {item!r} has {text!r:.40}, but it must be a whole number from 0 with a text; download "
                "the file again, or delete it to go on without texts."
            )
    return texts


def _items_of_texts(texts: Mapping[int, str], n_items: int) -> pl.DataFrame:
    """The table of items from the release's texts, and a word about what they lack. An item's own id is its number."""
    rows: list[dict[str, str]] = []
    odd: list[int] = []
    for item in range(n_items):
        whole = texts.get(item, "").strip()
        fields = fields_of(whole)
        if fields is None:
            odd += [item] if whole else []
            fields = dict.fromkeys(_FIELDS, "")
            text = whole
        else:
            text = ". ".join(value for value in fields.values() if value)
        rows.append({"id": str(item), **fields, "text": text[:_MAX_TEXT]})
    table = pl.DataFrame(rows, schema=dict.fromkeys(("id", *_FIELDS, "text"), pl.String))
    if texts:
        lack = ", ".join(f"{field} {(table[field] == '').sum():,}" for field in (*_FIELDS, "text"))
        line = f"{_TEXTS}: {n_items:,} items; without a value: {lack}"
        if odd:
            line += f"; {len(odd):,} texts have another form and are kept whole, e.g. that of item {odd[0]}"
        print(line, file=sys.stderr)
    return table


def fields_of(text: str) -> dict[str, str] | None:
    """Take one of the release's texts apart.

    Args:
        text: "The item title is T. D. It has the categories of C1 , C2. The brand of this item is B".

    Returns:
        title, description, categories and brand, "" where a placeholder (title_<id>, description_<id>) stands or nothing does;
        None: the text has another form. Nothing marks the end of the title: it is taken to be the first end of a sentence.
    """
    opening = _OPENING.match(text)
    if opening is None:
        return None
    places = sorted(
        (text.rfind(marker), len(marker), field)
        for field, markers in _MARKERS.items()
        for marker in markers
        if text.rfind(marker) >= opening.end()
    )
    ends = [start for start, _, _ in places] + [len(text)]
    found = {field: text[start + size : end] for (start, size, field), end in zip(places, ends[1:], strict=True)}
    body = text[opening.end() : ends[0]].strip()
    undescribed = _NO_DESCRIPTION.fullmatch(body)
    found["title"], found["description"] = (undescribed[1], "") if undescribed else _first_sentence(body)
    found["categories"] = found.get("categories", "").replace(" , ", ", ")
    clean = {field: found.get(field, "").strip().removesuffix(".").strip() for field in _FIELDS}
    return {field: "" if _MISSING.fullmatch(value) else value for field, value in clean.items()}


def _first_sentence(text: str) -> tuple[str, str]:
    """The first sentence without its end, and the rest."""
    for end in re.finditer(r"\. ", text):
        if not _ABBREVIATIONS.fullmatch(re.split(r"[\s(]", text[: end.start()])[-1]):
            return text[: end.start()], text[end.end() :]
    return text, ""
