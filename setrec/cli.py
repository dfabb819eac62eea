"""The command line: LightningCLI, told what SETRec's runs need.

    python main.py fit --config configs/quickstart.yaml
    python main.py test --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt

A checkpoint carries the arguments of its model and its data: `--ckpt_path` alone restores both, flags given win.
"""

import errno
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import auto_cli
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

import setrec.encoders  # noqa: F401  its classes can be named on the command line without their module
from setrec.additems import add_items
from setrec.checkpoints import WholeCheckpointIO
from setrec.data import SETRecDataModule
from setrec.errors import ConfigError, SETRecError
from setrec.estimate import estimate
from setrec.merge import merge
from setrec.module import SETRecModule
from setrec.predictfile import predict_file
from setrec.publish import publish
from setrec.ranking import RankingModule
from setrec.refit import USAGE, refit
from setrec.restore import read_checkpoint
from setrec.serve import serve
from setrec.writer import PredictionWriter

OTHERS = (
    "Also: refit (a trained model brought up to date with validation), predict --histories FILE, add-items, publish, serve, "
    "report, ablate, estimate, merge; `python main.py NAME --help` explains each."
)
SEED = 2023
MONITOR = "recall@10"  # validation, all items; logged by RankingModule


class SETRecCLI(LightningCLI):
    """LightningCLI with checkpoints that know their data, and a test at the end of a fit where asked."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Checkpointing and early stopping watch validation Recall@10 over all items."""
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Run test once with the best checkpoint when fit ends."
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.set_defaults(
            {
                "checkpoint.monitor": MONITOR,
                "checkpoint.mode": "max",
                "checkpoint.save_last": True,
                "checkpoint.filename": "epoch-{epoch:02d}",
                "checkpoint.auto_insert_metric_name": False,
                "early_stopping.monitor": MONITOR,
                "early_stopping.mode": "max",
                "early_stopping.patience": 5,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Put the checkpoint's arguments first on the command line: everything given explicitly comes later and wins."""
        words = list(sys.argv[1:] if args is None else args)
        path = ckpt_path_of(words)
        if path is not None:
            known = checkpoint_arguments(path, with_class=self.subclass_mode_model)
            words = [words[0], "--config", json.dumps(known), *words[1:]]
        self.config = parser.parse_args(words)

    def _parse_ckpt_path(self) -> None:
        """Nothing: `parse_arguments` has read the checkpoint. Lightning's own way lets it override flags."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """As Lightning's, but checkpoints are whole, and plain `ddp` doesn't send the unchanging tables at every step."""
        given = self._get(self.config_init, "trainer")
        path = self._get(self.config, "ckpt_path")
        if path and Path(path).is_dir() and given.get("strategy") in ("auto", "ddp"):
            raise ConfigError(
                f"{path} is a sharded checkpoint, a folder of parts: give the --trainer.strategy it was written with, "
                "or train with save_distributed_checkpoint false, which writes one file."
            )
        if given.get("strategy") == "ddp":
            kwargs["strategy"] = DDPStrategy(broadcast_buffers=False)
        if not given.get("plugins") and given.get("strategy") in (
            "auto",
            "ddp",
        ):  # sharded strategies write their own way
            kwargs["plugins"] = [WholeCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Test once where asked, then say where the checkpoint is and what can be done with it."""
        checkpoint = self.trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_path", "")
        if self._get(self.config, "test_after_fit") and best:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best)
            self.after_test()
        say(f"best checkpoint: {best or 'none was written'}")
        if best:
            command = "predict" if self._get(self.config, "test_after_fit") else "test"
            say(f"next: python main.py {command} --ckpt_path {best}")

    def after_test(self) -> None:
        """Say where the figures are."""
        say(f"results: {self.model.results_path}")

    def after_validate(self) -> None:
        """Say where the figures are."""
        self.after_test()


@rank_zero_only
def say(line: str) -> None:
    """Print once, whatever the number of processes."""
    print(line)


def values_of(words: Sequence[str], *options: str) -> list[str]:
    """What a command line gives for an option, in order: `--option value` or `--option=value`."""
    found = [after for word, after in pairwise(words) if word in options]
    return found + [value for word in words for name, _, value in [word.partition("=")] if value and name in options]


def with_value(words: list[str], flag: str) -> list[str]:
    """A command line in which a flag that stands alone means true."""
    after = [*words[1:], ""]
    alone = [word == flag and follows not in ("true", "false") for word, follows in zip(words, after, strict=True)]
    return [f"{word}=true" if bare else word for word, bare in zip(words, alone, strict=True)]


def without(words: Sequence[str], option: str) -> list[str]:
    """A command line with an option and its value left out."""
    keep = [word for place, word in enumerate(words) if word != option and (place == 0 or words[place - 1] != option)]
    return [word for word in keep if not word.startswith(f"{option}=")]


def ckpt_path_of(words: Sequence[str]) -> Path | None:
    """The file that `--ckpt_path` names, or None where there is none or it is a keyword such as `best`.

    Raises:
        ConfigError: it looks like a path and isn't there.
    """
    for value in values_of(words, "--ckpt_path"):
        if value in ("best", "last", "hpc", "registry", "null"):
            return None
        if not Path(value).exists():
            raise ConfigError(f"--ckpt_path {value}: no such file; give the path that fit printed at its end.")
        return Path(value)
    return None


def names_model(words: Sequence[str]) -> bool:
    """Whether the model is named by its class: by --model, in a --config file, or in a checkpoint that isn't SETRec's.

    SETRec needs no name; left unnamed, `--help` explains every one of its hyper-parameters.
    """
    if values_of(words, "--model", "--model.help"):
        return True
    for value in values_of(words, "--config", "-c"):
        try:
            config = yaml.safe_load(Path(value).read_text())
        except (OSError, ValueError, yaml.YAMLError):
            continue  # the parser will say what is wrong with it
        if isinstance(config, dict) and "class_path" in (config.get("model") or {}):
            return True
    path = ckpt_path_of(words)
    return path is not None and read_checkpoint(path)["model_class"] is not SETRecModule


def checkpoint_arguments(path: Path, with_class: bool = False) -> dict[str, Any]:
    """The model's and the data's arguments inside a checkpoint, {"model": ..., "data": ...}.

    with_class: the model as {"class_path": ..., "init_args": ...}.

    Raises:
        ConfigError: see `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    model, data = checkpoint["model"], checkpoint["data"]
    if with_class:
        named = checkpoint["model_class"]
        model = {"class_path": f"{named.__module__}.{named.__qualname__}", "init_args": model}
    return {"model": model, "data": data}


def run(args: Sequence[str] | None = None) -> SETRecCLI:
    """Parse and run; errors come as exceptions. Tests call this."""
    torch.set_float32_matmul_precision("high")
    return command_line(None if args is None else list(args))


def prepared(args: Sequence[str]) -> SETRecCLI:
    """Parse the arguments of a fit (without the word) and make model, data and trainer, but run nothing."""
    return command_line(list(args), run=False)


def command_line(args: list[str] | None, run: bool = True) -> SETRecCLI:
    """LightningCLI with this project's classes and defaults."""
    named = names_model(sys.argv[1:] if args is None else args)
    return SETRecCLI(
        RankingModule if named else SETRecModule,
        SETRecDataModule,
        subclass_mode_model=named,
        args=args,
        run=run,
        seed_everything_default=SEED,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"use_distributed_sampler": False},
        parser_kwargs={"epilog": OTHERS},
    )


