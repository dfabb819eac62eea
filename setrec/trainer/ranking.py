"""What every model of this project shares once it can score the catalogue: validate, test, predict.

A model (SETRec, SASRec) derives from `RankingModule`, says how it scores a batch of histories, and gets the protocol:
all users, every group of items, every weighting from one forward pass, baselines beside it, one table at the end.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from setrec.class_names import public_name
from setrec.data.datamodule import SETRecDataModule
from setrec.errors import ConfigError
from setrec.evaluation.beta_curve import beta_curve
from setrec.evaluation.comparison import Comparison, Figures
from setrec.evaluation.metrics import RankingMetrics
from setrec.evaluation.per_user import beside_results, write_hits, write_per_user
from setrec.evaluation.ranking_table import RankingTable, group_targets
from setrec.evaluation.results import MODEL, RESULTS, Protocol, make_results, print_table, write_results
from setrec.evaluation.weight_search import WeightSearch
from setrec.hparams import plain_hparams
from setrec.schemas import GROUPS, PAD, Batch, EvalSplit
from setrec.scoring.topk import CUTOFFS, mask_seen, top_groups, top_items
from setrec.scoring.weights import Weights

BEST_AT = 10  # weights are chosen by recall at this length


class Predictions(NamedTuple):
    """Ranked items of a batch of users."""

    user: Tensor  # (B,) int64
    item: Tensor  # (B, k) int64, best first, -1 where there are fewer candidates
    score: Tensor  # (B, k) float


class RankingModule(LightningModule):
    """A LightningModule that scores histories against the catalogue.

    Args:
        filter_seen: Leave items of the user's own history out of the ranking in validation, test and predict.
            The paper ranks them too; `test` reports both.
        top_k: Items that predict lists for each user.
    """

    label: str  # the model's row in the table

    def __init__(self, filter_seen: bool, top_k: int) -> None:
        super().__init__()
        self.filter_seen = filter_seen
        self.top_k = top_k

    # ------------------------------------------------------------------------------------------ what a model must say
    @abstractmethod
    def prepare_scoring(self, split: EvalSplit) -> None:
        """Make what scoring needs: an index under the weights as they are now, and what may be counted for a split."""

    @abstractmethod
    def score(self, batch: Batch) -> Tensor:
        """Scores (B, N) under the weights that validation chose."""

    # ------------------------------------------------------- what a model says whose score has weights to be chosen
    @property
    def chosen(self) -> Weights:
        """The weights that validation chose."""
        return Weights(beta=0.0)

    def weightings(self) -> Sequence[Weights]:
        """What validation chooses from."""
        return [self.chosen]

    def hits(self, batch: Batch, target: Tensor, seen: Tensor, grid: Sequence[Weights], k: int) -> Tensor:
        """Targets of each user among the first k items under every weighting, (B, V) int64.

        target: (B, R) int64, distinct, padded; seen: (B, any) int64, items that are not ranked, padded.
        """
        raise NotImplementedError  # a model with one weighting is never asked

    def choose(self, weights: Weights) -> None:
        """Take over what validation found best."""

    # --------------------------------------------------------------------------------------------------------- the data
    @property
    def data(self) -> SETRecDataModule:
        """The datamodule this model is run with."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, SETRecDataModule):
            raise ConfigError("This model needs a SETRecDataModule: pass it as `datamodule` to the Trainer.")
        return data

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the model's class, and the catalogue that the weights belong to."""
        catalogue = self.data.catalogue
        checkpoint["model_class"] = public_name(type(self))
        checkpoint["catalogue"] = {"name": catalogue.name, "fingerprint": catalogue.fingerprint}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another data set.

        Raises:
            ConfigError: the catalogue's fingerprint isn't the one the checkpoint was trained on.
        """
        trained, here = checkpoint["catalogue"], self.data.catalogue
        if trained["fingerprint"] != here.fingerprint:
            raise ConfigError(
                f"The checkpoint was trained on the data set {trained['name']!r} ({trained['fingerprint'][:12]}), but this is "
                f"{here.name!r} ({here.fingerprint[:12]}): item ids and vectors would not match. Give the checkpoint's own "
                "data (no --data flags are needed for that), or train anew."
            )

    # --------------------------------------------------------------------------------------------------------- training
    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Draw dropout from (seed, step, process) alone, so that a resumed run continues to the bit.

        Lightning saves no random state; with this there is none to save.
        """
        torch.manual_seed(self.data.seed * 1_000_003 + self.global_step * self.trainer.world_size + self.global_rank)

    def mean_over_processes(self, counts: Tensor) -> Tensor:
        """What local sums are divided by, so that DDP's mean of gradients is the gradient of the mean over all processes.

        DDP divides the sum of gradients by the number of processes, but the mean wanted is over prefixes, which differ in
        number. counts: (n,) float of this process; returns (n,) float, their mean over the processes.
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
        self.grid = self.weightings()  # V of them
        self.search = WeightSearch(len(self.grid)).to(self.device) if len(self.grid) > 1 else None
        if self.search is None:  # nothing to choose
            self.choose(self.grid[0])
        self.validation_metrics = RankingMetrics([0.0], CUTOFFS).to(self.device)
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
        ranked = self.rank(self.score(batch), batch, self.filter_seen)  # (G, B, k)
        self.validation_metrics.update(batch.user, ranked[None], batch.target, self.warm)

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
        figures |= {f"validation/{name}": value for name, value in chosen._asdict().items()}
        self.log_dict({name: torch.tensor(value) for name, value in figures.items()})
        # the name that early stopping and checkpoints watch, short enough for the progress bar
        self.log("recall@10", torch.tensor(table.value("recall@10")), prog_bar=True, logger=False)
        if self.search is not None and isinstance(self.logger, TensorBoardLogger) and not self.trainer.sanity_checking:
            recall = self.search.compute().tolist()  # V
            line = {w.beta: recall[v] for v, w in enumerate(self.grid) if w[1:] == chosen[1:]}  # beta alone varies
            self.logger.experiment.add_figure("validation/beta curve", beta_curve(line, chosen.beta), self.global_step)

    def rank(self, scores: Tensor, batch: Batch, filter_seen: bool) -> Tensor:
        """Ranked lists of every group: (B, N) -> (G, B, k)."""
        if filter_seen:
            scores = mask_seen(scores, batch.seen)  # (B, N)
        return top_groups(scores, self.warm, max(CUTOFFS))  # (G, B, k)

    # ------------------------------------------------------------------------------------------------------------- test
    def on_test_epoch_start(self) -> None:
        self.prepare_scoring("test")
        self.comparison = self.compare("test")

    def test_step(self, batch: Batch, batch_index: int) -> None:
        assert self.comparison is not None
        self.comparison.update(batch, self.score(batch))

    def on_test_epoch_end(self) -> None:
        """Print the table and its protocol, and write results.json into the run's folder."""
        assert self.comparison is not None
        own = self.report(self.comparison).table()
        if self.logger is not None:  # not self.log_dict: Lightning would print a second, longer table
            figures = {f"test/{group}/{name}": value for group in GROUPS for name, value in own[group].items()}
            self.logger.log_metrics(figures, step=self.global_step)

    def compare(self, split: EvalSplit) -> Comparison:
        """What collects the model's and the baselines' figures over a split."""
        data = self.data
        return Comparison(data.catalogue, data.histories, split, self.chosen.beta, CUTOFFS, self.device)

    def report(self, comparison: Comparison) -> RankingTable:
        """Print the table and its protocol, and write results.json with every user's figures beside it into the run's folder.

        A validation's files are validation_results.json and so on. Returns the model's figures.
        """
        folder = Path(self.trainer.log_dir or ".")  # asked of every process: they agree on it by a broadcast
        self.results_path = folder / RESULTS[comparison.split]
        data, figures = self.data, comparison.compute()
        own = figures[self.filter_seen][MODEL].table
        catalogue, weights = data.catalogue, self.chosen._asdict()
        protocol = Protocol.of(
            comparison.split,
            data.fit_on,
            chosen=len(self.weightings()) > 1,
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
        )
        tables = {filtered: {name: one.table for name, one in of.items()} for filtered, of in figures.items()}
        options = {"model": plain_hparams(self.hparams), "data": plain_hparams(data.hparams)}
        write_and_print(self.results_path, make_results(protocol, tables, options), figures, data)
        return own

    # ---------------------------------------------------------------------------------------------------------- predict
    def on_predict_epoch_start(self) -> None:
        self.prepare_scoring("test")

    def predict_step(self, batch: Batch, batch_index: int) -> Predictions:
        """The best items of every user, seen ones left out where `filter_seen` says so."""
        scores = self.score(batch)  # (B, N)
        if self.filter_seen:
            scores = mask_seen(scores, batch.seen)  # (B, N)
        item = top_items(scores, self.top_k)  # (B, k)
        return Predictions(batch.user, item, scores.gather(1, item.clamp(min=0)))


@rank_zero_only
def write_and_print(
    path: Path, results: dict[str, Any], figures: dict[bool, dict[str, Figures]], data: SETRecDataModule
) -> None:
    """Write results.json, last of its files, and print the table, on one process."""
    per_user, hits = beside_results(path)
    write_per_user(per_user, figures, data.histories, results["protocol"]["split"])
    write_hits(hits, figures, data.histories, data.catalogue)
    write_results(path, results)
    print()
    print_table(results)
