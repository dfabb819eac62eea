"""A checkpoint on the disk -> a model that scores a catalogue, without a Trainer."""

import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from torch import Tensor

from setrec.backbones import Backbone
from setrec.data.catalogue import ENCODER, ITEMS, Catalogue, Histories
from setrec.data.known import known
from setrec.errors import ConfigError, DataError
from setrec.module import SETRecModule
from setrec.neighbours import Counted, count
from setrec.ranking import RankingModule
from setrec.sasrec import SASRecModule

MODELS: dict[str, type[RankingModule]] = {
    f"{model.__module__}.{model.__qualname__}": model for model in (SETRecModule, SASRecModule)
}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint knows: {"model_class": type, "model": arguments, "data": arguments}.

    Raises:
        ConfigError: the file isn't a checkpoint of this project, or needs more than weights and plain types.
    """
    checkpoint = _whole(path)
    return {key: checkpoint[key] for key in ("model_class", "model", "data")}


def _whole(path: Path) -> dict[str, Any]:
    """A checkpoint's content, its arguments under the names of `read_checkpoint`; same errors."""
    try:
        file = path / "meta.pt" if path.is_dir() else path
        checkpoint = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
        checkpoint["model"] = dict(checkpoint["hyper_parameters"])
        checkpoint["data"] = dict(checkpoint["datamodule_hyper_parameters"])
        checkpoint["model_class"] = MODELS[checkpoint.get("model_class", "setrec.module.SETRecModule")]
    except Exception as error:  # whatever is wrong with the file, one sentence says so and names it
        raise ConfigError(
            f"--ckpt_path {path} is not a checkpoint of this project ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); give the path that fit printed at its end."
        ) from error
    for arguments in (checkpoint["model"], checkpoint["data"]):
        for key in ("_class_path", "_instantiator"):
            arguments.pop(key, None)
    return checkpoint


class Trained(NamedTuple):
    """What training leaves behind and recommending needs."""

    path: Path  # the checkpoint or the published folder
    arguments: dict[str, Any]  # of SETRecModule, in plain types
    weights: dict[str, Tensor]  # its state_dict
    origin: dict[str, Any]  # of the frozen base that the weights leave out; {} without one
    sizes: dict[str, Any] | None  # of the backbone, where all its weights are among `weights`; see `Backbone.sizes`
    catalogue: Catalogue  # as in training
    items: pl.DataFrame  # its table: id, title, text, count, warm and what else was prepared
    max_history: int
    text: dict[str, Any] | None  # the text encoder: {"class_path", "init_args"}
    encoder: Path | None  # the file with what the encoder learned
    data: Path | None  # the prepared folder; None in a published folder
    results: dict[str, Any] | None  # results.json
    counted: Counted | None  # what the model weighs beside its slots, over the catalogue of training


