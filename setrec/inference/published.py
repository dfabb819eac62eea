"""A trained model as a folder in the Hugging Face hub's conventions, complete in itself.

    config.json            what made the model: arguments, sizes, data set, hashes of the other files
    model.safetensors      the weights (without a frozen base, which config.json names)
    catalogue.parquet      the items: id, title, text, ..., count, warm, vector (F), cf_0 (E), present_0, ...
    encoder/config.json    the text encoder: class_path and init_args
    encoder/...            what it learned (encoder.safetensors), or its model where that is a local folder
    neighbours.safetensors which items stood beside which, where the model weighs that
    results.json           of the test run, where there was one
    README.md              the model card

Nothing in it is a pickle, and nothing in it is executed.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from setrec.class_names import current_names
from setrec.data.catalogue import ENCODER, Catalogue
from setrec.errors import ConfigError, DataError
from setrec.evaluation.results import package_versions
from setrec.files.hashes import file_hash
from setrec.inference.new_items import VECTOR
from setrec.inference.restore import Restored, Trained, rows_of
from setrec.scoring.graphs import Graph, HistoryStatistics

CONFIG, WEIGHTS, CATALOGUE, RESULTS, ENCODERS = (
    "config.json", "model.safetensors", "catalogue.parquet", "results.json", "encoder",
)  # fmt: skip
NEIGHBOURS = "neighbours.safetensors"
_FORMAT = 1
_MODEL = "model"  # inside encoder/: a copy of the encoder's own folder
_PLAIN = (".json", ".safetensors", ".txt", ".model", ".vocab", ".jinja")  # what is copied of it: no pickles, no code


def is_published(path: Path) -> bool:
    """Whether a folder was written by `write_published`."""
    try:
        return json.loads((path / CONFIG).read_text()).get("library_name") == "setrec"
    except (OSError, ValueError, AttributeError):
        return False


# --------------------------------------------------------------------------------------------------------------- writing
def write_published(
    folder: Path, trained: Trained, restored: Restored, catalogue: Catalogue, items: pl.DataFrame, text: dict | None
) -> None:
    """Fill a folder with everything but the card.

    Args:
        folder: exists.
        trained: where the model comes from.
        restored: its weights.
        catalogue: the items as they are now, added ones included.
        items: their table.
        text: the encoder of their texts.

    Raises:
        DataError: the disk refuses, or the encoder cannot be published.
    """
    try:
        weights = {name: value.detach().cpu().contiguous().clone() for name, value in restored.state_dict().items()}
        save_file(weights, folder / WEIGHTS, {"format": "pt"})
        if trained.statistics is not None:
            save_file(_counts(trained, catalogue), folder / NEIGHBOURS)
        as_table(catalogue, items).write_parquet(folder / CATALOGUE)
        shutil.rmtree(folder / ENCODERS, ignore_errors=True)
        if text is not None:
            _write_encoder(folder / ENCODERS, text, trained.encoder)
        if trained.results is not None:
            (folder / RESULTS).write_text(json.dumps(trained.results, indent=2) + "\n")
        for path in folder.glob("*.safetensors"):
            path.chmod(0o644)  # written for its owner only, whatever the umask
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _ours(path.relative_to(folder))]
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
            "cf_slots": len(catalogue.cf),
            "files": {path.relative_to(folder).as_posix(): file_hash(path) for path in files},
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{folder} cannot be written ({str(error).splitlines()[0]}).") from None


def _ours(path: Path) -> bool:
    return path.parts[0] in (WEIGHTS, CATALOGUE, RESULTS, ENCODERS, NEIGHBOURS)


def _counts(trained: Trained, catalogue: Catalogue) -> dict[str, Tensor]:
    """What was counted about the items that are there; nobody's history can be read from it."""
    assert trained.statistics is not None
    statistics = trained.statistics.moved(rows_of(trained.catalogue, catalogue))
    pairs = {"pairs_item": statistics.cooccurrence.item.int(), "pairs_weight": statistics.cooccurrence.weight}
    return {name: tensor.contiguous() for name, tensor in (pairs | {"recent": statistics.recency}).items()}


