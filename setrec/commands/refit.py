"""refit: a trained model brought up to date with the validation period, before test or serving.

What people buy changes with the seasons, and after `fit` a model knows nothing of the period that its weights were chosen on: not
which of the new items are bought, nor by whom. One short fit from the checkpoint's weights, over the validation items that
follow each user's training items, tells it. The weights of the score's parts stay as validation chose them, and nothing is left
to validate on.

Allowed when stated, never the default: the protocol printed with test says what a model was fitted to. Not in the paper.
"""

import json
from collections.abc import Sequence
from typing import Any

from setrec.commands.fit import checkpoint_arguments, named_classes, run
from setrec.commands.words import ckpt_path_of, without
from setrec.errors import ConfigError

USAGE = """usage: setrec refit --ckpt_path PATH [any flag of fit]

Brings a model that fit has trained up to date with the validation period: a short fit from the checkpoint's weights over the
validation items. Learning rate 5e-4, 2 epochs, no validation, unless flags say otherwise; --test_after_fit true tests it."""

DEFAULTS = [
    *("--model.lr", "5.0e-4", "--model.warmup_steps", "5", "--trainer.max_epochs", "2"),  # docs/ledger.md; flags win
    # no validation: nothing to watch, the last weights are kept
    *("--trainer.limit_val_batches", "0", "--checkpoint.monitor", "null", "--early_stopping.strict", "false"),
]


def from_words(words: Sequence[str]) -> Any:
    """Run `refit`; returns what `fit` returns.

    Raises:
        ConfigError: no checkpoint is named, or it was refitted already.
    """
    if {"-h", "--help"} & set(words):
        print(USAGE)
        return None
    path = ckpt_path_of(words)
    if path is None:
        raise ConfigError("refit needs --ckpt_path PATH, the checkpoint of a fit.")
    known = checkpoint_arguments(path, named=named_classes(words))
    if known["data"].get("fit_on", "train") != "train":
        raise ConfigError(
            f"--ckpt_path {path} is fitted to {known['data']['fit_on']} already; give the checkpoint of fit."
        )
    start = ["fit", "--config", json.dumps(known), "--data.fit_on", "validation", "--model.start_from", str(path)]
    return run([*start, *DEFAULTS, *without(words, "--ckpt_path")])
