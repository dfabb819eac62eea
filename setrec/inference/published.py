"""A published model: one folder, in the Hugging Face hub's conventions, with everything that recommending needs.

    config.json            arguments and sizes of the model, the data set, hashes of the other files and its own
    model.safetensors      the weights (without a frozen base, which config.json names)
    catalogue.parquet      the items: id, title, text, ..., count, warm, vector (F), cf_0 (E), present_0, ...; of every source of
                           --data.vectors: vector_NAME (W), present_NAME
    encoder/config.json    the text encoder: class_path and init_args
    encoder/...            what it learned (encoder.safetensors), or its model if that is a local folder
    vectors/NAME/...       the same of every source of --data.vectors; vectors/learned.safetensors: what all of them learned
    neighbours.safetensors co-occurrence and recency of the items, if the model uses them
    results.json           of the test run, if there was one
    README.md              the model card

No file is a pickle, and nothing in the folder is executed.
"""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from setrec.class_names import current_names
from setrec.data.catalogue import ENCODER, Catalogue, Vectors
from setrec.data.kinds import Kinds
from setrec.errors import ConfigError, DataError
from setrec.evaluation.results import package_versions
from setrec.files.hashes import file_hash, read_sealed, sealed
from setrec.hparams import to_plain
from setrec.inference.new_items import VECTOR, vector_column
from setrec.inference.restore import Restored, Trained, rows_of
from setrec.scoring.graphs import HistoryStatistics
from setrec.scoring.neighbours import Graph

CONFIG, WEIGHTS, CATALOGUE, RESULTS, ENCODERS, SOURCES = (
    "config.json", "model.safetensors", "catalogue.parquet", "results.json", "encoder", "vectors",
)  # fmt: skip
NEIGHBOURS, LEARNED = "neighbours.safetensors", "learned.safetensors"
_FORMAT = 1
_MODEL = "model"  # inside encoder/: a copy of the encoder's own folder
_COPIED = (
    ".json",
    ".safetensors",
    ".txt",
    ".model",
    ".vocab",
    ".jinja",
)  # its files that are copied: no pickles, no code


def is_published(path: Path) -> bool:
    """Say whether a folder is one that `write_published` fills; it may be damaged."""
    return (path / CONFIG).is_file()


# --------------------------------------------------------------------------------------------------------------- writing
def write_published(
    folder: Path,
    trained: Trained,
    restored: Restored,
    catalogue: Catalogue,
    items: pl.DataFrame,
    text: dict[str, Any] | None,
) -> None:
    """Write everything but the model card into a folder.

    Args:
        folder: an existing folder.
        trained: what training left behind.
        restored: the model.
        catalogue: the items as they are now, added ones included.
        items: the table of these items.
        text: the settings of the text encoder, {"class_path", "init_args"}.

    Raises:
        DataError: the folder cannot be written, or the encoder cannot be published.
    """
    try:
        weights = {name: value.detach().cpu().contiguous().clone() for name, value in restored.state_dict().items()}
        save_file(weights, folder / WEIGHTS, {"format": "pt"})
        if trained.statistics is not None:
            save_file(_statistics_tensors(trained.statistics, trained.catalogue, catalogue), folder / NEIGHBOURS)
        catalogue_table(catalogue, items).write_parquet(folder / CATALOGUE)
        shutil.rmtree(folder / ENCODERS, ignore_errors=True)
        if text is not None:
            _write_encoder(folder / ENCODERS, text, trained.encoder)
        shutil.rmtree(folder / SOURCES, ignore_errors=True)
        for name, settings in trained.vectors.items():
            _write_encoder(folder / SOURCES / name, settings, None)
        if trained.vectors:
            learned = {
                f"{name}.learned.{key}": torch.from_numpy(value)
                for name in trained.vectors
                for key, value in trained.learned_of(name).items()
            }
            save_file(learned, folder / SOURCES / LEARNED)
        if trained.results is not None:
            (folder / RESULTS).write_text(json.dumps(trained.results, indent=2) + "\n")
        for path in (*folder.glob("*.safetensors"), *folder.glob(f"{SOURCES}/*.safetensors")):
            path.chmod(0o644)  # safetensors lets only the owner read, whatever the umask
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_hashed(path.relative_to(folder))]
        config = {
            "library_name": "setrec",
            "format": _FORMAT,
            "versions": package_versions(),
            "model": trained.arguments,
            "backbone_sizes": trained.sizes or restored.model.backbone.sizes(),
            "origin": trained.origin,
            "dataset": catalogue.name,
            "fingerprint": catalogue.fingerprint,
            "max_history": trained.max_history,
            "kinds": to_plain(trained.kinds),
            "cf_slots": len(catalogue.cf),
            **({"vectors": list(catalogue.vectors)} if catalogue.vectors else {}),
            "files": {path.relative_to(folder).as_posix(): file_hash(path) for path in files},
        }
        (folder / CONFIG).write_text(json.dumps(sealed(config), indent=2, ensure_ascii=False) + "\n")
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{folder} cannot be written ({str(error).splitlines()[0]}).") from None


