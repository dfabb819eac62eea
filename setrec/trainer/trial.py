"""One trial of a search for options: tells the search how training goes, and ends it when asked to."""

import os
from collections.abc import Callable
from typing import Any, Literal, Protocol

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Trial(Protocol):
    """What a search gives for one trial; Optuna's class does."""

    def report(self, value: float, step: int) -> None:
        """Note a figure."""

    def should_prune(self) -> bool:
        """Whether the other trials were better at this step."""


def cpu_seconds() -> float:
    """What this process and those that it has waited for have used of the processors, in seconds."""
    return sum(os.times()[:4])


class TrialCallback(Callback):
    """Reports validation to a search, and ends the fit early: the trial is pruned, or the budget is used up.

    Args:
        trial: of the search.
        monitor: the figure of validation that is reported.
        has_budget: whether there is time left.
    """

    def __init__(self, trial: Trial, monitor: str, has_budget: Callable[[], bool]) -> None:
        self.trial, self.monitor, self.has_budget = trial, monitor, has_budget
        self.ended: Literal["pruned", "budget"] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make this the last batch if the budget is used up."""
        if self.ended is None and not self.has_budget():
            self.ended = "budget"
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the figure; end the fit if the search prunes it."""
        if trainer.sanity_checking or self.monitor not in trainer.callback_metrics or self.ended is not None:
            return
        self.trial.report(float(trainer.callback_metrics[self.monitor]), trainer.current_epoch)
        if self.trial.should_prune():
            self.ended = "pruned"
            trainer.should_stop = True
