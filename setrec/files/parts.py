"""A table that lies in many parquet files: a folder, a pattern, or either in an object store by its fsspec URL."""

from pathlib import Path

import fsspec

from setrec.errors import DataError
from setrec.files.packed import RawFile

_PART = ".parquet"


def is_url(name: str) -> bool:
    """Whether a name is an fsspec URL, such as s3://bucket/events, and no path of this machine."""
    return "://" in name


def parquet_parts(name: str, raw: Path | None) -> list[RawFile] | None:
    """List the parts of a table in order of their paths; None: the name is that of one file on this machine.

    Args:
        name: a folder or a pattern such as events/*.parquet, inside the raw folder or by its path; or the URL of a file, a folder
            or a pattern.
        raw: the folder of raw files.

    Raises:
        DataError: there is no such part, or the object store refuses.
    """
    if is_url(name):
        return _remote(name)
    for path in (*((raw / name,) if raw is not None else ()), Path(name)):
        if path.is_dir():
            found = path.rglob(f"*{_PART}")
        elif "*" in path.name and path.parent.is_dir():
            found = path.parent.glob(path.name)
        else:
            continue
        parts = [RawFile(part) for part in sorted(found) if _is_part(part.name)]
        if not parts:
            raise DataError(f"{path} holds no file that ends in {_PART}.")
        return parts
    return None


def _remote(url: str) -> list[RawFile]:
    pattern = url if url.endswith(_PART) else f"{url.rstrip('/')}/**/*{_PART}"
    try:
        store, path = fsspec.core.url_to_fs(pattern)
        found = store.glob(path) if "*" in pattern else [path] * store.exists(path)
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{url} cannot be read ({error}); check the URL, its package and your rights.") from None
    names = {each: each.rpartition("/")[2] for each in sorted(found)}
    parts = [RawFile(Path(last), url=store.unstrip_protocol(each)) for each, last in names.items() if _is_part(last)]
    if not parts:
        raise DataError(f"{url} holds no file that ends in {_PART}.")
    return parts


def _is_part(name: str) -> bool:
    """Not _SUCCESS and the like, which Spark and others write beside the parts."""
    return not name.startswith(("_", "."))
