"""Finds a raw file that a person has named."""

from pathlib import Path

from setrec.errors import DataError


def raw_file(file: str, raw: Path | None) -> Path:
    """Find a file by its name inside the raw folder, or by a path.

    Raises:
        DataError: there is no such file.
    """
    inside = raw / file if raw is not None else None
    for path in (inside, Path(file)):
        if path is not None and path.is_file():
            return path
    where, hint = "no --data.raw DIR is given", ""
    if raw is not None:
        where = f"it is neither in {raw} nor a path"
        names = sorted(path.name for path in raw.glob(f"*{Path(file).suffix}"))
        hint = f" ({raw.name} holds {', '.join(names[:10])})" if names else ""
    raise DataError(f"file {file} does not exist: {where}; give its name inside the raw folder, or its path{hint}.")


def raw_sources(file: str, raw: Path | None) -> list[Path]:
    """The file that `raw_file` finds, as a list; empty without a raw folder, where the path may name nothing.

    Raises:
        DataError: there is no such file in the raw folder.
    """
    return [raw_file(file, raw)] if raw is not None or Path(file).is_file() else []