def _read_counts(path: Path) -> HistoryStatistics:
    tensors = load_file(path)
    return HistoryStatistics(Graph(tensors["pairs_item"].long(), tensors["pairs_weight"]), tensors["recent"])


def as_table(catalogue: Catalogue, items: pl.DataFrame) -> pl.DataFrame:
    """A catalogue as one table: what is known of each item, and its vectors."""
    columns = [pl.Series("id", catalogue.ids, pl.String), pl.Series("title", catalogue.titles, pl.String)]
    columns += [pl.Series("count", catalogue.count.numpy()), pl.Series("warm", catalogue.warm.numpy())]
    if catalogue.text is not None:
        columns.append(_vectors(VECTOR, catalogue.text))
    for c, (vectors, present) in enumerate(zip(catalogue.cf, catalogue.present, strict=True)):
        columns += [_vectors(f"cf_{c}", vectors), pl.Series(f"present_{c}", present.numpy())]
    return items.drop([column.name for column in columns], strict=False).with_columns(columns)


def _vectors(name: str, vectors: Tensor) -> pl.Series:
    return pl.Series(name, vectors.numpy(), dtype=pl.Array(pl.Float32, vectors.shape[1]))


def _write_encoder(folder: Path, text: dict[str, Any], learned: Path | None) -> None:
    """The encoder's name and arguments, and what only this machine has: what it learned, or a model in a local folder."""
    folder.mkdir()
    model = text.get("init_args", {}).get("model")
    if learned is not None:
        shutil.copyfile(learned, folder / ENCODER)
    if model is not None and Path(model).is_dir():
        if not list(Path(model).rglob("*.safetensors")):
            raise DataError(f"the text encoder {model} has no weights as safetensors, and a pickle is not published.")
        shutil.copytree(model, folder / _MODEL, ignore=_left_out)
        text = text | {"init_args": text["init_args"] | {"model": _MODEL}}
    (folder / CONFIG).write_text(json.dumps(text, indent=2) + "\n")


def _left_out(folder: str, names: list[str]) -> list[str]:
    """What copytree passes over."""
    return [name for name in names if not (Path(folder) / name).is_dir() and Path(name).suffix not in _PLAIN]


# --------------------------------------------------------------------------------------------------------------- reading
def read_published(path: Path) -> Trained:
    """Read a published folder.

    Raises:
        ConfigError: a file is missing, damaged or of another format.
    """
    try:
        config = json.loads((path / CONFIG).read_text())
        if config["format"] != _FORMAT:
            raise ValueError(f"its format is {config['format']}, this version reads {_FORMAT}")
        for name, expected in config["files"].items():
            if file_hash(path / name) != expected:
                raise ValueError(f"{name} is not the file that was published")
        table = pl.read_parquet(path / CATALOGUE)
        results = json.loads((path / RESULTS).read_text()) if RESULTS in config["files"] else None
        learned = path / ENCODERS / ENCODER
        return Trained(
            path=path,
            arguments=current_names(config["model"]),
            weights=load_file(path / WEIGHTS),
            origin=config["origin"],
            sizes=config["backbone_sizes"],
            catalogue=_catalogue(config, table),
            items=table.drop(
                [name for name in table.columns if name == VECTOR or name.startswith(("cf_", "present_"))]
            ),
            max_history=config["max_history"],
            text=_read_encoder(path / ENCODERS),
            encoder=learned if learned.is_file() else None,
            data=None,
            results=results,
            statistics=_read_counts(path / NEIGHBOURS) if NEIGHBOURS in config["files"] else None,
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{path} is no published model that can be read ({str(error).splitlines()[0]}).") from None


def _catalogue(config: dict[str, Any], table: pl.DataFrame) -> Catalogue:
    def matrix(name: str) -> Tensor:
        rows: Any = table[name].to_numpy()  # (N, width), or N rows where another program has rewritten the file
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
    )


def _read_encoder(folder: Path) -> dict[str, Any] | None:
    """The encoder's specification, its model's folder as it is found here."""
    if not (folder / CONFIG).is_file():
        return None
    text = current_names(json.loads((folder / CONFIG).read_text()))
    if (folder / _MODEL).is_dir():
        text["init_args"]["model"] = str(folder / _MODEL)
    return text
