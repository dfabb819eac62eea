"""Which weights of a run are kept: the best on validation, and always the last."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from setrec.errors import ConfigError
from setrec.files.checkpoint import seal_folder
from setrec.files.whole import clear_killed
from setrec.trainer.interruption import StopRequest


class RunCheckpoint(ModelCheckpoint):
    """Writes a checkpoint at every new best on validation, and last.ckpt at the end of every epoch and of the run.

    Lightning's own class differs: it writes last.ckpt only with a new best, it forgets the best when a run is resumed in another
    folder, and a signal ends the run without a checkpoint.

    If the run ends with weights that were never validated (in the middle of an epoch, or between two validations), they are
    validated then. `--trainer.limit_val_batches 0` is for a run without any validation.
    """

    has_trained = False
    last_step = -1  # the optimiser step of last.ckpt
    measured_step = -1  # the optimiser step of the last validation
    _progress: Mapping[str, Any] | None = None  # of the fit loop, for a checkpoint that is written later
    _request: StopRequest | None = None
    _stopping = False
    _is_fit = False

    @property
    def state_key(self) -> str:
        """As of Lightning's class, so that older runs can be resumed."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    @property
    def outcome(self) -> str | None:
        """The best checkpoint; the last one where nothing was validated; None where none was written."""
        return self.best_model_path or self.last_model_path or None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear what killed runs left in the folder of the checkpoints, and in that of the resumed one."""
        if trainer.is_global_zero:
            resumed = [Path(trainer.ckpt_path).parent] if trainer.ckpt_path else []
            for folder in {Path(str(self.dirpath)), *resumed}:
                clear_killed(folder, "*" + self.FILE_EXTENSION)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See `ModelCheckpoint`."""
        super().setup(trainer, pl_module, stage)
        self._is_fit = stage == "fit"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best so far, wherever it lies.

        Lightning's class forgets it where the folder is another; then the first epoch of a resumed run would count as the best.
        """
        path, scores = state_dict["best_model_path"], state_dict["best_k_models"]
        there = {path: score for path, score in scores.items() if Path(path).exists()}
        if Path(path).is_file():
            self.best_model_path, self.best_model_score = path, state_dict["best_model_score"]
        elif path and self._is_fit:
            rank_zero_warn(f"The best checkpoint so far, {path}, is gone: the best is counted anew from here.")
        if path in there:
            self.best_k_models = there
            self.kth_best_model_path = (min if self.mode == "max" else max)(there, key=lambda one: float(there[one]))
            self.kth_value = there[self.kth_best_model_path]
        if self.dirpath == state_dict["dirpath"]:
            self.last_model_path = state_dict["last_model_path"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let a resumed run go on where the training stopped, if the checkpoint is written later than that."""
        if self._progress is not None:
            checkpoint["loops"]["fit_loop"] = self._progress

    # ---------------------------------------------------------------------------------------------------- when to write
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals from here on."""
        super().on_train_start(trainer, pl_module)
        self.has_trained = True
        self._request = StopRequest(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop here if the batch before was the last. What it logged has been written by now."""
        if self._stopping and self._request is not None:
            self._request.stop()
        self._progress = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make this the last batch if a signal asked for it, unless the epoch ends with it."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.is_last_batch:
            self.last_step = -1  # a last.ckpt of this batch would not know that its epoch is over
            return
        if trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step:  # it may end in the middle of an epoch
            self._progress = deepcopy(trainer.fit_loop.state_dict())
        if _is_between_steps(trainer) and self._is_asked_to_stop(trainer):
            self._write_now(trainer)
            self._stopping = True

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop here if a signal asked for it. The resumed run begins the validation again."""
        if self._request is None or trainer.sanity_checking or not _is_between_steps(trainer):
            return
        if self._is_asked_to_stop(trainer):
            progress = deepcopy(trainer.fit_loop.state_dict())
            begun = {
                "ready": 1,
                "started": 1,
                "processed": 0,
                "completed": 0,
            }  # what Lightning calls restarted in a validation
            progress["epoch_loop.val_loop.batch_progress"] |= {"total": dict(begun), "current": dict(begun)}
            self._progress, self.last_step = progress, -1
            self._write_now(trainer)
            self._request.stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint of a new best, where validation is not at the end of every epoch."""
        if not trainer.sanity_checking:
            self.measured_step = trainer.global_step
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the checkpoint of a new best, and last.ckpt."""
        super().on_train_epoch_end(trainer, pl_module)
        self._write_last(trainer)
        if self._request is not None and self._is_asked_to_stop(trainer):
            self._write_now(trainer)
            self._request.stop()
        if self._progress is None:
            self._progress = deepcopy(trainer.fit_loop.state_dict())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the last weights if they were not, and write last.ckpt."""
        if self._must_measure(trainer):
            self._last_global_step_saved = trainer.global_step  # Lightning's hooks write nothing in this validation
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
            candidates = self._monitor_candidates(trainer)
            candidates["epoch"] = candidates["epoch"] - 1  # it counts finished epochs by now
            self._save_topk_checkpoint(trainer, candidates)
            self.last_step = -1  # validation has chosen the weights of the score
        self._write_last(trainer)

    # ------------------------------------------------------------------------------------------------------ how to write
    def _must_measure(self, trainer: Trainer) -> bool:
        return bool(
            self.monitor is not None
            and trainer.enable_validation
            and not _is_trial(trainer)
            and self.measured_step != trainer.global_step
        )

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)  # returns once every process has written its part
        if trainer.is_global_zero and Path(filepath).is_dir():
            seal_folder(Path(filepath))

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if self.monitor is not None and self.monitor not in monitor_candidates:
            if self.measured_step >= 0:
                known = ", ".join(sorted(monitor_candidates))
                raise ConfigError(f"--checkpoint.monitor {self.monitor}: there is no such figure; known are {known}.")
            return  # nothing has been measured yet
        super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _write_last(self, trainer: Trainer) -> None:
        if self.save_last and not _is_trial(trainer) and self.last_step != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        linked, self.save_last = self.save_last, self.save_last or True
        if linked == "link" and self._last_global_step_saved != trainer.global_step:
            self.save_last = True  # there is no checkpoint of these weights to link to
        try:
            super()._save_last_checkpoint(trainer, monitor_candidates)
        finally:
            self.save_last = linked
        self.last_step = trainer.global_step

    def _is_asked_to_stop(self, trainer: Trainer) -> bool:
        """Whether any process was sent a signal."""
        asked = self._request is not None and self._request.signal is not None
        return bool(trainer.strategy.reduce_boolean_decision(asked, all=False))

    def _write_now(self, trainer: Trainer) -> None:
        """Write last.ckpt, even with save_last off: the run ends."""
        if not _is_trial(trainer) and self.last_step != trainer.global_step:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


def best_path(trainer: Trainer) -> str:
    """The best checkpoint of a fit, of this class's where the Trainer has callbacks of others too; "" where none was written."""
    found = sorted(trainer.checkpoint_callbacks, key=lambda one: not isinstance(one, RunCheckpoint))
    return getattr(found[0], "best_model_path", "") if found else ""


def _is_between_steps(trainer: Trainer) -> bool:
    """Whether no gradient is waiting for more batches of the same optimiser step."""
    return trainer.is_last_batch or (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0


def _is_trial(trainer: Trainer) -> bool:
    """Whether it is a run of a few batches that leaves nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
