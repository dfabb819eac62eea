"""Reads a checkpoint of fit as weights and plain types, if it is as fit wrote it.

A checkpoint is a zip archive. `seal` writes the sha256 of everything before it into the archive's comment, which readers of
checkpoints skip. A sharded checkpoint is a folder of parts; `seal_folder` writes the hashes of all of them into files.json.
"""

import functools
import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from setrec.class_names import current_name, current_names
from setrec.errors import ConfigError
from setrec.files.hashes import file_hash, read_sealed, sealed
from setrec.files.whole import whole_file

SETREC = "setrec.module.SETRecModule"  # the model_class of checkpoints that can recommend


class Checkpoint(NamedTuple):
    """The content of a checkpoint. Classes are public names. Nothing was imported to read it."""

    model_class: str
    model: dict[str, Any]  # the model's arguments
    data: dict[str, Any]  # the data module's arguments
    weights: dict[str, Tensor]  # the state_dict
    catalogue: dict[str, Any]  # name, fingerprint and so on of what it was trained on
    origin: dict[str, Any]  # of a frozen base whose weights are not in the checkpoint; {}: there is none


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Of a sharded one, which is a folder, read all except the weights.

    Raises:
        ConfigError: the file isn't a checkpoint of this project, was changed, or holds more than weights and plain types.
    """
    file = path / "meta.pt" if path.is_dir() else path
    check_unchanged(path)
    try:
        content = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
        return Checkpoint(
            model_class=current_name(content.get("model_class", SETREC)),
            model=_arguments(content["hyper_parameters"]),
            data=_arguments(content["datamodule_hyper_parameters"]),
            weights=content.get("state_dict", {}),
            catalogue=content.get("catalogue", {}),
            origin=content.get("backbone", {}),
        )
    except Exception as error:  # a file can be wrong in many ways; one sentence names it
        raise ConfigError(
            f"{path} is not a checkpoint of this project ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); give the path that fit printed at its end."
        ) from error


_MAX_VALUES = 100_000  # arguments, with all that is inside of them
_SEAL = b"setrec sha256:"
_FILES = "files.json"  # in a sharded checkpoint


def seal(path: Path) -> None:
    """Write the hash of a checkpoint into it, once torch has written it.

    Raises:
        OSError: the disk is full or refuses.
    """
    end = path.stat().st_size - 2  # the last two bytes are the length of the comment, which is empty
    comment = _SEAL + _hash_until(path, end).encode()
    with path.open("r+b") as file:
        file.seek(end)
        file.write(len(comment).to_bytes(2, "little") + comment)


def seal_folder(path: Path) -> None:
    """Write the hashes of all parts of a sharded checkpoint into it, once every process has written its own.

    Raises:
        OSError: the disk is full or refuses.
    """
    parts = sorted(part for part in path.rglob("*") if part.is_file() and part.name != _FILES)
    hashes = {part.relative_to(path).as_posix(): file_hash(part) for part in parts}
    with whole_file(path / _FILES) as hidden:
        hidden.write_text(json.dumps(sealed({"files": hashes}), indent=2) + "\n")


def check_unchanged(path: Path) -> None:
    """Check the hash in a checkpoint; one of an earlier version, which has none, by the checksums of its parts.

    A sharded one is checked by the hashes of all its parts.

    A file that was checked before is checked again only if its size or its time of change is another. A file that is no zip
    archive passes: whoever reads it says that it is no checkpoint.

    Raises:
        ConfigError: the checkpoint was changed after it was written.
    """
    try:
        if path.is_dir():
            return _check_folder(path)
        state = path.stat()
        whole = _is_whole(path.resolve(), state.st_size, state.st_mtime_ns)
    except OSError:
        return  # as above
    if not whole:
        raise ConfigError(
            f"{path} was changed or damaged after it was written; take another copy of it, or another checkpoint."
        )


def _check_folder(path: Path) -> None:
    """Check the parts of a sharded checkpoint, as `check_unchanged`; of an earlier version only the arguments."""
    if not (path / _FILES).exists():
        return check_unchanged(path / "meta.pt")
    name = _FILES
    try:
        for name, expected in read_sealed(path / _FILES)["files"].items():
            if file_hash(path / name) != expected:
                raise ValueError
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ConfigError(
            f"{path}: its part {name} is missing, or was changed or damaged after it was written; take another copy of the folder, "
            "or another checkpoint."
        ) from None


@functools.lru_cache(maxsize=64)
def _is_whole(path: Path, size: int, changed: int) -> bool:
    """Whether a file is as it was written, or no zip archive. `size` and `changed` (ns) are those of the file, for the cache."""
    try:
        if not zipfile.is_zipfile(path):
            return True
        with zipfile.ZipFile(path) as archive:
            comment = archive.comment
            if not re.fullmatch(_SEAL + b"[0-9a-f]{64}", comment):
                stored = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())  # as torch does
                return stored and archive.testzip() is None
        return comment == _SEAL + _hash_until(path, size - len(comment) - 2).encode()
    except Exception:  # a damaged archive makes zipfile raise errors of many types
        return False


def _hash_until(path: Path, end: int) -> str:
    """The sha256 of the first `end` bytes of a file."""
    digest, left = hashlib.sha256(), end
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _arguments(stored: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameters with current class names, without Lightning's own entries.

    Raises:
        ValueError: there are too many. A few lists that hold each other can stand for more than any memory holds.
    """
    count, waiting = 0, [stored]
    while waiting:
        one = waiting.pop()
        count += 1
        if count > _MAX_VALUES:
            raise ValueError(f"it has more than {_MAX_VALUES:,} arguments")
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list | tuple) else ()
    own = {key: value for key, value in stored.items() if key not in ("_class_path", "_instantiator")}
    return dict(current_names(own))
