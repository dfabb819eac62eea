"""refit: a trained model brought up to date with the validation period, before test or serving.

What people buy changes with the seasons, and after `fit` a model knows nothing of the period that its weights were chosen on. Two
short fits, both from the checkpoint's weights, both over validation items that follow each user's training items:

    1. on every other user that has any; the others' are asked for, and choose the weights of the parts: beta, neighbours,
       recency (neighbours.py). What occurred lately is counted among the users fitted to.
    2. on all of them, with those weights. There is nothing left to validate on.

Allowed when stated, never the default: the protocol printed with test says what a model was fitted to. Not in the paper.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setrec.errors import ConfigError

# Set by half_validation's own validation on Toys (docs/ledger.md); flags win over them.
DEFAULTS = {"--model.lr": "5.0e-4", "--model.warmup_steps": "5", "--trainer.max_epochs": "2"}


def refit(path: Path, known: dict[str, Any], flags: list[str], fit: Callable[[list[str]], Any]) -> Any:
    """Both fits; returns what the second `fit` returns.

    Args:
        path: checkpoint of a fit on train.
        known: its arguments, {"model": ..., "data": ...}.
        flags: of the command line, for both fits.
        fit: runs the words of a `fit` command and returns its SETRecCLI.

    Raises:
        ConfigError: the checkpoint was refitted already.
    """
    if known["data"].get("fit_on", "train") != "train":
        raise ConfigError(
            f"--ckpt_path {path} is fitted to {known['data']['fit_on']} already; give the checkpoint of fit."
        )
    common = ["fit", "--config", json.dumps(known), "--model.start_from", str(path)]
    for name, value in DEFAULTS.items():
        common += [name, value]
    half = fit([*common, "--data.fit_on", "half_validation", *flags, "--test_after_fit", "false"])
    weighed = half.trainer.checkpoint_callback.last_model_path
    # no validation: nothing to watch, the last weights are kept
    whole = ["--trainer.limit_val_batches", "0", "--checkpoint.monitor", "null", "--early_stopping.strict", "false"]
    return fit([*common, "--data.fit_on", "validation", "--model.weigh_like", weighed, *whole, *flags])
