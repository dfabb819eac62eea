"""When a run ends early: validation no longer gets better."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from setrec.errors import ConfigError


class RunEarlyStopping(EarlyStopping):
    """As Lightning's, but a run that has not validated yet is no error, and the patience given to a resumed run counts."""

    _measured = False

    @property
    def state_key(self) -> str:
        """As of Lightning's class, so that older runs can be resumed."""
        return super().state_key.replace(type(self).__qualname__, EarlyStopping.__qualname__, 1)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose where to look: where validation goes by the clock, after each validation."""
        if not hasattr(trainer, "val_check_interval"):  # Lightning has it only where it counts batches
            self._check_on_train_epoch_end = False
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; the patience given now wins."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `EarlyStopping`."""
        self._measured = self._measured or not trainer.sanity_checking
        super().on_validation_end(trainer, pl_module)

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        if self.monitor in trainer.callback_metrics or not self.strict:
            super()._run_early_stopping_check(trainer)
        elif self._measured:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ConfigError(f"--early_stopping.monitor {self.monitor}: there is no such figure; known are {known}.")
