"""The data of a run: prepared once, then read in batches for training, validation, test and prediction."""

import re
from pathlib import Path

import numpy as np
import torch
from jsonargparse import lazy_instance
from lightning.pytorch import LightningDataModule
from torch import Tensor

from setrec.cf import CFVectors, CooccurrenceSVD
from setrec.data.batches import BatchLoader, EvalPlan, EvalRows, TrainPlan, TrainRows
from setrec.data.catalogue import Catalogue, Histories
from setrec.data.clean import Cleaning
from setrec.data.current import say_what_changed
from setrec.data.engines import Engine, PolarsEngine
from setrec.data.kinds import Kinds
from setrec.data.past import PastEvents, past_events
from setrec.data.preparation import Preparation, VectorType
from setrec.data.prepare import prepare
from setrec.data.readers.base import Reader
from setrec.data.readers.official import OfficialRelease
from setrec.data.split import Split, TimeRatioSplit
from setrec.data.store import check_prepared
from setrec.errors import ConfigError, DataError
from setrec.hparams import instantiate_default, save_plain_hyperparameters
from setrec.schemas import EvalSplit, FitOn
from setrec.text import TextVectors, TfidfSVD
from setrec.vectors import ItemVectors

# Defaults that the command line can show and change field by field; `instantiate_default` makes the instances.
_OFFICIAL, _TFIDF, _BY_TIME = lazy_instance(OfficialRelease), lazy_instance(TfidfSVD), lazy_instance(TimeRatioSplit)
_POLARS = lazy_instance(PolarsEngine)
_CLEANING, _ALL_KINDS = Cleaning(), Kinds()
# names of sources; those of CF and text slots are taken
_NAME, _TAKEN = re.compile(r"[A-Za-z]\w{0,39}", re.ASCII), re.compile(r"(text|cf|sem)(_\d+)?")


