"""What every model of this project shares once it can score the catalogue: validate, test, predict, report.

A model (SETRec, SASRec) derives from `RankingModule`, says how it scores a batch of histories, and gets the protocol:
all users, every group of items, every variant (beta) from one forward pass, baselines beside it, one table at the end.
"""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from setrec.baselines import Popularity, fit_baselines
from setrec.data import SETRecDataModule
from setrec.errors import ConfigError
from setrec.metrics import RandomTieMetrics, RankingMetrics, RankingTable, mask_seen, top_groups, top_items
from setrec.results import MODEL, Protocol, beta_curve, make_results, print_table, write_results
from setrec.schemas import GROUPS, Batch

CUTOFFS = (5, 10, 20)


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
    variants: tuple[float, ...]  # V values of what validation chooses (beta), in order

    def __init__(self, filter_seen: bool, top_k: int) -> None:
        super().__init__()
        self.filter_seen = filter_seen
        self.top_k = top_k
        self.beta: Tensor
        self.register_buffer("beta", torch.tensor(0.0))  # chosen on validation; part of the checkpoint

    # ------------------------------------------------------------------------------------------ what a model must say
    @abstractmethod
    def refresh(self) -> None:
        """Make what scoring needs from the weights as they are now (an index of the catalogue)."""

    @abstractmethod
    def score_variants(self, batch: Batch, variants: tuple[float, ...]) -> Iterator[Tensor]:
        """Scores (B, N) of every variant in turn, from one forward pass."""

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
        checkpoint["model_class"] = f"{type(self).__module__}.{type(self).__qualname__}"
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

    def shared(self, counts: Tensor) -> Tensor:
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
        self.refresh()
        self.warm = self.data.catalogue.warm.to(self.device)  # (N,)
        self.validation_metrics = RankingMetrics(self.variants, CUTOFFS).to(self.device)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        ranked = [self.rank(scores, batch, self.filter_seen) for scores in self.score_variants(batch, self.variants)]
        self.validation_metrics.update(batch.user, torch.stack(ranked), batch.target, self.warm)  # of (V, G, B, k)

    def on_validation_epoch_end(self) -> None:
        """Choose beta by Recall@10 over all items, and log every group's figures under it."""
        table = self.validation_metrics.compute()
        best = table.best("recall@10", "all")
        self.beta.fill_(self.variants[best])
        figures = {
            f"validation/{group}/{name}": value
            for group, row in table.table(best).items()
            for name, value in row.items()
            if name in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
        }
        figures["validation/beta"] = self.variants[best]
        self.log_dict({name: torch.tensor(value) for name, value in figures.items()})
        # the name that early stopping and checkpoints watch, short enough for the progress bar
        self.log("recall@10", torch.tensor(table.value("recall@10", "all", best)), prog_bar=True, logger=False)
        if len(self.variants) > 1 and isinstance(self.logger, TensorBoardLogger) and not self.trainer.sanity_checking:
            self.logger.experiment.add_figure("validation/beta curve", beta_curve(table), self.global_step)

    def rank(self, scores: Tensor, batch: Batch, filter_seen: bool) -> Tensor:
        """Ranked lists of every group: (B, N) -> (G, B, k)."""
        if filter_seen:
            scores = mask_seen(scores, batch.seen)  # (B, N)
        return top_groups(scores, self.warm, max(CUTOFFS))  # (G, B, k)

    # ------------------------------------------------------------------------------------------------------------- test
    def on_test_epoch_start(self) -> None:
        self.refresh()
        self.warm = self.data.catalogue.warm.to(self.device)  # (N,)
        self.baselines = fit_baselines(self.data.catalogue, self.data.histories, split="test")
        self.test_metrics = nn.ModuleDict()  # one for every method and filter
        for filtered in (True, False):
            self.test_metrics[f"{MODEL}/{filtered}"] = RankingMetrics((float(self.beta),), CUTOFFS)
            for name, baseline in self.baselines.items():
                # popularity ties everywhere on cold items: its expected value under random order is reported
                kind = RandomTieMetrics if isinstance(baseline, Popularity) else RankingMetrics
                self.test_metrics[f"{name}/{filtered}"] = kind((0.0,), CUTOFFS)
        self.test_metrics.to(self.device)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        (scores,) = self.score_variants(batch, (float(self.beta),))  # (B, N)
        self._collect(MODEL, scores, batch)
        for name, baseline in self.baselines.items():
            self._collect(name, baseline.score(batch.history.cpu()).to(self.device), batch)

    def _collect(self, name: str, scores: Tensor, batch: Batch) -> None:
        """Add one method's scores (B, N) to its figures, with and without the seen items."""
        for filtered in (True, False):
            metric = self.test_metrics[f"{name}/{filtered}"]
            assert isinstance(metric, RankingMetrics)
            if isinstance(metric, RandomTieMetrics):
                masked = mask_seen(scores, batch.seen) if filtered else scores  # (B, N)
                metric.update(batch.user, masked, batch.target, self.warm)
            else:
                metric.update(batch.user, self.rank(scores, batch, filtered)[None], batch.target, self.warm)

    def on_test_epoch_end(self) -> None:
        """Print the table and its protocol, and write results.json into the run's folder."""
        tables: dict[str, RankingTable] = {}
        for name, metric in self.test_metrics.items():
            assert isinstance(metric, RankingMetrics)
            tables[name] = metric.compute()
        own = tables[f"{MODEL}/{self.filter_seen}"].table()
        if self.logger is not None:  # not self.log_dict: Lightning would print a second, longer table
            figures = {f"test/{group}/{name}": value for group in GROUPS for name, value in own[group].items()}
            self.logger.log_metrics(figures, step=self.global_step)
        self.report(tables)

    def report(self, tables: dict[str, RankingTable]) -> None:
        """Print the table and its protocol, and write results.json into the run's folder."""
        folder = Path(self.trainer.log_dir or ".")  # asked of every process: they agree on it by a broadcast
        self.results_path = folder / "results.json"
        own, data = tables[f"{MODEL}/{self.filter_seen}"], self.data
        n_warm = int(data.catalogue.warm.sum())
        protocol = Protocol(
            dataset=data.catalogue.name,
            method=self.label,
            filter_seen=self.filter_seen,
            users=own.n_users(),
            candidates={"all": data.catalogue.n_items, "warm": n_warm, "cold": data.catalogue.n_items - n_warm},
            max_history=data.max_history,
            beta=float(self.beta),
            beta_from="validation Recall@10 (All)" if len(self.variants) > 1 else "",
            cutoffs=CUTOFFS,
            baselines={name: baseline.describe() for name, baseline in self.baselines.items()},
            seed=data.seed,
        )
        by_filter = {
            filtered: {name: tables[f"{name}/{filtered}"] for name in (MODEL, *self.baselines)}
            for filtered in (True, False)
        }
        publish(self.results_path, make_results(protocol, by_filter))

    # ---------------------------------------------------------------------------------------------------------- predict
    def on_predict_epoch_start(self) -> None:
        self.refresh()

    def predict_step(self, batch: Batch, batch_index: int) -> Predictions:
        """The best items of every user, seen ones left out where `filter_seen` says so."""
        (scores,) = self.score_variants(batch, (float(self.beta),))  # (B, N)
        if self.filter_seen:
            scores = mask_seen(scores, batch.seen)  # (B, N)
        item = top_items(scores, self.top_k)  # (B, k)
        return Predictions(batch.user, item, scores.gather(1, item.clamp(min=0)))


@rank_zero_only
def publish(path: Path, results: dict[str, Any]) -> None:
    """Write results.json and print the table, on one process."""
    write_results(path, results)
    print()
    print_table(results)
