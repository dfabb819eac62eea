"""sha256 of files, of lists of ids, and of JSON that carries its own hash."""

import hashlib
import json
from pathlib import Path
from typing import Any

Stamp = list[int]  # size in bytes, time of change in ns
SEAL = "sha256"  # the entry of a sealed object that holds its hash


def file_hash(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal. It is read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> Stamp:
    """Return the size and the time of change of a file: while both are the same, its content counts as unchanged."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def changed_file(folder: Path, names: list[str], hashes: dict[str, str], stamps: dict[str, Stamp]) -> str | None:
    """Return the first of some files in a folder that is not the one that was hashed; None: all are.

    Args:
        folder: the folder.
        names: names of files; those that are not there are left out.
        hashes: name -> sha256.
        stamps: name -> `stamp` at the time of the hash; a file with this stamp is not read.
    """
    for name in names:
        path = folder / name
        if path.exists() and stamps.get(name) != stamp(path) and hashes.get(name) != file_hash(path):
            return name
    return None


def ids_hash(ids: list[str]) -> str:
    """Return the sha256 of a list of ids and their order. A matrix with one row per id carries it, to be checked."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), 1 << 16):
        digest.update("".join(f"{i}\0" for i in ids[start : start + (1 << 16)]).encode("utf8", "surrogatepass"))
    return digest.hexdigest()


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with its own hash, for JSON that must not change unseen."""
    return content | {
        SEAL: _json_hash(json.loads(json.dumps(content)))
    }  # as it will be read: tuples are lists, keys are texts


def check_seal(content: dict[str, Any]) -> None:
    """Check the hash that `sealed` added. Content without one, from an earlier version, passes.

    Raises:
        ValueError: the content was changed.
    """
    if SEAL in content and content[SEAL] != _json_hash(content):
        raise ValueError("it was changed after it was written")


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, checked by `check_seal`.

    Raises:
        ValueError: it is no JSON object, or was changed.
        OSError: it cannot be read.
    """
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    check_seal(content)
    return content


def _json_hash(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
