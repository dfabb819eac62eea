"""The training of an update: on from the served model, the comparison with it, and the fit to the newest events."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from setrec.commands import refit
from setrec.commands.fit import prepared
from setrec.commands.gate import Verdict, as_served, is_gate_user, judge, measure
from setrec.commands.one_sentence import of_run
from setrec.commands.update_options import UpdateOptions
from setrec.commands.words import without
from setrec.errors import DataError
from setrec.inference.restore import read_trained
from setrec.trainer.run_checkpoint import best_path

DEFAULTS = [  # of the fit: the rate of refit, and a few epochs (docs/results.md); flags override them
    *("--model.lr", "1.0e-3", "--model.warmup_steps", "5", "--trainer.max_epochs", "3"),
    *("--trainer.num_sanity_val_steps", "0"),
]


def train(
    options: UpdateOptions, known: dict[str, Any], new: Path, served: Path, flags: Sequence[str]
) -> tuple[Verdict, Path]:
    """Train on, and compare with what is served. Returns the checkpoint too.

    Raises:
        DataError: no user of a half has newest events.
    """
    data = known["data"] | {"name": new.name, "fit_on": "train", "replay": options.replay}
    start = ["--config", json.dumps(known | {"data": data}), "--model.start_from", str(served)]
    with redirect_stdout(sys.stderr):
        cli = prepared([*start, "--trainer.default_root_dir", str(new), *DEFAULTS, *flags])
        module, loaded = cli.model, cli.datamodule
        loaded.setup()
        histories = loaded.histories
        gate = is_gate_user(histories.ids)  # (users,)
        halves = [histories.with_validation_of(half) for half in (~gate, gate)]
        if not all(len(half.targets("validation").items) for half in halves):
            users = int((histories.targets("validation").lengths > 0).sum())
            raise DataError(
                f"{users} users have newest events, too few to choose and compare: give more events, or a larger --share."
            )
        loaded.histories = halves[0]
        with of_run():
            cli.trainer.fit(module, datamodule=loaded)
        checkpoint = Path(best_path(cli.trainer))
        loaded.histories = halves[1]
        updated = type(module).load_from_checkpoint(checkpoint, datamodule=loaded)
        updated.prepare_scoring("validation")
        trained = read_trained(served)
        old = as_served(trained, loaded.catalogue)
        scores: list[Callable[[Any], Any]] = [lambda b: next(old.scorer.scores(b, [old.weights])), updated.score]
        tables = [measure(score, loaded.val_dataloader()[0], loaded.catalogue.warm) for score in scores]
    return judge(tables[0], tables[1], options.tolerance), checkpoint


def refitted(checkpoint: Path, new: Path, flags: Sequence[str]) -> Path:
    """Fit the model to the newest events too, which have done their work; the last checkpoint of that."""
    more = without(split_trainer(flags), "--trainer.max_epochs")
    with redirect_stdout(sys.stderr):
        done = refit.from_words(["--ckpt_path", str(checkpoint), "--trainer.default_root_dir", str(new), *more])
    return Path(done.checkpoint.outcome).resolve()


def split_trainer(flags: Sequence[str]) -> list[str]:
    """The flags of the Trainer alone: the refit has its own rate and epochs."""
    kept, on = [], False
    for word in flags:
        on = word.startswith("--trainer.") if word.startswith("--") else on
        kept += [word] if on else []
    return kept
