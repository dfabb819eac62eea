"""From a checkpoint on the disk to a model that scores a catalogue, without Lightning."""

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from safetensors import safe_open
from torch import Tensor

from setrec.backbones.base import Backbone
from setrec.data.catalogue import CF, ENCODER, HISTORIES, ITEMS, TEXT, USERS, VECTORS, Catalogue, Histories
from setrec.data.kinds import Kinds
from setrec.data.past import past_events
from setrec.data.store import check_prepared
from setrec.errors import ConfigError, DataError
from setrec.files.checkpoint import SETREC, read_checkpoint
from setrec.files.hashes import read_sealed
from setrec.hparams import instantiate
from setrec.model import SETRec
from setrec.recipe import Recipe
from setrec.scoring.graphs import PAIRS, Before, HistoryStatistics, Pairs, history_statistics, item_graphs
from setrec.scoring.scorer import Scorer
from setrec.scoring.text_graphs import TextNeighbours, text_neighbours
from setrec.scoring.weights import Weights, state_of, weights_of

log = logging.getLogger(__name__)

# arguments of SETRecModule for training and ranking; `Recipe` holds those of the model itself
TRAINING = frozenset(
    {"backbone", "lr", "alpha", "compile", "start_from", "warmup_steps", "weight_decay", "filter_seen", "top_k"}
)


class Trained(NamedTuple):
    """What a checkpoint or a published folder holds."""

    path: Path  # the checkpoint or the published folder
    arguments: dict[str, Any]  # of SETRecModule, in plain types
    weights: dict[str, Tensor]  # its state_dict
    origin: dict[str, Any]  # the frozen base that the weights leave out; {} without one
    sizes: dict[str, Any] | None  # of the backbone, if `weights` holds all of its weights; see `Backbone.sizes`
    catalogue: Catalogue  # as in training
    items: pl.DataFrame  # the table of its items: id, title, text, count, warm and further columns
    max_history: int  # the model reads this many items of a history, the last ones
    text: dict[str, Any] | None  # the text encoder: {"class_path", "init_args"}
    encoder: Path | None  # the file with what the encoder learned
    data: Path | None  # the folder of the prepared data; None for a published folder
    results: dict[str, Any] | None  # the content of results.json
    statistics: HistoryStatistics | None  # co-occurrence and recency, if the model uses item graphs
    kinds: Kinds = Kinds()  # which kinds of events are read
    vectors: dict[str, dict[str, Any]] = {}  # noqa: RUF012  (never changed) makers of further sources, by name, as `text`
    learned: Path | None = None  # the file with what they learned, NAME.learned.KEY

    def learned_of(self, source: str) -> dict[str, np.ndarray]:
        """What the maker of a further source learned in training."""
        if self.learned is None:
            return {}
        first = f"{source}.learned."
        with safe_open(self.learned, framework="np") as file:
            names = [name for name in file.keys() if name.startswith(first)]  # noqa: SIM118  (not a dict)
            return {name.removeprefix(first): file.get_tensor(name) for name in names}


