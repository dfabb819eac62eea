"""What a resumed run takes from its checkpoint, and what from the options given now.

The checkpoint gives the weights, the state of the optimiser and how far the run is. The options given now win for everything else,
or are refused: what the run uses is what its config.yaml and its checkpoints say.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR

from setrec.class_names import current_names
from setrec.data.batches import BatchLoader
from setrec.data.datamodule import SETRecDataModule
from setrec.errors import ConfigError
from setrec.hparams import plain_hparams

BATCHES = (
    "batch_size",
    "max_history",
    "prefix_parallel",
    "fit_on",
    "seed",
)  # options of the data that make the batches


def path_of_checkpoint() -> str | Path | None:
    """The checkpoint that the Trainer which calls us is about to read; None: it reads none.

    `Trainer.ckpt_path` is set only after the data was prepared, and no hook is told. So the caller's own variable is read.

    Raises:
        RuntimeError: no Trainer calls, or a new version of Lightning calls it something else.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not Trainer._run.__code__:
        frame = frame.f_back
    if frame is None or "ckpt_path" not in frame.f_locals:
        raise RuntimeError("Lightning's Trainer._run(model, ckpt_path) is not among the callers")
    path: str | Path | None = frame.f_locals["ckpt_path"]
    return path


def check_weights(module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Check that the weights of a checkpoint fit the layers that the options make.

    Raises:
        ConfigError: they have other names or shapes.
    """
    there, here = (
        {name: tuple(value.shape) for name, value in state.items() if name.startswith("model.")}
        for state in (checkpoint.get("state_dict", {}), module.state_dict())
    )
    if there and there != here:  # a sharded checkpoint has none here
        changed = _changes(checkpoint["hyper_parameters"], module.hparams, "model")
        raise ConfigError(
            f"The weights of the checkpoint do not fit these options{changed}: leave out the flags that change them, or train "
            "again without --ckpt_path."
        )


def check_batches(data: SETRecDataModule, checkpoint: Mapping[str, Any]) -> None:
    """Check that a run which is resumed in the middle of an epoch has the batches that are left.

    Raises:
        ConfigError: other options of the data make other batches.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epoch, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
    last_is_over = batches["is_last_batch"] and batches["total"]["completed"] == batches["total"]["processed"]
    if epoch["ready"] == epoch["processed"] or last_is_over:
        return
    options = (checkpoint["datamodule_hyper_parameters"], data.hparams)
    before, after = ({name: one.get(name) for name in BATCHES} for one in options)
    if changed := _changes(before, after, "data"):
        raise ConfigError(
            f"The checkpoint was written in the middle of an epoch, whose batches would be others now{changed}: leave out the "
            "flag, or give a checkpoint of the end of an epoch."
        )


def go_on(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Go on with the batches that the epoch has left, or with the next epoch. Called when the training starts.

    Lightning's own way fails in two cases. A schedule that counts steps makes the loader before the progress is read, and the
    epoch would begin again. With max_steps a finished epoch counts as unfinished, and the next one would be left out.
    """
    loops = checkpoint["loops"]["fit_loop"]
    states = loops["state_dict"].get("combined_loader", [])
    if states and isinstance(trainer.train_dataloader, BatchLoader):
        trainer.train_dataloader.load_state_dict(states[0])
    fit, epoch = trainer.fit_loop, loops["epoch_progress"]["current"]
    if epoch["ready"] == epoch["processed"] and fit.restarting:
        fit._restarting = fit.epoch_loop.restarting = False  # the setter of the first would refuse
        fit.reset_restart_stage()
        fit.epoch_loop.reset_restart_stage()
        fit.epoch_progress.current.completed = epoch["processed"]


def check_rates(lr: float, weight_decay: float) -> None:
    """Check options that the optimiser would refuse.

    Raises:
        ConfigError: one is below 0, or no number.
    """
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not 0 <= value < float("inf"):
            raise ConfigError(f"--model.{name} is {value}; it must be a number of 0 or more.")


def set_rates(trainer: Trainer, lr: float, weight_decay: float) -> None:
    """Put the learning rate and the weight decay given now in place of those in the optimiser's state.

    Where they are the same, nothing changes to the bit.
    """
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        assert isinstance(schedule, LambdaLR)
        schedule.base_lrs = [lr for _ in schedule.base_lrs]
        for group, factor in zip(schedule.optimizer.param_groups, schedule.lr_lambdas, strict=True):
            group["initial_lr"], group["weight_decay"] = lr, weight_decay
            group["lr"] = lr * factor(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]


def _changes(then: Mapping[str, Any], now: Mapping[str, Any], kind: str) -> str:
    """The options that differ, in brackets, as they stand on a command line; "" where none does."""
    before, after = (_flat(current_names(plain_hparams(options)), f"--{kind}") for options in (then, now))
    names = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
    rows = [f"{name} was {before[name]}, is {after[name]}" for name in names]
    return f" ({'; '.join(rows)})" if rows else ""


def _flat(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    flat = {name: value["class_path"]} if "class_path" in value else {}
    inside = value.get("init_args", {}) if "class_path" in value else value
    for key, item in inside.items():
        flat |= _flat(item, f"{name}.{key}")
    return flat
