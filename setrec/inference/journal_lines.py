"""The lines of a journal: what a change holds, what several come to, and how one is read from a file."""

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

_HASHED = re.compile(rb'(\{.*), "sha256": "([0-9a-f]{64})"\}')

Change = dict[
    str, Any
]  # {"add": [items]}, with "encoder" or without; {"remove": [ids]}; or {"patch": [{"id", "fields"}]}; and "time"


class Sum(NamedTuple):
    """What several changes come to: first take out `removed`, as far as it is there, then add of `added` what is not there."""

    removed: set[str]
    added: dict[str, dict[str, Any]]  # id -> the item as it was given, in order
    encoder: dict[str, Any] | None  # the last one named
    patched: dict[str, dict[str, Any]]  # id -> attributes changed since


class RecentChange(NamedTuple):
    """One line of a journal, to be shown."""

    time: datetime | None  # version 0.2.0 wrote none
    kind: Literal["added", "removed", "patched"]
    ids: list[str]
    fields: list[str]  # attributes that were changed


def sum_of(changes: Sequence[Change]) -> Sum:
    """Add changes up. An item that was removed and then added again is both removed and added."""
    total = Sum(set(), {}, None, {})
    for change in changes:
        total = _plus(total, change)
    return total


def _plus(total: Sum, change: Change) -> Sum:
    for item in change.get("add", []):
        total.added[item["id"]] = dict(item)
    for name in change.get("remove", []):
        total.added.pop(name, None)
        total.patched.pop(name, None)
        total.removed.add(name)
    for patch in change.get("patch", []):
        total.patched[patch["id"]] = total.patched.get(patch["id"], {}) | dict(patch["fields"])
    return total._replace(encoder=change["encoder"]) if change.get("encoder") is not None else total


def change_of(line: bytes) -> Change | None:
    """The change in a line; None: it holds none."""
    hashed = _HASHED.fullmatch(line)
    try:
        text = line if hashed is None else hashed[1] + b"}"
        change = json.loads(text)
        if hashed is not None and hashlib.sha256(text).hexdigest() != hashed[2].decode():
            return None
        if change.keys() - {"time"} not in (
            {"add"},
            {"add", "encoder"},
            {"remove"},
            {"patch"},
        ):  # a damaged name is not nothing
            return None
        sum_of([change])
        recent_of(change)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return dict(change)


def recent_of(change: Change) -> RecentChange:
    """A change in the form that is shown.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    time = datetime.fromisoformat(change["time"]) if "time" in change else None
    if time is not None and time.tzinfo is None:  # a person wrote it
        time = time.replace(tzinfo=UTC)
    if "patch" in change:
        names = sorted({name for patch in change["patch"] for name in patch["fields"]})
        return RecentChange(time, "patched", [patch["id"] for patch in change["patch"]], names)
    if "add" in change:
        return RecentChange(time, "added", [item["id"] for item in change["add"]], [])
    return RecentChange(time, "removed", list(change["remove"]), [])


def is_torn(line: bytes) -> bool:
    """Whether a line ends within its object, as a crash leaves it."""
    try:
        json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return True
    return False