def read_trained(path: Path, data: Path | None = None) -> Trained:
    """Read a checkpoint that `fit` wrote, and the prepared data that it names.

    Args:
        path: a .ckpt file.
        data: the folder of the prepared data, if it has moved since.

    Raises:
        ConfigError: the file is not a SETRec checkpoint, or belongs to other data.
        DataError: the prepared data is not there, or was changed.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a sharded checkpoint: train with save_distributed_checkpoint false for one file.")
    checkpoint = read_checkpoint(path)
    if checkpoint.model_class != SETREC:
        kind = checkpoint.model_class.rpartition(".")[2].removesuffix("Module")
        raise ConfigError(
            f"{path} is a {kind} checkpoint, and this command takes SETRec checkpoints only: train SETRec on its vectors with "
            "--data.cf=[CFFile], or rank the users of the data with predict."
        )
    arguments = checkpoint.data
    folder = data or Path(arguments["root"]) / arguments["name"]
    if not folder.is_dir():
        raise DataError(
            f"the prepared data of {path} is not at {folder}: go to the folder where it was trained, or name the prepared "
            "folder with --data DIR."
        )
    neighbours, pairs = bool(checkpoint.model.get("neighbours")), PAIRS[checkpoint.model.get("pairs", "near")]
    check_prepared(folder, [ITEMS, TEXT, CF, VECTORS, ENCODER, *([USERS, HISTORIES] if neighbours else [])])
    trained_on = checkpoint.catalogue
    catalogue = replace(Catalogue.load(folder), name=trained_on["name"])
    catalogue.check(trained_on, f"The checkpoint {path}")
    # versions of the catalogue name it as the checkpoint does; the one here may differ by rounding
    catalogue = replace(catalogue, fingerprint=trained_on["fingerprint"])
    state, kinds = folder / ENCODER, Kinds(**arguments.get("kinds", {}))
    return Trained(
        path=path,
        arguments=checkpoint.model,
        weights=checkpoint.weights,
        origin=checkpoint.origin,
        sizes=None,
        catalogue=catalogue,
        items=pl.read_parquet(folder / ITEMS).drop("item_id"),
        max_history=arguments["max_history"],
        text=arguments["text"],
        encoder=state if state.is_file() else None,
        data=folder,
        results=results_of(path.parent.parent / "results.json", trained_on["name"]),
        statistics=_statistics(folder, catalogue.n_items, kinds, pairs) if neighbours else None,
        kinds=kinds,
        vectors=arguments.get("vectors") or {},
        learned=folder / VECTORS if (folder / VECTORS).is_file() else None,
    )


def results_of(path: Path, dataset: str) -> dict[str, Any] | None:
    """Read results.json. None if there is none, if it is of another data set, or, with a warning, if it cannot be read."""
    if not path.exists():
        return None
    try:
        results = read_sealed(path)
        return results if results["protocol"]["dataset"] == dataset else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s is damaged, or no results file (%s): the model is loaded without figures.", path, error)
        return None


def _statistics(folder: Path, n_items: int, kinds: Kinds, pairs: Pairs) -> HistoryStatistics:
    """Co-occurrence and recency from train and validation, as the test step uses them."""
    return history_statistics(past_events(kinds.apply(Histories.load(folder)), n_items, "test"), n_items, pairs)


def instance_of(arguments: dict[str, Any], base: type) -> Any:
    """Make the object that {"class_path", "init_args"} from a file describes.

    Raises:
        ConfigError: the class is not a `base`, or does not have these arguments.
    """
    try:
        made = instantiate({"init_args": {}} | arguments | {"class_path": arguments.get("class_path")}, base)
    except TypeError as error:
        raise ConfigError(
            f"{arguments.get('class_path')}: {error}; it was saved by another version of this project."
        ) from None
    return made


class Restored(NamedTuple):
    """A trained model with a catalogue, ready to score."""

    model: SETRec
    scorer: Scorer
    weights: Weights  # of the score, as validation chose them
    texts: TextNeighbours | None = None  # the neighbours by text, if the model uses item graphs and texts
    kinds: Kinds = Kinds()  # which kinds of events are read

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.queries.device

    def state_dict(self) -> dict[str, Tensor]:
        """The weights under the names that checkpoints give them."""
        return {f"model.{name}": value for name, value in self.model.state_dict().items()} | state_of(self.weights)


def build(trained: Trained, catalogue: Catalogue, device: torch.device, ngrams_of_all: bool = False) -> Restored:
    """Build the trained model for a catalogue.

    Args:
        trained: the arguments and the weights.
        catalogue: the one of the training, or one with other items and vectors of the same widths.
        device: where the model computes.
        ngrams_of_all: see `Changes`.

    Raises:
        ConfigError: the weights do not fit the arguments, or the frozen base is another one.
    """
    backbone = instance_of(trained.arguments["backbone"], Backbone)
    backbone.saved_sizes = trained.sizes
    model = SETRec(catalogue, backbone, recipe_of(trained))
    backbone.check_origin(trained.origin)
    weights = {name: value for name, value in trained.weights.items() if name.startswith("model.")}
    of_score = state_of(weights_of(trained.weights)).keys() | {"cold_weight"}
    others = trained.weights.keys() - weights.keys() - of_score
    try:
        if others:
            raise RuntimeError(f"unexpected weights {', '.join(sorted(others))}")
        model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    except RuntimeError as error:
        raise ConfigError(
            f"{trained.path}: its weights do not fit its own arguments ({' '.join(str(error).split())[:200]}); it is "
            "damaged, or of another version of this project."
        ) from None
    texts = None
    if trained.statistics is not None and model.n_sem:
        texts = text_neighbours(trained.catalogue, trained.data)
    return _ready(model, weights_of(trained.weights), trained, catalogue, device, texts, ngrams_of_all)


def rebuild(restored: Restored, trained: Trained, catalogue: Catalogue, ngrams_of_all: bool = False) -> Restored:
    """Build the model for another catalogue. It shares its weights with `restored`, which does not change."""
    model = SETRec(catalogue, restored.model.backbone, restored.model.recipe)
    model.load_state_dict(restored.model.state_dict(), assign=True)
    graphs, before = restored.scorer.graphs, None
    if graphs is not None and restored.texts is not None:
        before = Before(graphs, rows_of(restored.texts.catalogue, catalogue))
    return _ready(model, restored.weights, trained, catalogue, restored.device, restored.texts, ngrams_of_all, before)


def recipe_of(trained: Trained) -> Recipe:
    """The arguments of the model itself.

    Raises:
        ConfigError: an argument is unknown.
    """
    names = {field.name for field in fields(Recipe)}
    for name in trained.arguments:
        if name not in names | TRAINING:
            raise ConfigError(
                f"{trained.path}: unexpected argument {name!r}; it was saved by another version of this project."
            )
    chosen = {name: value for name, value in trained.arguments.items() if name in names}
    return Recipe(**chosen | ({"trunk": tuple(chosen["trunk"])} if "trunk" in chosen else {}))


def _ready(
    model: SETRec,
    weights: Weights,
    trained: Trained,
    catalogue: Catalogue,
    device: torch.device,
    texts: TextNeighbours | None,
    ngrams_of_all: bool,
    before: Before | None = None,
) -> Restored:
    """Put the model into evaluation mode, on the device, with its index and graphs.

    Parameters are not frozen here, because a state_dict leaves out frozen ones. texts: of this catalogue, or of
    one with other items.
    """
    model.eval().to(device)
    graphs = None
    if trained.statistics is not None:
        statistics = trained.statistics.moved(rows_of(trained.catalogue, catalogue))
        if texts is not None:
            texts = TextNeighbours(catalogue) if ngrams_of_all else texts.changed(catalogue)
        pairs = PAIRS[model.recipe.pairs]
        text = None if texts is None else texts.graphs
        graphs = item_graphs(statistics, pairs, text, catalogue.warm, device, before)
    scorer = Scorer(model, graphs)
    scorer.refresh()
    return Restored(model, scorer, weights, texts, trained.kinds)


def rows_of(base: Catalogue, catalogue: Catalogue) -> Tensor:
    """The row of each item in the base catalogue, (N',) int64; -1 for an added item."""
    row = {own: i for i, own in enumerate(base.ids)}
    return torch.tensor([row.get(own, -1) for own in catalogue.ids])
