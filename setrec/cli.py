"""The command line: LightningCLI, told what SETRec's runs need.

    python main.py fit --config configs/quickstart.yaml
    python main.py test --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt

A checkpoint carries the arguments of its model and its data: `--ckpt_path` alone restores both, flags given win.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from setrec.data import SETRecDataModule
from setrec.errors import ConfigError, SETRecError
from setrec.module import SETRecModule
from setrec.writer import PredictionWriter

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
            words = [words[0], "--config", json.dumps(checkpoint_arguments(path)), *words[1:]]
        self.config = parser.parse_args(words)

    def _parse_ckpt_path(self) -> None:
        """Nothing: `parse_arguments` has read the checkpoint. Lightning's own way lets it override flags."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """As Lightning's, but plain `ddp` doesn't send the tables (buffers that never change) at every step."""
        if self._get(self.config_init, "trainer").get("strategy") == "ddp":
            kwargs["strategy"] = DDPStrategy(broadcast_buffers=False)
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


@rank_zero_only
def say(line: str) -> None:
    """Print once, whatever the number of processes."""
    print(line)


def ckpt_path_of(words: Sequence[str]) -> Path | None:
    """The file that `--ckpt_path` names, or None where there is none or it is a keyword such as `best`.

    Raises:
        ConfigError: it looks like a path and isn't there.
    """
    for place, word in enumerate(words):
        if word == "--ckpt_path" and place + 1 < len(words):
            value = words[place + 1]
        elif word.startswith("--ckpt_path="):
            value = word.split("=", 1)[1]
        else:
            continue
        if value in ("best", "last", "hpc", "registry", "null"):
            return None
        if not Path(value).exists():
            raise ConfigError(f"--ckpt_path {value}: no such file; give the path that fit printed at its end.")
        return Path(value)
    return None


def checkpoint_arguments(path: Path) -> dict[str, Any]:
    """The model's and the data's arguments inside a checkpoint, {"model": ..., "data": ...}.

    Raises:
        ConfigError: the file isn't a checkpoint of this project, or needs more than weights and plain types.
    """
    try:
        file = path / "meta.pt" if path.is_dir() else path
        checkpoint = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
        model, data = dict(checkpoint["hyper_parameters"]), dict(checkpoint["datamodule_hyper_parameters"])
    except Exception as error:  # whatever is wrong with the file, one sentence says so and names it
        raise ConfigError(
            f"--ckpt_path {path} is not a checkpoint of this project ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); give the path that fit printed at its end."
        ) from error
    for arguments in (model, data):
        for key in ("_class_path", "_instantiator"):
            arguments.pop(key, None)
    return {"model": model, "data": data}


def run(args: Sequence[str] | None = None) -> SETRecCLI:
    """Parse and run; errors come as exceptions. Tests call this."""
    torch.set_float32_matmul_precision("high")
    return SETRecCLI(
        SETRecModule,
        SETRecDataModule,
        args=None if args is None else list(args),
        seed_everything_default=SEED,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"use_distributed_sampler": False},
    )


def main(args: Sequence[str] | None = None) -> None:
    """The command: one clear sentence and exit code 2 where the input is at fault."""
    try:
        run(args)
    except SETRecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
