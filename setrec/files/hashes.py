"""sha256 of files and of lists of ids."""

import hashlib
from pathlib import Path


def file_hash(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal. It is read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ids_hash(ids: list[str]) -> str:
    """Return the sha256 of a list of ids and their order. A matrix with one row per id carries it, to be checked."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), 1 << 16):
        digest.update("".join(f"{i}\0" for i in ids[start : start + (1 << 16)]).encode("utf8", "surrogatepass"))
    return digest.hexdigest()
