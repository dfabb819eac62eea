"""Applying a journal to a catalogue, and its items as rows of a table and back."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from setrec.class_names import current_names
from setrec.errors import DataError, SETRecError
from setrec.hparams import instantiate
from setrec.inference.journal_lines import Change, sum_of
from setrec.text import TextVectors


class Changeable(Protocol):
    """What a journal is applied to: a `Recommender`."""

    def add_items(self, items: Any, encoder: TextVectors | None = None, keep: Any = None) -> list[str]:
        """Add items."""

    def remove_items(self, ids: Any, keep: Any = None) -> None:
        """Remove items."""

    def patch_items(self, patches: Any, keep: Any = None) -> None:
        """Change attributes."""

    def at_once(self) -> AbstractContextManager[None]:
        """Make the changes of a block one."""

    def __contains__(self, own: object) -> bool:
        """Say whether an item is there."""


def rows_of(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items in the form of a journal, or of a request, as rows of a table: their fields become columns."""
    return [
        {name: item[name] for name in ("id", "title", "text", "vector") if item.get(name) is not None}
        | {f"vector_{name}": vector for name, vector in (item.get("vectors") or {}).items()}
        | {name: value for name, value in (item.get("fields") or {}).items() if name not in item}
        for item in items
    ]


def items_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table in the form of a journal: further columns become fields, what JSON does not know becomes text."""
    items = []
    for row in json.loads(json.dumps(rows, default=str)):
        own = {name: row.pop(name) for name in ("id", "title", "text", "vector") if name in row}
        more = [name for name, value in row.items() if name.startswith("vector_") and isinstance(value, list)]
        if more:
            own["vectors"] = {name.removeprefix("vector_"): row.pop(name) for name in more}
        fields = {name: value for name, value in row.items() if value is not None}
        items.append(own | ({"fields": fields} if fields else {}))
    return items


def apply_journal(to: Changeable, path: Path, changes: Sequence[Change], encoder: TextVectors | None = None) -> None:
    """Apply changes to a catalogue that may have some of them already, such as items that the training has seen meanwhile.

    Args:
        to: the recommender.
        path: the journal, for error messages.
        changes: some of its changes, in order.
        encoder: the text encoder for new items; None: the one that the journal names, or that of the training.

    Raises:
        DataError: an item of the journal does not fit the model.
    """
    total = sum_of(changes)
    gone = {own for own in total.removed if own in to}
    new = [item for own, item in total.added.items() if own in gone or own not in to]
    names = {item["id"] for item in new}
    patches = {own: fields for own, fields in total.patched.items() if own in names or (own in to and own not in gone)}
    if not (gone or new or patches):
        return
    try:
        if encoder is None and total.encoder is not None:
            encoder = instantiate(current_names(total.encoder), TextVectors)
        with to.at_once():
            if gone:
                to.remove_items(gone)
            for with_vector in (False, True):
                some = [item for item in new if (item.get("vector") is not None) == with_vector]
                if some:
                    to.add_items(rows_of(some), encoder=encoder)
            if patches:
                to.patch_items(patches)
    except (SETRecError, TypeError) as error:
        raise DataError(
            f"the items in {path} cannot be added to this model ({error}); correct that file, or name another with --items, or the "
            "encoder of the training with --encoder."
        ) from error
