"""refit: a short fit of a trained model to the validation period, before test or serving.

What users buy changes over time, and `fit` trains on the training period only: the model has not learned which items were bought in
the validation period, nor by whom. `refit` starts from the checkpoint's weights and trains on each user's validation items. The
weights of the score stay as validation chose them, since no data is left to validate on.

It is never the default, and the protocol printed with test names the splits that a model was fitted to. Not in the paper.
"""

import json
from collections.abc import Sequence
from typing import Any

from setrec.commands.fit import checkpoint_arguments, run
from setrec.commands.words import ckpt_path_of, without
from setrec.errors import ConfigError

USAGE = """usage: setrec refit --ckpt_path PATH [any flag of fit]

Fits a trained model to the validation period: a short fit that starts from the checkpoint's weights and trains on the validation
items. Learning rate 5e-4, 2 epochs, no validation; flags override these. --test_after_fit true tests the result."""

DEFAULTS = [
    *(
        "--model.lr",
        "5.0e-4",
        "--model.warmup_steps",
        "5",
        "--trainer.max_epochs",
        "2",
    ),  # measured in docs/ledger.md; flags override them
    # without validation there is no metric to watch, so the last weights are kept
    *("--trainer.limit_val_batches", "0", "--checkpoint.monitor", "null", "--early_stopping.strict", "false"),
]


def from_words(words: Sequence[str]) -> Any:
    """Run `refit`; returns what `fit` returns.

    Raises:
        ConfigError: no checkpoint is given, or it was refitted already.
    """
    if {"-h", "--help"} & set(words):
        print(USAGE)
        return None
    path = ckpt_path_of(words)
    if path is None:
        raise ConfigError("refit needs --ckpt_path PATH: give the checkpoint of a fit.")
    known = checkpoint_arguments(path, words)
    if known["data"].get("fit_on", "train") != "train":
        raise ConfigError(
            f"--ckpt_path {path} is fitted to {known['data']['fit_on']} already; give the checkpoint of fit."
        )
    start = ["fit", "--config", json.dumps(known), "--data.fit_on", "validation", "--model.start_from", str(path)]
    return run([*start, *DEFAULTS, *without(words, "--ckpt_path")])