def _is_hashed(path: Path) -> bool:
    """Say whether config.json holds the hash of this file; a hub folder may hold further files."""
    return path.parts[0] in (WEIGHTS, CATALOGUE, RESULTS, ENCODERS, SOURCES, NEIGHBOURS)


def _statistics_tensors(statistics: HistoryStatistics, base: Catalogue, catalogue: Catalogue) -> dict[str, Tensor]:
    """The statistics of the published items as tensors. They hold sums over all users, not the history of any one."""
    statistics = statistics.moved(rows_of(base, catalogue))
    graphs = {"pairs": statistics.cooccurrence, "next": statistics.transitions}
    tensors = {f"{name}_item": graph.item.int() for name, graph in graphs.items()}
    tensors |= {f"{name}_weight": graph.weight for name, graph in graphs.items()}
    return {name: tensor.contiguous() for name, tensor in (tensors | {"recent": statistics.recency}).items()}


def _read_statistics(path: Path) -> HistoryStatistics:
    tensors = load_file(path)
    n_items = len(tensors["recent"])
    none = torch.zeros(n_items, 1)  # (N, 1): before version 0.3.0 there were no transitions, and their weight is 0
    after = Graph(tensors.get("next_item", none).long(), tensors.get("next_weight", none))
    return HistoryStatistics(Graph(tensors["pairs_item"].long(), tensors["pairs_weight"]), after, tensors["recent"])


def catalogue_table(catalogue: Catalogue, items: pl.DataFrame) -> pl.DataFrame:
    """Put the table of items and their vectors into one table."""
    columns = [pl.Series("id", catalogue.ids, pl.String), pl.Series("title", catalogue.titles, pl.String)]
    columns += [pl.Series("count", catalogue.count.numpy()), pl.Series("warm", catalogue.warm.numpy())]
    if catalogue.text is not None:
        columns.append(_vectors(VECTOR, catalogue.text))
    for c, (vectors, present) in enumerate(zip(catalogue.cf, catalogue.present, strict=True)):
        columns += [_vectors(f"cf_{c}", vectors), pl.Series(f"present_{c}", present.numpy())]
    for name, (vectors, present) in catalogue.vectors.items():
        columns += [_vectors(vector_column(name), vectors), pl.Series(f"present_{name}", present.numpy())]
    return items.drop([column.name for column in columns], strict=False).with_columns(columns)


def _vectors(name: str, vectors: Tensor) -> pl.Series:
    return pl.Series(name, vectors.float().numpy(), dtype=pl.Array(pl.Float32, vectors.shape[1]))


def _write_encoder(folder: Path, text: dict[str, Any], learned: Path | None) -> None:
    """Write the encoder's settings, what it learned, and its model if that is a local folder."""
    folder.mkdir(parents=True)
    text = deepcopy(text)
    inner = text  # an encoder inside of another, such as FieldText, is the one with a model
    while isinstance(inner.get("init_args", {}).get("encoder"), dict):
        inner = inner["init_args"]["encoder"]
    model = inner.get("init_args", {}).get("model")
    if learned is not None:
        shutil.copyfile(learned, folder / ENCODER)
    if model is not None and Path(model).is_dir():
        if not list(Path(model).rglob("*.safetensors")):
            raise DataError(f"the text encoder {model} has no weights as safetensors, and a pickle is not published.")
        shutil.copytree(model, folder / _MODEL, ignore=_left_out)
        inner["init_args"]["model"] = _MODEL
    (folder / CONFIG).write_text(json.dumps(text, indent=2) + "\n")