def main(args: Sequence[str] | None = None) -> None:
    """The command: one clear sentence and exit code 2 where the input is at fault."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words[:1] == ["merge"]:
            ckpt_path_of(words)
            auto_cli(merge, args=words[1:], as_positional=False)
        elif words[:1] == ["predict"] and values_of(words, "--histories"):
            auto_cli(predict_file, args=with_value(words[1:], "--explain"), as_positional=False)
        elif words[:1] == ["add-items"]:
            auto_cli(add_items, args=words[1:], as_positional=False)
        elif words[:1] == ["publish"]:
            auto_cli(publish, args=words[1:], as_positional=False)
        elif words[:1] == ["refit"] and {"-h", "--help"} & set(words):
            print(USAGE)
        elif words[:1] == ["refit"]:
            path = ckpt_path_of(words)
            if path is None:
                raise ConfigError("refit needs --ckpt_path PATH, the checkpoint of a fit.")
            refit(path, checkpoint_arguments(path), without(words[1:], "--ckpt_path"), run)
        elif words[:1] == ["ablate"]:
            from setrec.ablate import from_words  # only here: it needs this module

            from_words(words[1:])
        elif words[:1] == ["estimate"]:
            auto_cli(estimate, args=words[1:], as_positional=False)
        elif words[:1] == ["report"]:
            from setrec.report import report  # only here: scipy.stats takes a second to import

            auto_cli(report, args=words[1:], as_positional=False)
        elif words[:1] == ["serve"]:
            ckpt_path_of(words)
            auto_cli(serve, args=words[1:], as_positional=False)
        else:
            run(args)
    except SETRecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: the disk is full ({error}); free some space and start again.", file=sys.stderr)
        sys.exit(2)