def read_trained(path: Path, data: Path | None = None) -> Trained:
    """Read a checkpoint of fit, and the prepared data that it names.

    Args:
        path: a .ckpt file.
        data: the folder of prepared data, where it has moved since.

    Raises:
        ConfigError: no checkpoint of SETRec, or one of other data.
        DataError: its prepared data is not there.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a sharded checkpoint: train with save_distributed_checkpoint false for one file.")
    checkpoint = _whole(path)
    if checkpoint["model_class"] is not SETRecModule:
        raise ConfigError(
            f"{path} is a {checkpoint['model_class'].label} checkpoint: recommend, add-items, publish and serve take SETRec "
            "checkpoints only; train SETRec on its vectors with --data.cf=[CFFile], or rank its test users with predict."
        )
    arguments = checkpoint["data"]
    folder = data or Path(arguments["root"]) / arguments["name"]
    if not folder.is_dir():
        raise DataError(
            f"the prepared data of {path} is not at {folder}: go to the folder where it was trained, or name the prepared "
            "folder with --data DIR."
        )
    catalogue = Catalogue.load(folder)
    trained_on = checkpoint["catalogue"]
    if trained_on["fingerprint"] != catalogue.fingerprint:
        raise ConfigError(
            f"The checkpoint {path} was trained on the data set {trained_on['name']!r} "
            f"({trained_on['fingerprint'][:12]}), but {folder} holds {catalogue.name!r} ({catalogue.fingerprint[:12]}): "
            "item ids and vectors would not match. Prepare its own data again."
        )
    state = folder / ENCODER
    return Trained(
        path=path,
        arguments=checkpoint["model"],
        weights=checkpoint["state_dict"],
        origin=checkpoint.get("backbone", {}),
        sizes=None,
        catalogue=catalogue,
        items=pl.read_parquet(folder / ITEMS).drop("item_id"),
        max_history=arguments["max_history"],
        text=arguments["text"],
        encoder=state if state.is_file() else None,
        data=folder,
        results=results_of(path.parent.parent / "results.json", trained_on["name"]),
        counted=count(known(Histories.load(folder), catalogue.n_items, "test"), catalogue.n_items)
        if checkpoint["model"].get("neighbours")
        else None,
    )


def results_of(path: Path, dataset: str) -> dict[str, Any] | None:
    """A results.json, None where there is none or it is of another data set."""
    try:
        results = json.loads(path.read_text())
        return results if results["protocol"]["dataset"] == dataset else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def instance_of(spec: dict[str, Any], base: type) -> Any:
    """The object that {"class_path", "init_args"} names, if it is a `base`: checkpoints come from anywhere.

    Raises:
        ConfigError: it names something else, or arguments that the class doesn't have.
    """
    name = str(spec.get("class_path"))
    module, _, own = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), own) if module.isidentifier() or "." in module else None
    except (ImportError, AttributeError, ValueError):
        found = None
    if not isinstance(found, type) or not issubclass(found, base):
        raise ConfigError(f"{name!r} is no {base.__name__} that is installed here: install the package it comes from.")
    try:
        return found(**spec.get("init_args", {}))
    except TypeError as error:
        raise ConfigError(f"{name}: {error}; it was saved by another version of this project.") from None


def build(trained: Trained, catalogue: Catalogue, device: torch.device) -> SETRecModule:
    """The trained model over a catalogue, ready to score.

    Args:
        trained: the weights and what made them.
        catalogue: the one of training, or one with other items and vectors of the same widths.
        device: where it computes.

    Raises:
        ConfigError: the weights do not fit the arguments, or the frozen base is another one.
    """
    backbone = instance_of(trained.arguments["backbone"], Backbone)
    backbone.blueprint = trained.sizes
    module = _module(trained, backbone)
    module.model = module.make_model(catalogue)
    backbone.check_origin(trained.origin)
    try:
        module.load_state_dict(trained.weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{trained.path}: its weights do not fit its own arguments ({' '.join(str(error).split())[:200]}); it is "
            "damaged, or of another version of this project."
        ) from None
    return _ready(module, trained, catalogue, device)


def rebuild(module: SETRecModule, trained: Trained, catalogue: Catalogue) -> SETRecModule:
    """The same weights, shared and not copied, over another catalogue; `module` goes on as it is."""
    other = _module(trained, module.backbone_settings[0])
    other.model = other.make_model(catalogue)
    other.load_state_dict(module.state_dict(), assign=True)
    return _ready(other, trained, catalogue, module.device)


def _module(trained: Trained, backbone: Backbone) -> SETRecModule:
    try:
        return SETRecModule(**(trained.arguments | {"backbone": backbone}))
    except TypeError as error:
        raise ConfigError(f"{trained.path}: {error}; it was saved by another version of this project.") from None


def _ready(module: SETRecModule, trained: Trained, catalogue: Catalogue, device: torch.device) -> SETRecModule:
    """In evaluation, on the device, with its index. Not frozen: its state_dict leaves out what is."""
    module.eval().to(device)
    if trained.counted is not None:
        module.know_items(catalogue, trained.counted.moved(rows_of(trained.catalogue, catalogue)))
    module.refresh()
    return module


def rows_of(base: Catalogue, catalogue: Catalogue) -> Tensor:
    """(N',) int64: each item's row in another version of its catalogue, -1 where it has none."""
    row = {own: i for i, own in enumerate(base.ids)}
    return torch.tensor([row.get(own, -1) for own in catalogue.ids])
