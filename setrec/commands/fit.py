"""fit, validate, test, predict: LightningCLI, told what SETRec's runs need.

    setrec fit --config quickstart
    setrec fit --config data/toys --config model/best --data.raw DIR
    setrec test --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt

A checkpoint carries the arguments of its model and its data: `--ckpt_path` alone restores both, flags given win.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

# importing these lets the command line name their classes without the module
import setrec.backbones.decoder
import setrec.data.readers
import setrec.encoders
import setrec.sasrec  # noqa: F401
from setrec.class_names import check_class_names, current_name
from setrec.commands.configurations import OPTIONS, find_configuration, with_configurations
from setrec.commands.words import ckpt_path_of, values_of
from setrec.data.datamodule import SETRecDataModule
from setrec.errors import ConfigError
from setrec.evaluation.rivals import Rival, check_rivals
from setrec.files.checkpoint import SETREC, read_checkpoint
from setrec.module import SETRecModule
from setrec.trainer.checkpoints import WholeCheckpointIO
from setrec.trainer.predictions import PredictionWriter
from setrec.trainer.ranking import RankingModule

SEED = 2023
MONITOR = "recall@10"  # validation, all items; logged by RankingModule


class SETRecCLI(LightningCLI):
    """LightningCLI with checkpoints that know their data, and a test at the end of a fit where asked."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Checkpointing and early stopping watch validation Recall@10 over all items."""
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Run test once with the best checkpoint when fit ends."
        )
        parser.add_argument(
            "--compare",
            type=list[Rival],
            default=[],
            help="Methods that the table of test and validate shows beside the baselines, and which take minutes: "
            "ease, ials (needs pip install 'setrec[ials]').",
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
            known = checkpoint_arguments(path, self.subclass_mode_model, named_classes(words))
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

    def instantiate_classes(self) -> None:
        """As Lightning's; and tell the model what its table compares with."""
        rivals = self._get(self.config, "compare")
        check_rivals(rivals)
        super().instantiate_classes()
        self.model.rivals = rivals

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
            say(f"next: setrec {command} --ckpt_path {best}")

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


def names_model(words: Sequence[str]) -> bool:
    """Whether the model is named by its class: by --model, in a --config file, or in a checkpoint that isn't SETRec's.

    SETRec needs no name; left unnamed, `--help` explains every one of its hyper-parameters.
    """
    if values_of(words, "--model", "--model.help"):
        return True
    for config in configs_of(words):
        if "class_path" in (config.get("model") or {}):
            return True
    path = ckpt_path_of(words)
    return path is not None and read_checkpoint(path).model_class != SETREC


def configs_of(words: Sequence[str]) -> list[dict[str, Any]]:
    """The content of the files that --config names; what can't be read is left to the parser, which says what is wrong."""
    found = []
    for value in values_of(words, *OPTIONS):
        try:
            config = yaml.safe_load(Path(find_configuration(value)).read_text())
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(config, dict):
            found.append(config)
    return found


def named_classes(words: Sequence[str]) -> set[str]:
    """Names of classes that the user gives on the command line or in a --config file."""

    def inside(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set().union(*map(inside, value.values()))
        if isinstance(value, list):
            return set().union(*map(inside, value))
        return {current_name(value)} if isinstance(value, str) else set()

    return {current_name(word.rpartition("=")[2]) for word in words} | inside(configs_of(words))


def checkpoint_arguments(path: Path, with_class: bool = False, named: Iterable[str] = ()) -> dict[str, Any]:
    """The model's and the data's arguments inside a checkpoint, {"model": ..., "data": ...}.

    Args:
        path: the checkpoint.
        with_class: the model as {"class_path": ..., "init_args": ...}.
        named: classes that the user names; a checkpoint may hold these beside those of this project.

    Raises:
        ConfigError: see `read_checkpoint` and `check_class_names`.
    """
    checkpoint = read_checkpoint(path)
    model, data = checkpoint.model, checkpoint.data
    if with_class:
        model = {"class_path": checkpoint.model_class, "init_args": model}
    check_class_names([model, data], named)
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
    words = with_configurations(sys.argv[1:] if args is None else args)
    named = names_model(words)
    return SETRecCLI(
        RankingModule if named else SETRecModule,
        SETRecDataModule,
        subclass_mode_model=named,
        args=words,
        run=run,
        seed_everything_default=SEED,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"use_distributed_sampler": False},
    )


def from_words(words: Sequence[str]) -> None:
    """Run `fit`, `validate`, `test` or `predict`; the name is the first word."""
    run(words)