class SETRecDataModule(LightningDataModule):
    """Prepared data and its batches. After setup() it has a `catalogue` and `histories`.

    Args:
        name: name of the data set. Its prepared data is in <root>/<name>.
        reader: what reads the raw files: TableFiles, AmazonReviews, SteamReviews, RecBoleFiles, OfficialRelease, or
            SyntheticWorld, which makes its own data.
        text: what makes the text vectors of the items: TextFile for a file of the release, TfidfSVD without any download;
            null: a data set without text (the model then needs n_sem 0).
        cf: what makes the CF vectors, one entry per CF slot (paper: one, CFFile with the released SASRec); null: one
            CooccurrenceSVD; []: none (the model then needs n_cf 0).
        vectors: further sources of item tokens by name, such as vectors of images or of one field of the text: FileVectors,
            FieldText, or any class that text or cf takes. Each is a part of the score; --model.tokens says how many slots it
            has (docs/vectors.md). null: none.
        cleaning: what happens to raw events before the split. A data set that comes with its splits is not cleaned.
        split: how raw events are split. A data set that comes with its splits keeps them.
        paper_ids: give ids as the official release does (items shuffled with seed 2023, users by first appearance), which
            depends on the order of the raw rows. Otherwise ids are in order of the own ids, which does not.
        vector_dtype: how vectors are stored and, since they are memory-mapped, held: float16 takes half of the disk and memory, and
            rounds every number to 3 digits. Training and scores compute in float32 either way.
        engine: what cleans and splits raw events: PolarsEngine in memory, DuckDBEngine on the disk, SparkEngine on a cluster. The
            prepared data is the same (docs/scaling.md).
        raw: folder of the raw files; null: use what is prepared, or download what the reader knows a public source of, to
            <root>/raw/<name>. A file of 64 MiB or more counts as unchanged while its size and time of change are the same.
        root: folder for prepared data.
        prepared_only: read prepared data as it is; prepare, download and write nothing. This is how the data of a checkpoint is
            read, unless the command line itself says how to prepare data (docs/training.md).
        max_history: the model sees this many items of a history at most, the last ones (paper: 50).
        batch_size: prefixes in a training batch, all processes together (paper: 512).
        eval_batch_size: users in a batch of validation, test and prediction. It changes scores by rounding only.
        prefix_parallel: true: train all prefixes of a history in one row, the fastest; a number: spread them over this many
            rows, so that a batch holds prefixes of more users, for at most (number + 1) / 2 times the work; false: one row per
            prefix, as in the paper. The loss of a prefix is always the same (docs/scaling.md).
        fit_on: what a model is fitted to. train: the training items; validation: the validation items, each after the user's
            training items, for a model that was fitted to train before (see the command `refit`).
        kinds: which kinds of events are read, and which are to be predicted.
        replay: with data that `update` made, train on the new events and on all events of this share of the other users, so that
            what was learned before is not forgotten; null: on all events.
        seed: of the order of training batches.
        num_workers: processes that make batches ahead; 0: the main process makes them, which is fast enough.
        pin_memory: page-locked batches, which go to a GPU without waiting; null: if there is a GPU.
    """

    catalogue: Catalogue
    histories: Histories
    validation_passes = 1  # over the users; a model with weights to choose asks for two
    ahead = 1  # targets of a training prefix, at most; a model may ask for more
    needs_test = False  # a test follows the fit, so a split without test targets is refused before

    def __init__(
        self,
        name: str = "toys",
        reader: Reader = _OFFICIAL,
        text: TextVectors | None = _TFIDF,
        cf: list[CFVectors] | None = None,
        *,
        vectors: dict[str, ItemVectors] | None = None,
        cleaning: Cleaning = _CLEANING,
        split: Split = _BY_TIME,
        paper_ids: bool = False,
        vector_dtype: VectorType = "float32",
        engine: Engine = _POLARS,
        raw: str | None = None,
        root: str = "data",
        prepared_only: bool = False,
        max_history: int = 50,
        batch_size: int = 512,
        eval_batch_size: int = 128,
        prefix_parallel: bool | int = True,
        fit_on: FitOn = "train",
        kinds: Kinds = _ALL_KINDS,
        replay: float | None = None,
        seed: int = 2023,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        sizes = {"max_history": max_history, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        if not isinstance(prefix_parallel, bool):
            sizes["prefix_parallel"] = prefix_parallel
        for option, value in sizes.items():
            if value < 1:
                raise ConfigError(f"--data.{option} is {value}; it must be 1 or more.")
        if not name or Path(name).name != name or name.startswith("."):
            raise ConfigError(f"--data.name {name!r} must be a plain folder name: no /, no dot at the start.")
        for own in vectors or {}:
            if not _NAME.fullmatch(own) or _TAKEN.fullmatch(own):
                raise ConfigError(
                    f"--data.vectors: {own!r} can't be a name: take letters, digits and _, a letter first, and not text, cf or sem."
                )
        reader, text, split = instantiate_default(reader), instantiate_default(text), instantiate_default(split)
        engine = instantiate_default(engine)
        arguments = {
            "name": name, "reader": reader, "text": text, "cf": cf, "vectors": vectors, "cleaning": cleaning,
            "split": split, "paper_ids": paper_ids, "vector_dtype": vector_dtype, "engine": engine, "raw": raw, "root": root,
            "prepared_only": prepared_only, "max_history": max_history, "batch_size": batch_size,
            "eval_batch_size": eval_batch_size, "prefix_parallel": prefix_parallel, "fit_on": fit_on, "kinds": kinds,
            "replay": replay, "seed": seed, "num_workers": num_workers, "pin_memory": pin_memory,
        }  # fmt: skip
        save_plain_hyperparameters(self, arguments)
        self.preparation = Preparation(
            reader,
            text,
            [CooccurrenceSVD()] if cf is None else cf,
            cleaning,
            split,
            paper_ids,
            vector_dtype,
            vectors or {},
            engine,
        )
        self.name, self.raw, self.root, self.prepared_only = name, raw, root, prepared_only
        self.max_history, self.batch_size, self.eval_batch_size = max_history, batch_size, eval_batch_size
        self.prefix_parallel, self.fit_on, self.seed = prefix_parallel, fit_on, seed
        self.kinds, self.replay = kinds, replay
        self.num_workers = num_workers
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory

    @property
    def folder(self) -> Path:
        """The folder of the prepared data: <root>/<name>."""
        return Path(self.root) / str(self.name)

    def prepare_data(self) -> None:
        """Prepare the data, if needed. Several processes may call it at once.

        A model that a Trainer is about to use says in `trained_on` what its weights were trained on. Prepared data is not replaced
        by other data than this.

        Raises:
            DataError: see `setrec.data.prepare.prepare`; with `prepared_only`, see `check_prepared`.
            ConfigError: see `prepare`.
        """
        if self.prepared_only:
            check_prepared(self.folder)
            say_what_changed(self.folder)
            return
        raw = Path(self.raw) if self.raw is not None else None
        model = self.trainer.lightning_module if self.trainer is not None else None
        prepare(str(self.name), self.folder, self.preparation, raw, getattr(model, "trained_on", None))

    def setup(self, stage: str | None = None) -> None:
        """Load the prepared data, once.

        Raises:
            DataError: the data is not prepared, or damaged, or has no targets for a test that is to follow.
            ConfigError: `kinds` names a kind of event that the data does not have.
        """
        if not hasattr(self, "catalogue"):
            catalogue = Catalogue.load(self.folder)
            self.histories = self.kinds.apply(Histories.load(self.folder))
            self.catalogue = catalogue
        if self.needs_test:
            self.test_dataloader()

    def train_dataloader(self) -> BatchLoader:
        """Batches that hold every training prefix once per epoch. `fit_on` says which prefixes those are."""
        h = self.histories
        until: EvalSplit = "validation" if self.fit_on == "train" else "test"  # the split that training ends before
        since = self._since() if self.fit_on == "train" else h.train.lengths
        wanted = h.beside("wanted", until)
        rows = TrainRows(h.past(until), self.max_history, self.prefix_parallel, since, wanted, self.ahead)
        plan = TrainPlan(rows.prefixes, rows.history, self.batch_size, self.seed)
        return BatchLoader(rows, plan, self.num_workers, self.pin_memory)

    def _since(self) -> np.ndarray | None:
        """The first item of each user that is a target in training, (users,) int64; None: all are."""
        since = self.histories.since
        if self.replay is None or since is None:
            return None
        replayed = np.random.default_rng(self.seed).random(len(since)) < self.replay  # (users,)
        return np.where(replayed, 0, since)

    def val_dataloader(self) -> list[BatchLoader]:
        """Users with validation items: the history is train, the targets are validation. One loader for each pass."""
        return [self._evaluate("validation") for _ in range(self.validation_passes)]

    def test_dataloader(self) -> BatchLoader:
        """Batches of users with test items: the history is train + validation, the targets are test."""
        return self._evaluate("test")

    def predict_dataloader(self) -> BatchLoader:
        """Batches of all users, with the history of test_dataloader. Users without test items have only padding as targets."""
        return self._evaluate("test", everyone=True)

    def past_events(self, split: EvalSplit) -> PastEvents:
        """Return what may be counted when a split is evaluated."""
        return past_events(self.histories, self.catalogue.n_items, split)

    @property
    def targets(self) -> Tensor:
        """(N,) bool: the items that can be a target in training."""
        warm, h = self.catalogue.warm, self.histories  # (N,)
        if self.kinds.choose:
            warm = torch.from_numpy(np.bincount(h.targets("train").items, minlength=len(warm)) > 0)  # (N,)
        if self.fit_on == "train":
            return warm
        later = np.bincount(h.targets("validation").items, minlength=len(warm)) > 0  # (N,)
        return warm | torch.from_numpy(later)

    def _evaluate(self, split: EvalSplit, everyone: bool = False) -> BatchLoader:
        h = self.histories
        targets = h.targets(split)
        rows = EvalRows(h.past(split), targets, self.max_history, wanted=h.beside("wanted", split))
        users = np.arange(len(rows)) if everyone else np.flatnonzero(targets.lengths)
        if not len(users):
            raise DataError(f"{self.folder} has no user with anything to predict in this split; change --data.split.")
        plan = EvalPlan(users, rows.shown[users], self.eval_batch_size)
        return BatchLoader(rows, plan, self.num_workers, self.pin_memory)
