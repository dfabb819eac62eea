"""Whether a folder holds the data set that is wanted: made from the same raw files with the same options."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from setrec.class_names import current_names, public_name
from setrec.data.catalogue import read_manifest
from setrec.data.console import say, warn
from setrec.data.preparation import Preparation
from setrec.data.store import FORMAT, files_match, locked, update_manifest
from setrec.errors import DataError
from setrec.files.hashes import file_hash, stamp
from setrec.hparams import default_arguments

_BIG = 1 << 26  # bytes: a raw file of this size or more is hashed again only if its size or time of change is another


class Current(NamedTuple):
    """A prepared data set that is what is wanted."""

    manifest: dict[str, Any]
    stamps: dict[str, list[int]]  # of its raw files, as they are now
    missing: list[str]  # raw files that it was made from and that are not there any more

    def use(self, folder: Path, raw: Path | None) -> None:
        """Say what there is to say, and note the new stamps of raw files that were copied."""
        if self.missing:
            say(
                f"{', '.join(self.missing[:3])} cannot be found in {raw}: the data is used as it was prepared in {folder}."
            )
        elif raw is not None and self.stamps != self.manifest.get("stamps"):
            with suppress(DataError), locked(folder):  # a read-only folder keeps the old ones
                now = read_manifest(folder)
                if now is not None and now.get("sources") == self.manifest.get("sources"):
                    update_manifest(folder, now | {"stamps": self.stamps})
        warn(self.manifest.get("report", {}))


def find_current(folder: Path, options: dict[str, Any], preparation: Preparation, raw: Path | None) -> Current | None:
    """Find the data set of these options and raw files in the folder; None: it holds another or none."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("format") != FORMAT or _options_of(manifest, preparation) != options:
        return None
    if not files_match(folder, manifest):
        return None
    if raw is None:
        if not preparation.reader.needs_raw:  # files of vectors can be all that it is made from
            files = {label: path for label, path in preparation.sources(None).items() if path.is_file()}
            hashes, _ = source_hashes(files, manifest)
            if any(manifest.get("sources", {}).get(label) != one for label, one in hashes.items()):
                return None
        return Current(manifest, {}, [])
    here, missing = _sources_here(preparation, raw, manifest)
    sources, stamps = source_hashes(here, manifest)
    known = {label: one for label, one in manifest.get("sources", {}).items() if label not in missing}
    return Current(manifest, stamps, missing) if sources == known else None


def say_what_changed(folder: Path) -> None:
    """Print what must not be overlooked in prepared data that is used as it is: also that its raw files have changed since.

    Nothing is read but the raw files that have another time of change.
    """
    manifest = read_manifest(folder) or {}
    raw: str | None = manifest.get("raw")
    for label, known in manifest.get("stamps", {}).items():
        path = Path(raw or "", label)
        if raw is not None and path.is_file() and stamp(path) != known:
            big = path.stat().st_size >= _BIG
            if path.stat().st_size != known[0] or (not big and file_hash(path) != manifest["sources"].get(label)):
                say(
                    f"WARNING: {path} was changed after the data was prepared. It is used as it lies in {folder}; --data.raw "
                    f"{shlex.quote(raw)} compares the two."
                )
    warn(manifest.get("report", {}))


def source_hashes(files: Mapping[str, Path], manifest: dict[str, Any]) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Return the sha256 of every raw file, and its size and time of change (in ns). Known big files are not read again."""
    hashes, stamps = {}, {}
    for label, path in files.items():
        if path.is_file():
            state = path.stat()
            stamps[label] = [state.st_size, state.st_mtime_ns]
            known = manifest.get("sources", {}).get(label)
            same = state.st_size >= _BIG and manifest.get("stamps", {}).get(label) == stamps[label]
            hashes[label] = known if same and known else file_hash(path)
    return hashes, stamps


def _options_of(manifest: Mapping[str, Any], preparation: Preparation) -> Any:
    """The options in a manifest, with current names, and with the defaults of arguments that its version did not know."""
    options = current_names(manifest.get("options"))
    if not isinstance(options, dict):
        return None

    def filled(stored: Any, maker: object) -> Any:
        if not isinstance(stored, dict) or stored.get("class_path") != public_name(type(maker)):
            return stored
        return stored | {"init_args": default_arguments(type(maker)) | stored.get("init_args", {})}

    makers = {"reader": preparation.reader, "text": preparation.text, "split": preparation.split}
    options |= {key: filled(options[key], maker) for key, maker in makers.items() if key in options}
    if isinstance(options.get("vectors"), dict):
        stored = options["vectors"]
        options["vectors"] = {name: filled(one, preparation.vectors.get(name)) for name, one in stored.items()}
    options["cf"] = [filled(*pair) for pair in zip(options.get("cf", []), preparation.cf, strict=False)]
    if isinstance(options.get("reader"), dict):
        options["reader"]["init_args"].pop("download", None)
    return options


def _sources_here(
    preparation: Preparation, raw: Path, manifest: Mapping[str, Any]
) -> tuple[dict[str, Path], list[str]]:
    """Return the raw files that are there, and the names of those that the prepared data was made from and that are gone."""
    try:
        needed = preparation.sources(raw) if raw.is_dir() else {}
    except DataError:  # one that is needed is not there
        needed = {}
    if needed and all(path.is_file() for path in needed.values()):
        return needed, []
    places = {label: raw / label for label in manifest.get("sources", {})}  # an absolute path stays what it is
    here = {label: path for label, path in places.items() if path.is_file()}
    return here, [label for label in places if label not in here]
