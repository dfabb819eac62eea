"""What every model of this project shares once it can score the catalogue: validate, test, predict, report.

A model (SETRec, SASRec) derives from `RankingModule`, says how it scores a batch of histories, and gets the protocol:
all users, every group of items, every variant (beta) from one forward pass, baselines beside it, one table at the end.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from setrec.comparison import Comparison, Figures
from setrec.data import SETRecDataModule
from setrec.errors import ConfigError
from setrec.hparams import plain
from setrec.metrics import RankingMetrics, RankingTable
from setrec.neighbours import Weights
from setrec.peruser import beside_results, write_hits, write_per_user
from setrec.results import MODEL, RESULTS, Split, beta_curve, make_protocol, make_results, print_table, write_results
from setrec.schemas import GROUPS, Batch
from setrec.topk import mask_seen, top_groups, top_items

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
        # chosen on validation; part of the checkpoint
        self.beta: Tensor
        self.register_buffer("beta", torch.tensor(0.0))
        self.neighbours_weight: Tensor
        self.register_buffer("neighbours_weight", torch.tensor(0.0))
        self.recency_weight: Tensor
        self.register_buffer("recency_weight", torch.tensor(0.0))
        self.cold_text_weight: Tensor
        self.register_buffer("cold_text_weight", torch.tensor(0.0))
        self.register_load_state_dict_pre_hook(weigh_by_beta_alone)

    # ------------------------------------------------------------------------------------------ what a model must say
    @abstractmethod
    def refresh(self) -> None:
        """Make what scoring needs from the weights as they are now (an index of the catalogue)."""

    @abstractmethod
    def score_variants(self, batch: Batch, variants: tuple[float, ...]) -> Iterator[Tensor]:
        """Scores (B, N) of every variant in turn, from one forward pass."""

    def score_grid(self, batch: Batch, grid: Sequence[Weights]) -> Iterator[Tensor]:
        """Scores (B, N) under each of these weights in turn; a model that has more than beta to weigh overrides it."""
        return self.score_variants(batch, tuple(weights.beta for weights in grid))

    def grid(self) -> list[Weights]:
        """What validation chooses from."""
        return [Weights(beta) for beta in self.variants]

    @property
    def chosen(self) -> Weights:
        """What validation chose."""
        return Weights(*map(float, (self.beta, self.neighbours_weight, self.recency_weight, self.cold_text_weight)))

    def know(self, split: Split) -> None:
        """Count what the histories hold about the items when a split is answered; nothing, unless a model overrides it."""

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
        self.know("validation")
        self.refresh()
        self.warm = self.data.catalogue.warm.to(self.device)  # (N,)
        self.weights = self.grid()  # V of them
        self.validation_metrics = RankingMetrics([weights.beta for weights in self.weights], CUTOFFS).to(self.device)
        # the command `validate` compares with the baselines; within fit that would only take time
        self.comparison = self.compare("validation") if self.trainer.state.fn == TrainerFn.VALIDATING else None

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        ranked = []
        for scores in self.score_grid(batch, self.weights):
            ranked.append(self.rank(scores, batch, self.filter_seen))  # (G, B, k)
        if self.comparison is not None:
            (scores,) = self.score_grid(batch, [self.chosen])  # (B, N)
            self.comparison.update(batch, scores)
        self.validation_metrics.update(batch.user, torch.stack(ranked), batch.target, self.warm)  # of (V, G, B, k)

    def on_validation_epoch_end(self) -> None:
        """Choose the weights by Recall@10 over all items, and log every group's figures under them."""
        if self.comparison is not None:  # under the checkpoint's beta, before another can be chosen
            self.report(self.comparison)
        table = self.validation_metrics.compute()
        best = table.best("recall@10", "all")
        chosen = self.weights[best]
        self.beta.fill_(chosen.beta)
        self.neighbours_weight.fill_(chosen.neighbours)
        self.recency_weight.fill_(chosen.recency)
        self.cold_text_weight.fill_(chosen.cold)
        figures = {
            f"validation/{group}/{name}": value
            for group, row in table.table(best).items()
            for name, value in row.items()
            if name in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
        }
        figures |= {f"validation/{name}": value for name, value in chosen._asdict().items()}
        self.log_dict({name: torch.tensor(value) for name, value in figures.items()})
        # the name that early stopping and checkpoints watch, short enough for the progress bar
        self.log("recall@10", torch.tensor(table.value("recall@10", "all", best)), prog_bar=True, logger=False)
        if len(self.variants) > 1 and isinstance(self.logger, TensorBoardLogger) and not self.trainer.sanity_checking:
            line = [v for v, weights in enumerate(self.weights) if weights[1:] == chosen[1:]]  # beta alone varies
            self.logger.experiment.add_figure("validation/beta curve", beta_curve(table, line, best), self.global_step)

    def rank(self, scores: Tensor, batch: Batch, filter_seen: bool) -> Tensor:
        """Ranked lists of every group: (B, N) -> (G, B, k)."""
        if filter_seen:
            scores = mask_seen(scores, batch.seen)  # (B, N)
        return top_groups(scores, self.warm, max(CUTOFFS))  # (G, B, k)

    # ------------------------------------------------------------------------------------------------------------- test
    def on_test_epoch_start(self) -> None:
        self.know("test")
        self.refresh()
        self.comparison = self.compare("test")

    def test_step(self, batch: Batch, batch_index: int) -> None:
        (scores,) = self.score_grid(batch, [self.chosen])  # (B, N)
        assert self.comparison is not None
        self.comparison.update(batch, scores)

    def on_test_epoch_end(self) -> None:
        """Print the table and its protocol, and write results.json into the run's folder."""
        assert self.comparison is not None
        own = self.report(self.comparison).table()
        if self.logger is not None:  # not self.log_dict: Lightning would print a second, longer table
            figures = {f"test/{group}/{name}": value for group in GROUPS for name, value in own[group].items()}
            self.logger.log_metrics(figures, step=self.global_step)

    def compare(self, split: Split) -> Comparison:
        """What collects the model's and the baselines' figures over a split."""
        data = self.data
        return Comparison(data.catalogue, data.histories, split, float(self.beta), CUTOFFS, self.device)

    def report(self, comparison: Comparison) -> RankingTable:
        """Print the table and its protocol, and write results.json with every user's figures beside it into the run's folder.

        A validation's files are validation_results.json and so on. Returns the model's figures.
        """
        folder = Path(self.trainer.log_dir or ".")  # asked of every process: they agree on it by a broadcast
        self.results_path = folder / RESULTS[comparison.split]
        data, figures = self.data, comparison.compute()
        own = figures[self.filter_seen][MODEL].table
        protocol = make_protocol(
            comparison.split,
            data.catalogue,
            method=self.label,
            filter_seen=self.filter_seen,
            users=own.n_users(),
            max_history=data.max_history,
            beta=self.chosen.beta,
            weighed=len(self.variants) > 1,
            cutoffs=CUTOFFS,
            baselines={name: baseline.describe() for name, baseline in comparison.baselines.items()},
            seed=data.seed,
            weights={name: round(value, 6) for name, value in self.chosen._asdict().items() if name != "beta"},
            fit_on=data.fit_on,
        )
        tables = {filtered: {name: one.table for name, one in of.items()} for filtered, of in figures.items()}
        options = {"model": plain(self.hparams), "data": plain(data.hparams)}
        publish(self.results_path, make_results(protocol, tables, options), figures, data)
        return own

    # ---------------------------------------------------------------------------------------------------------- predict
    def on_predict_epoch_start(self) -> None:
        self.know("test")
        self.refresh()

    def predict_step(self, batch: Batch, batch_index: int) -> Predictions:
        """The best items of every user, seen ones left out where `filter_seen` says so."""
        (scores,) = self.score_grid(batch, [self.chosen])  # (B, N)
        if self.filter_seen:
            scores = mask_seen(scores, batch.seen)  # (B, N)
        item = top_items(scores, self.top_k)  # (B, k)
        return Predictions(batch.user, item, scores.gather(1, item.clamp(min=0)))


def weigh_by_beta_alone(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Older checkpoints know fewer weights, or none beside beta."""
    for name in ("neighbours_weight", "recency_weight"):
        state.setdefault(prefix + name, torch.tensor(0.0))
    factor = state.pop(prefix + "cold_weight", torch.tensor(1.0))  # it was a factor once
    state.setdefault(prefix + "cold_text_weight", factor * state[prefix + "neighbours_weight"])


@rank_zero_only
def publish(
    path: Path, results: dict[str, Any], figures: dict[bool, dict[str, Figures]], data: SETRecDataModule
) -> None:
    """Write results.json, last of its files, and print the table, on one process."""
    per_user, hits = beside_results(path)
    write_per_user(per_user, figures, data.histories, results["protocol"]["split"])
    write_hits(hits, figures, data.histories, data.catalogue)
    write_results(path, results)
    print()
    print_table(results)