def _left_out(folder: str, names: list[str]) -> list[str]:
    """The files that copytree leaves out."""
    return [name for name in names if not (Path(folder) / name).is_dir() and Path(name).suffix not in _COPIED]


# --------------------------------------------------------------------------------------------------------------- reading
def read_published(path: Path) -> Trained:
    """Read a published folder.

    Raises:
        ConfigError: a file is missing or damaged, or has another format.
    """
    try:
        config = read_sealed(path / CONFIG)
        if config["library_name"] != "setrec":
            raise ValueError(f"it belongs to the library {config['library_name']}")
        if config["format"] != _FORMAT:
            raise ValueError(f"its format is {config['format']}, but this version reads {_FORMAT}")
        for name, expected in config["files"].items():
            if file_hash(path / name) != expected:
                raise ValueError(f"{name} is not the file that was published")
        table = pl.read_parquet(path / CATALOGUE)
        results = read_sealed(path / RESULTS) if RESULTS in config["files"] else None
        learned = path / ENCODERS / ENCODER
        sources = config.get("vectors", [])
        own = {vector_column(name) for name in sources}
        return Trained(
            path=path,
            arguments=current_names(config["model"]),
            weights=load_file(path / WEIGHTS),
            origin=config["origin"],
            sizes=config["backbone_sizes"],
            catalogue=_catalogue(config, table),
            items=table.drop(
                [name for name in table.columns if name in {VECTOR} | own or name.startswith(("cf_", "present_"))]
            ),
            max_history=config["max_history"],
            text=_read_encoder(path / ENCODERS),
            encoder=learned if learned.is_file() else None,
            data=None,
            results=results,
            statistics=_read_statistics(path / NEIGHBOURS) if NEIGHBOURS in config["files"] else None,
            kinds=Kinds(**config.get("kinds", {})),
            vectors={name: made for name in sources if (made := _read_encoder(path / SOURCES / name)) is not None},
            learned=path / SOURCES / LEARNED if sources else None,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        SafetensorError,
        pl.exceptions.PolarsError,
    ) as error:
        raise ConfigError(f"{path} cannot be read as a published model ({str(error).splitlines()[0]}).") from None


def _catalogue(config: dict[str, Any], table: pl.DataFrame) -> Catalogue:
    def matrix(name: str) -> Tensor:
        rows: Any = table[name].to_numpy()  # (N, width), or N rows if another program has rewritten the file
        return torch.from_numpy(np.stack(list(rows)).astype(np.float32))  # (N, width)

    def flags(name: str) -> Tensor:
        return torch.from_numpy(table[name].to_numpy().copy())  # (N,)

    slots = range(config["cf_slots"])
    return Catalogue(
        name=config["dataset"],
        ids=table["id"].to_list(),
        titles=table["title"].to_list(),
        text=matrix(VECTOR) if VECTOR in table.columns else None,
        cf=tuple(matrix(f"cf_{c}") for c in slots),
        present=tuple(flags(f"present_{c}") for c in slots),
        count=torch.from_numpy(table["count"].to_numpy().astype(np.int64)),  # (N,)
        fingerprint=config["fingerprint"],
        texts=table["text"].to_list() if "text" in table.columns else None,
        vectors={
            name: Vectors(matrix(vector_column(name)), flags(f"present_{name}")) for name in config.get("vectors", [])
        },
    )


def _read_encoder(folder: Path) -> dict[str, Any] | None:
    """Read the encoder's settings; the path of its model is the folder's place on this machine."""
    if not (folder / CONFIG).is_file():
        return None
    text: dict[str, Any] = current_names(json.loads((folder / CONFIG).read_text()))
    if (folder / _MODEL).is_dir():
        inner = text
        while isinstance(inner["init_args"].get("encoder"), dict):
            inner = inner["init_args"]["encoder"]
        inner["init_args"]["model"] = str(folder / _MODEL)
    return text
