"""fit, validate, test, predict: LightningCLI, told what SETRec's runs need.

    setrec fit --config quickstart
    setrec fit --config data/toys --config model/best --data.raw DIR
    setrec test --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt

A checkpoint carries the arguments of its model and its data: `--ckpt_path` alone restores both, flags given win.
"""

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

# importing these lets the command line name their classes without the module
import setrec.backbones.decoder
import setrec.data.duckdb_engine
import setrec.data.readers
import setrec.data.spark_engine
import setrec.encoders
import setrec.sasrec  # noqa: F401
from setrec.class_names import check_class_names, current_name
from setrec.commands.configurations import OPTIONS, find_configuration, with_configurations
from setrec.commands.one_sentence import of_construction, of_run
from setrec.commands.parser import Parser
from setrec.commands.run_config import RunConfig
from setrec.commands.trainer_flags import check_trainer_flags
from setrec.commands.words import ckpt_path_of, command_of, values_of, without
from setrec.data.datamodule import SETRecDataModule
from setrec.errors import ConfigError
from setrec.evaluation.rivals import Rival, check_rivals
from setrec.files.checkpoint import SETREC, read_checkpoint
from setrec.module import SETRecModule
from setrec.trainer.checkpoints import WholeCheckpointIO
from setrec.trainer.early_stopping import RunEarlyStopping
from setrec.trainer.predictions import PredictionWriter
from setrec.trainer.ranking import RankingModule
from setrec.trainer.run_checkpoint import RunCheckpoint
from setrec.trainer.run_folder import FolderOnly, claim_version
from setrec.trainer.trackers import accept_renaming

SEED = 2023
PREPARING = frozenset(  # data options that say how data is prepared
    {"prepared_only", "raw", "reader", "text", "cf", "cleaning", "split", "paper_ids"}
)
MONITOR = "recall@10"  # validation, all items; logged by RankingModule


class SETRecCLI(LightningCLI):
    """LightningCLI with checkpoints that know their data, and a test at the end of a fit where asked.

    Args:
        words: the command line as it was given, to print a command that goes on from there.
        *args, **kwargs: of LightningCLI.
    """

    def __init__(self, words: Sequence[str], *args: Any, **kwargs: Any) -> None:
        self.words = list(words)
        super().__init__(*args, **kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command that is run: parsers of the others would take a fifth of the time of `fit --help`."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in every if name in self.words[:1]} or every

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
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(RunEarlyStopping, "early_stopping")
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
            known = checkpoint_arguments(path, words, self.subclass_mode_model)
            words = [words[0], "--config", json.dumps(known), *words[1:]]
        self.config = parser.parse_args(words)
        chosen = self.config.get(self.config.get("subcommand", ""), self.config)
        if chosen.get("ckpt_path") == "last" and not chosen["checkpoint"]["dirpath"]:
            raise ConfigError(
                "--ckpt_path last: every run has a folder of its own, which holds nothing yet; name the file."
            )
        for option in ("optimizer", "lr_scheduler"):
            if chosen.get(option):
                raise ConfigError(
                    f"--{option}: the model makes its own, AdamW and a schedule; set --model.lr, --model.weight_decay and "
                    "--model.warmup_steps."
                )

    def _parse_ckpt_path(self) -> None:
        """Nothing: `parse_arguments` has read the checkpoint. Lightning's own way lets it override flags."""

    def instantiate_classes(self) -> None:
        """As Lightning's; an error of a class that an option names is one sentence."""
        rivals = self._get(self.config, "compare")
        check_rivals(rivals)
        with of_construction("the options name a class that can't be made"):
            super().instantiate_classes()
        self.model.rivals = rivals
        self.datamodule.needs_test = self.subcommand == "fit" and bool(self._get(self.config, "test_after_fit"))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """As Lightning's, but checkpoints are whole, and plain `ddp` doesn't send the unchanging tables at every step."""
        given = self._get(self.config_init, "trainer")
        check_trainer_flags(given)
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
        with of_construction("the options of the Trainer don't work"):
            trainer = super().instantiate_trainer(**kwargs)
        accept_renaming(trainer.loggers)
        for logger in trainer.loggers:
            claim_version(logger)
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Leave out the callbacks that the Trainer would refuse; a run without a logger has a folder of its own too."""
        if config["logger"] is False and not config["barebones"]:
            config["logger"] = FolderOnly(config["default_root_dir"] or Path.cwd())
        if config["barebones"]:
            callbacks = [one for one in callbacks if not isinstance(one, RunCheckpoint | RunEarlyStopping)]
        if config["enable_checkpointing"] is False:
            callbacks = [one for one in callbacks if not isinstance(one, RunCheckpoint)]
        return super()._instantiate_trainer(config, callbacks)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command. A signal ends it with the usual exit code, 143 or 130, and with the command that goes on.

        Raises:
            ConfigError: Lightning refuses an option.
            SystemExit: a signal came.
        """
        try:
            with of_run():
                super()._run_subcommand(subcommand)
        except SystemExit as stop:
            number = self.signal_of(stop)
            if number is None:
                raise
            self.say_how_to_go_on(signal.Signals(number).name)
            sys.exit(128 + number)

    def signal_of(self, stop: SystemExit) -> int | None:
        """The number of the signal that ended a run; None: no signal did."""
        if isinstance(stop, SIGTERMException):  # Lightning's, before the first step
            return signal.SIGTERM
        if stop.code == 1 and self.trainer.state.status == TrainerStatus.INTERRUPTED:  # Lightning's answer to Ctrl+C
            return signal.SIGINT
        return stop.code - 128 if stop.code in (128 + signal.SIGTERM, 128 + signal.SIGINT) else None

    def say_how_to_go_on(self, name: str) -> None:
        """Say how to go on after a signal."""
        last = self.checkpoint.last_model_path if self.checkpoint is not None else ""
        if self.subcommand != "fit" or not last:
            say(f"stopped by {name}; nothing was kept: run the same command again")
            return
        words = without(
            without(self.words, "--ckpt_path"), "--config", "{"
        )  # options of another checkpoint: `last` has them
        say(f"stopped by {name} after {self.trainer.global_step:,} steps; last checkpoint: {last}")
        say(f"resume: {command_of([*words, '--ckpt_path', last])}")

    @property
    def checkpoint(self) -> RunCheckpoint | None:
        """What writes the run's checkpoints; None: nothing does."""
        return next((one for one in self.trainer.callbacks if isinstance(one, RunCheckpoint)), None)  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        """Test once where asked, then say where the checkpoint is and what can be done with it."""
        checkpoint, testing = self.checkpoint, self._get(self.config, "test_after_fit")
        best, last = (checkpoint.best_model_path, checkpoint.last_model_path) if checkpoint is not None else ("", "")
        trained, chosen = self.trainer.global_step > 0, self.model.weights_chosen
        if testing and trained:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or last or None)
            self.after_test()
        if self._get(self.config, "ckpt_path") and checkpoint is not None and not checkpoint.has_trained:
            say(
                f"nothing was left to train: the checkpoint has {self.trainer.global_step:,} steps; give more --trainer.max_epochs"
            )
        if best:
            say(f"best checkpoint: {best}")
        elif last:
            say(f"last checkpoint: {last}{'' if chosen else ' (no validation chose the weights of its score)'}")
        else:
            say(f"no checkpoint was written{'' if trained else ': nothing was trained'}")
        if best or last:
            say(f"next: {command_of(['predict' if testing else 'test', '--ckpt_path', best or last])}")

    def after_test(self) -> None:
        """Say where the figures are."""
        say(f"results: {self.model.results_path or 'none were written'}")

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


