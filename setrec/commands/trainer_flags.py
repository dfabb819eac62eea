"""Flags of the Trainer that Lightning takes and that then fail, or that mean something else here: refused before anything runs."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from setrec.errors import ConfigError

NARROW = ("16-true", "bf16-true", "64-true", "64", 64, "transformer-engine", "transformer-engine-float16")


def check_trainer_flags(flags: Mapping[str, Any]) -> None:
    """Check the arguments of the Trainer.

    Raises:
        ConfigError: one of them cannot work here.
    """
    if flags["precision"] in NARROW:
        raise ConfigError(
            f"--trainer.precision {flags['precision']}: weights and item vectors stay in float32 here; use bf16-mixed, 16-mixed or "
            "32-true."
        )
    accelerator = str(flags["accelerator"])
    found = torch.cuda.is_available() or (accelerator == "gpu" and torch.backends.mps.is_available())
    if accelerator in ("gpu", "cuda") and not found:
        raise ConfigError(f"--trainer.accelerator {accelerator}: torch finds no GPU on this machine; use cpu or auto.")
    if flags["profiler"] == "xla" and find_spec("torch_xla") is None:
        raise ConfigError("--trainer.profiler xla: it needs the package torch_xla; use simple, advanced or pytorch.")
    for name in ("val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches"):
        if flags[name] == 0:
            hint = "" if name == "accumulate_grad_batches" else "; for no validation set --trainer.limit_val_batches 0"
            raise ConfigError(f"--trainer.{name} 0: it must be more than 0{hint}.")
    if str(flags["strategy"]).startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
        raise ConfigError(
            f"--trainer.strategy {flags['strategy']}: its processes cannot hand back what they trained; use ddp."
        )
