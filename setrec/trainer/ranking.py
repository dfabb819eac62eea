"""Validate, test and predict, for every model that scores the catalogue.

SETRec and SASRec derive from `RankingModule` and define how they score a batch of histories. The evaluation is here: all users,
all groups of items, every weighting from one forward pass, the baselines, and one table at the end.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from setrec.class_names import public_name
from setrec.data.batches import BatchLoader
from setrec.data.catalogue import Catalogue
from setrec.data.clean import Cleaning
from setrec.data.datamodule import SETRecDataModule
from setrec.data.kinds import Kinds
from setrec.data.split import LeaveOneOut
from setrec.errors import ConfigError
from setrec.evaluation.comparison import Comparison, MethodFigures
from setrec.evaluation.metrics import RankingMetrics
from setrec.evaluation.per_user import per_user_paths, write_hits, write_per_user
from setrec.evaluation.provenance import provenance
from setrec.evaluation.ranking_table import RankingTable, group_targets
from setrec.evaluation.results import LEAVE_ONE_OUT, MODEL, RESULTS, Protocol, make_results, print_table, write_results
from setrec.evaluation.rivals import Rival, check_rivals
from setrec.evaluation.weight_search import WeightSearch
from setrec.files.checkpoint import Checkpoint, read_checkpoint
from setrec.files.hashes import file_hash
from setrec.hparams import instantiate, plain_hparams
from setrec.schemas import GROUPS, PAD, Batch, EvalSplit
from setrec.scoring.topk import CUTOFFS, mask_seen, top_groups, top_items
from setrec.scoring.weights import Weights
from setrec.trainer.resume import check_batches, check_weights, go_on, path_of_checkpoint, set_rates
from setrec.trainer.run_folder import folder_of
from setrec.trainer.trackers import log_beta_curve, log_figures, log_results

BEST_AT = 10  # weights are chosen by recall at this length


class Predictions(NamedTuple):
    """Ranked items of a batch of users."""

    user: Tensor  # (B,) int64
    item: Tensor  # (B, k) int64, best first, -1 where there are fewer candidates
    score: Tensor  # (B, k) float


class RankingModule(LightningModule):
    """A LightningModule that scores histories against the catalogue.

    Args:
        filter_seen: Leave the items of the user's own history out of the ranking in validation, test and predict.
            The paper ranks them too; `test` reports the figures with and without them.
        top_k: Items that predict lists for each user.
    """

    label: str  # the model's row in the table
    lr: float
    weight_decay: float
    start_from: str | None = None  # a checkpoint whose weights a fit starts from

    def __init__(self, filter_seen: bool, top_k: int) -> None:
        super().__init__()
        self.filter_seen = filter_seen
        self.top_k = top_k
        self.weights_chosen = False  # by validation; in the checkpoint
        self.results_path: Path | None = None  # of the last test or validation
        self._own_data: SETRecDataModule | None = None  # of `load_from_checkpoint`
        self._made_for: Catalogue | None = None
        self._resumed: dict[str, Any] | None = None  # how far a run is that is resumed; until it starts
        self.rivals: Sequence[Rival] = ()  # what `test` and `validate` compare with, beside the baselines
        self.origin: dict[str, Any] | None = None  # the run that the weights come from, see `provenance`

    def setup(self, stage: str) -> None:
        """Check that the rivals can be computed, before hours of training.

        Raises:
            ConfigError: see `check_rivals`.
        """
        check_rivals(self.rivals, self.data.catalogue.n_items)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        datamodule: SETRecDataModule | None = None,
        **options: Any,
    ) -> Self:
        """Make the model of a checkpoint, ready to score, to be tested, or to be trained further.

        Args:
            checkpoint_path: a checkpoint of fit.
            map_location: the device of the model.
            datamodule: the data that the model was trained on; None: the prepared data that the checkpoint names.
            **options: options of the model that differ from those in the checkpoint.

        Raises:
            ConfigError: the file is no checkpoint of this class, or of other data.
            DataError: the prepared data is not there.
        """
        found = read_checkpoint(Path(checkpoint_path))
        if Path(checkpoint_path).is_dir():
            raise ConfigError(
                f"{checkpoint_path} is a sharded checkpoint: train with save_distributed_checkpoint false."
            )
        if found.model_class != public_name(cls):
            raise ConfigError(f"{checkpoint_path} holds a {found.model_class}, not a {public_name(cls)}.")
        module = cls(**{name: instantiate(value) for name, value in found.model.items()} | options)
        module._own_data = datamodule or data_of(found)
        module._own_data.setup()
        module.configure_model()
        checkpoint = torch.load(checkpoint_path, weights_only=True, map_location="cpu")
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        return module.to(map_location).eval()

    # ------------------------------------------------------------------------------------------ every model defines
    @abstractmethod
    def prepare_scoring(self, split: EvalSplit) -> None:
        """Prepare scoring: an index from the weights as they are now, and item graphs counted for this split."""

    @abstractmethod
    def score(self, batch: Batch) -> Tensor:
        """The scores, (B, N), under the weights that validation chose."""

    # --------------------------------------------------------------------- models with counted parts define these too
    @property
    def counts(self) -> bool:
        """Whether the score has parts that are counted in histories and not learned."""
        return False

    def score_in_train(self, batch: Batch) -> Tensor:
        """The scores for test, (B, N), with nothing counted but training items."""
        raise NotImplementedError  # a model without counted parts is never asked

    # ---------------------------------------------------------------- models with weights to choose define these too
    @property
    def chosen(self) -> Weights:
        """The weights that validation chose."""
        return Weights(beta=0.0)

    def weightings(self) -> Sequence[Weights]:
        """The weightings that validation chooses from."""
        return [self.chosen]

    def hits(self, batch: Batch, target: Tensor, seen: Tensor, grid: Sequence[Weights], k: int) -> Tensor:
        """Targets of each user among the first k items under every weighting, (B, V) int64.

        target: (B, R) int64, distinct, padded; seen: (B, any) int64, items that are not ranked, padded.
        """
        raise NotImplementedError  # a model with one weighting is never asked

    def choose(self, weights: Weights) -> None:
        """Keep the weights that validation found best."""

    # --------------------------------------------------------------------------------------------------------- the data
    @property
    def data(self) -> SETRecDataModule:
        """The datamodule that the Trainer was given, or that `load_from_checkpoint` read.

        Raises:
            ConfigError: there is none.
        """
        data = getattr(self._trainer, "datamodule", None) or self._own_data
        if not isinstance(data, SETRecDataModule):
            raise ConfigError("This model needs a SETRecDataModule: pass it as `datamodule` to the Trainer.")
        return data

    def train_dataloader(self) -> BatchLoader:
        """The data's; the Trainer asks for it where it was given no datamodule."""
        return self.data.train_dataloader()

    def val_dataloader(self) -> list[BatchLoader]:
        """See `train_dataloader`."""
        return self.data.val_dataloader()

    def test_dataloader(self) -> BatchLoader:
        """See `train_dataloader`."""
        return self.data.test_dataloader()

    def predict_dataloader(self) -> BatchLoader:
        """See `train_dataloader`."""
        return self.data.predict_dataloader()

    @property
    def trained_on(self) -> Mapping[str, Any] | None:
        """What the weights that the Trainer is about to use were trained on, see `Identity`; None: nothing yet.

        The data asks before it replaces anything.

        Raises:
            ConfigError: see `read_checkpoint`.
        """
        resumed = path_of_checkpoint()
        if resumed and Path(resumed).exists():  # else Lightning says what is wrong
            return read_checkpoint(Path(resumed)).catalogue or None
        if self.trainer.state.fn == TrainerFn.FITTING and self.start_from is not None and not resumed:
            return read_checkpoint(Path(self.start_from)).catalogue or None
        if self._made_for is not None and self.data.folder.exists():
            return self._made_for.plain_identity()
        return None

    def check_catalogue(self) -> None:
        """Refuse data with another catalogue than the layers were made for; called before they are made.

        Raises:
            ConfigError: the model has been used with another catalogue.
        """
        made_for, here = self._made_for, self.data.catalogue
        if made_for is not None and made_for.fingerprint != here.fingerprint:
            raise ConfigError(
                f"This model was made for the data set {made_for.name!r} ({made_for.fingerprint[:12]}) and cannot go on with "
                f"{here.name!r} ({here.fingerprint[:12]}), whose items are others: make a new {type(self).__name__} for it."
            )
        self._made_for = here

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the name of the model's class, and the catalogue that the weights belong to."""
        catalogue = self.data.catalogue
        checkpoint["run"] = provenance(self.data.seed, self.origin)
        checkpoint["model_class"] = public_name(type(self))
        checkpoint["catalogue"] = catalogue.plain_identity()
        checkpoint["weights_chosen"] = self.weights_chosen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint was trained on this data set, and that it fits the options.

        Raises:
            ConfigError: it was trained on a catalogue with another fingerprint; see `check_weights` and `check_batches`.
        """
        self.origin = checkpoint.get("run")
        self.data.catalogue.check(checkpoint["catalogue"], "The checkpoint")
        check_weights(self, checkpoint)
        if (
            self._trainer is not None
            and self.trainer.state.fn == TrainerFn.FITTING
            and self.trainer.ckpt_path is not None
        ):
            check_batches(self.data, checkpoint)
            self._resumed = {"loops": checkpoint["loops"]}
        self.weights_chosen = checkpoint.get("weights_chosen", True)  # versions before wrote only what validation chose

    # --------------------------------------------------------------------------------------------------------- training
    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Seed dropout by (seed, step, process) only, so that a resumed run gives the same numbers to the bit.

        Lightning does not save the random state; this makes it unnecessary.
        """
        torch.manual_seed(self.data.seed * 1_000_003 + self.global_step * self.trainer.world_size + self.global_rank)

    def on_train_start(self) -> None:
        """Go on in a resumed run: with the batches that are left, and with the options given now."""
        if self._resumed is not None:
            go_on(self.trainer, self._resumed)
            set_rates(self.trainer, self.lr, self.weight_decay)
            self._resumed = None

    def mean_over_processes(self, counts: Tensor) -> Tensor:
        """The mean of counts over the processes: (n,) float -> (n,) float. A loss is divided by it.

        DDP divides the sum of the gradients by the number of processes, but the loss is a mean over prefixes, whose number
        differs from process to process. Local sums divided by the mean number of prefixes give the right gradient.
        """
        if self.trainer.world_size > 1:
            everywhere = self.all_gather(counts)  # (processes, n)
            assert isinstance(everywhere, Tensor)
            counts = everywhere.sum(dim=0) / self.trainer.world_size  # (n,)
        return counts

    # ------------------------------------------------------------------------------------------------------- validation
    def on_validation_epoch_start(self) -> None:
        """Begin to collect figures: in the first pass those of every weighting, in the second those of the best."""
        self.prepare_scoring("validation")
        self.warm = self.data.catalogue.warm.to(self.device)  # (N,)
        self.before = self.chosen, self.weights_chosen
        self.grid = self.weightings()  # V of them
        self.search = WeightSearch(len(self.grid)).to(self.device) if len(self.grid) > 1 else None
        if self.search is None:  # nothing to choose
            self.choose(self.grid[0])
            self.weights_chosen = True
        self.validation_metrics = RankingMetrics(CUTOFFS).to(self.device)
        # the command `validate` compares with the baselines; within fit that would only take time
        self.comparison = self.compare("validation") if self.trainer.state.fn == TrainerFn.VALIDATING else None

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        """First pass: count the hits of every weighting. Last pass: rank under the best one."""
        if dataloader_idx == 0 and self.comparison is not None:  # under the checkpoint's weights
            self.comparison.update(batch, self.score(batch))
        if dataloader_idx == 0 and self.search is not None:
            target, member = group_targets(batch.target, self.warm)  # (B, R), (G, B, R)
            seen = batch.seen if self.filter_seen else batch.seen[:, :0]  # (B, any)
            hits = self.hits(batch, target.masked_fill(~member[0], PAD), seen, self.grid, BEST_AT)  # (B, V)
            self.search.update(batch.user, hits, member[0].sum(dim=1))
            return
        if self.search is not None and batch_index == 0:
            recall = self.search.compute()  # (V,)
            self.choose(self.grid[int(recall.argmax())])  # of equals the first
            self.weights_chosen = True
        ranked = self.rank(self.score(batch), batch)  # (G, B, k)
        self.validation_metrics.update(batch.user, ranked, batch.target, self.warm)

    def on_validation_epoch_end(self) -> None:
        """Log every group's figures under the weights that were chosen by Recall@10 over all items."""
        if self.comparison is not None:
            self.report(self.comparison)
        table = self.validation_metrics.compute()
        chosen = self.chosen
        figures = {
            f"validation/{group}/{name}": value
            for group, row in table.table().items()
            for name, value in row.items()
            if name in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
        }
        figures |= {f"validation/{name}": value for name, value in chosen.plain().items()}
        self.log_dict({name: torch.tensor(value) for name, value in figures.items()})
        # the name that early stopping and checkpoints watch, short enough for the progress bar
        self.log("recall@10", torch.tensor(table.value("recall@10")), prog_bar=True, logger=False)
        if self.trainer.sanity_checking:  # a few users and an untrained model choose nothing
            weights, self.weights_chosen = self.before
            self.choose(weights)
        elif self.search is not None:
            recall = self.search.compute().tolist()  # V
            line = {w.beta: recall[v] for v, w in enumerate(self.grid) if w[1:] == chosen[1:]}  # beta alone varies
            log_beta_curve(self.trainer.loggers, line, chosen.beta, self.global_step)

    def rank(self, scores: Tensor, batch: Batch) -> Tensor:
        """Ranked lists of every group: (B, N) -> (G, B, k)."""
        if self.filter_seen:
            scores = mask_seen(scores, batch.seen)  # (B, N)
        return top_groups(scores, self.warm, max(CUTOFFS))  # (G, B, k)

    # ------------------------------------------------------------------------------------------------------------- test
    def on_test_epoch_start(self) -> None:
        """Prepare to collect the figures of the model and of the baselines."""
        self.prepare_scoring("test")
        self.comparison = self.compare("test")

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Add a batch to the comparison."""
        assert self.comparison is not None
        in_train = self.score_in_train(batch) if self.comparison.model_twice else None  # (B, N)
        self.comparison.update(batch, self.score(batch), in_train)

    def on_test_epoch_end(self) -> None:
        """Print the table and its protocol, and write results.json into the run's folder."""
        assert self.comparison is not None
        own = self.report(self.comparison).table()
        figures = {f"test/{group}/{name}": value for group in GROUPS for name, value in own[group].items()}
        log_figures(self.trainer.loggers, figures, self.global_step)  # self.log_dict would print a second, longer table

    def compare(self, split: EvalSplit) -> Comparison:
        """A new comparison of the model with the baselines on a split."""
        data = self.data
        # validation may choose others before the report
        self.compared_weights, self.compared_chosen = self.chosen, self.weights_chosen
        return Comparison(
            data.catalogue,
            data.histories,
            split,
            CUTOFFS,
            self.device,
            train_alone=leaves_one_out(data),
            counts=self.counts,
            rivals=self.rivals,
        )

    def report(self, comparison: Comparison) -> RankingTable:
        """Print the table and its protocol, and write results.json and the files beside it into the run's folder.

        The files of a validation are validation_results.json and so on. Returns the model's metrics.
        """
        folder = folder_of(self.trainer)
        self.results_path = folder / RESULTS[comparison.split] if folder is not None else None
        data, figures = self.data, comparison.compute()
        own = figures[self.filter_seen][MODEL].table
        catalogue, weights = data.catalogue, self.compared_weights.plain()
        protocol = Protocol.of(
            comparison.split,
            data.fit_on,
            chosen=self.compared_chosen if len(self.weightings()) > 1 else None,
            read=data.kinds.words("context"),
            predicted=data.kinds.words("targets"),
            dataset=catalogue.name,
            method=self.label,
            filter_seen=self.filter_seen,
            users=own.n_users(),
            candidates=catalogue.group_sizes(),
            max_history=data.max_history,
            beta=weights.pop("beta"),
            cutoffs=CUTOFFS,
            baselines={name: baseline.describe() for name, baseline in comparison.baselines.items()},
            seed=data.seed,
            weights={name: round(value, 6) for name, value in weights.items()},
            caution=LEAVE_ONE_OUT if leaves_one_out(data) else "",
        )
        tables = {filtered: {name: one.table for name, one in of.items()} for filtered, of in figures.items()}
        options = {"model": plain_hparams(self.hparams), "data": plain_hparams(data.hparams)}
        lists = {filtered: {name: one.lists for name, one in of.items()} for filtered, of in figures.items()}
        results = make_results(protocol, tables, options, lists, provenance(data.seed, self.origin))
        write_and_print(self.results_path, results, figures, data)
        log_results(self.trainer.loggers, results, self.results_path, self.global_step)
        return own

    # ---------------------------------------------------------------------------------------------------------- predict
    def on_predict_epoch_start(self) -> None:
        """Prepare scoring; histories hold train and validation items, as in test."""
        self.prepare_scoring("test")

    def predict_step(self, batch: Batch, batch_index: int) -> Predictions:
        """The best items of every user."""
        scores = self.score(batch)  # (B, N)
        if self.filter_seen:
            scores = mask_seen(scores, batch.seen)  # (B, N)
        item = top_items(scores, self.top_k)  # (B, k)
        return Predictions(batch.user, item, scores.gather(1, item.clamp(min=0)))