def asks_to_prepare(words: Sequence[str]) -> bool:
    """Whether a command line itself, or a --config file on it, says how data is prepared."""
    given = {word.partition("=")[0] for word in words}
    named = {name.split(".")[1] for name in given if name.startswith("--data.")}
    inside = {name for config in configs_of(words) for name in config.get("data") or {}}
    return "--data" in given or bool(PREPARING & (named | inside))


def checkpoint_arguments(path: Path, words: Sequence[str] = (), with_class: bool = False) -> dict[str, Any]:
    """The model's and the data's arguments inside a checkpoint, {"model": ..., "data": ...}.

    A checkpoint may come from anyone. So its data is read where it is prepared, and nothing is prepared, downloaded or written
    because a checkpoint says so. If the command line says how to prepare data, that is done, in the folder that the command
    line names, from the raw files that it names.

    Args:
        path: the checkpoint.
        words: the command line. A checkpoint may name the classes that it names, beside those of this project.
        with_class: the model as {"class_path": ..., "init_args": ...}.

    Raises:
        ConfigError: see `read_checkpoint` and `check_class_names`.
    """
    checkpoint = read_checkpoint(path)
    model, data = checkpoint.model, checkpoint.data
    if with_class:
        model = {"class_path": checkpoint.model_class, "init_args": model}
    check_class_names([model, data], named_classes(words))
    asked = asks_to_prepare(words)
    own = {"raw", "root"} if asked else {"raw"}
    data = {name: value for name, value in data.items() if name not in own} | {"prepared_only": not asked}
    if isinstance(data.get("reader"), dict):
        data["reader"].get("init_args", {}).pop("download", None)
    return {"model": model, "data": data}


def run(args: Sequence[str] | None = None) -> SETRecCLI:
    """Parse and run; errors come as exceptions. Tests call this."""
    torch.set_float32_matmul_precision("high")
    return command_line(None if args is None else list(args))


def prepared(args: Sequence[str]) -> SETRecCLI:
    """Parse the arguments of a fit (without the word) and make model, data and trainer, but run nothing."""
    return command_line(list(args), run=False)


def command_line(
    args: list[str] | None, run: bool = True, kind: type[SETRecCLI] = SETRecCLI, callbacks: Sequence[Callback] = ()
) -> SETRecCLI:
    """LightningCLI with this project's classes and defaults, and callbacks beside those of the options."""
    given = sys.argv[1:] if args is None else args
    words = with_configurations(given)
    named = names_model(words)
    return kind(
        given,
        RankingModule if named else SETRecModule,
        SETRecDataModule,
        subclass_mode_model=named,
        parser_class=Parser,
        args=words,
        run=run,
        seed_everything_default=SEED,
        save_config_callback=RunConfig,
        trainer_defaults={"use_distributed_sampler": False, "callbacks": list(callbacks)},
    )


def from_words(words: Sequence[str]) -> None:
    """Run `fit`, `validate`, `test` or `predict`; the name is the first word."""
    run(words)