def data_of(checkpoint: Checkpoint) -> SETRecDataModule:
    """The prepared data that a checkpoint names.

    Raises:
        ConfigError: it names a class that is not known here; see `register`.
    """
    arguments = {name: instantiate(value) for name, value in checkpoint.data.items()}
    if "cleaning" in arguments:
        arguments["cleaning"] = Cleaning(**arguments["cleaning"])
    if "kinds" in arguments:
        arguments["kinds"] = Kinds(**arguments["kinds"])
    return SETRecDataModule(**arguments)


def leaves_one_out(data: SETRecDataModule) -> bool:
    """Whether the data was split by leave-one-out."""
    reader, split = data.preparation.reader, data.preparation.split
    return isinstance(split, LeaveOneOut) and not reader.gives_splits


@rank_zero_only
def write_and_print(
    path: Path | None, results: dict[str, Any], figures: dict[bool, dict[str, MethodFigures]], data: SETRecDataModule
) -> None:
    """Write the results files, results.json last, and print the table, on the first process. path: None: print only."""
    if path is not None:
        per_user, hits = per_user_paths(path)
        write_per_user(per_user, figures, data.histories, results["protocol"]["split"])
        write_hits(hits, figures, data.histories, data.catalogue)
        write_results(path, results | {"files": {file.name: file_hash(file) for file in (per_user, hits)}})
    print()
    print_table(results)
