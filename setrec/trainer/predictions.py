"""`predict`: the ranked items of every user as one parquet file, with the users' and items' own ids."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from setrec.data.datamodule import SETRecDataModule
from setrec.files.whole import whole_file
from setrec.schemas import PAD
from setrec.trainer.ranking import Predictions
from setrec.trainer.run_folder import folder_of


class PredictionWriter(BasePredictionWriter):
    """Writes <run folder>/predictions.parquet: user_id, rank (from 1), item_id, score, title.

    Every process writes its own part beside the final file; the first process joins the parts, with each user once.

    Args:
        output: The file to write; None: predictions.parquet in the run's folder.
    """

    def __init__(self, output: str | None = None) -> None:
        super().__init__(write_interval="batch_and_epoch")
        self.output = output
        self.frames: list[pl.DataFrame] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Predictions,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Turn a batch of rankings into rows."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, SETRecDataModule)
        n_user, k = prediction.item.shape
        frame = pl.DataFrame(
            {
                "user": prediction.user.cpu().repeat_interleave(k).numpy(),
                "rank": torch.arange(1, k + 1).repeat(n_user).numpy(),
                "item": prediction.item.cpu().flatten().numpy(),
                "score": prediction.score.float().cpu().flatten().numpy(),
            }
        )
        self.frames.append(frame.filter(pl.col("item") != PAD))

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Write this process's part; the first process joins all parts into one file."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        folder = folder_of(trainer)
        if self.output is None and folder is None:
            return
        final = Path(self.output or Path(str(folder)) / "predictions.parquet")
        parts = final.with_name(final.name + ".parts")
        with whole_file(parts / f"{trainer.global_rank}.parquet") as hidden:
            pl.concat(self.frames).write_parquet(hidden)
        trainer.strategy.barrier("predictions written")
        if trainer.is_global_zero:
            join([parts / f"{rank}.parquet" for rank in range(trainer.world_size)], final, data)
            shutil.rmtree(parts)
            print(f"predictions: {final}")
        self.frames = []


def join(parts: Sequence[Path], final: Path, data: SETRecDataModule) -> None:
    """Join the processes' parts into one file with own ids and titles, users in order, each once."""
    users, items = data.histories.ids, data.catalogue
    rows = pl.concat([pl.read_parquet(part) for part in parts])
    rows = rows.unique(["user", "rank"], keep="first").sort("user", "rank")  # padded batches may repeat users
    named = rows.select(
        user_id=pl.Series([users[u] for u in rows["user"]], dtype=pl.String),
        rank=pl.col("rank").cast(pl.Int32),
        item_id=pl.Series([items.ids[i] for i in rows["item"]], dtype=pl.String),
        score=pl.col("score"),
        title=pl.Series([items.titles[i] for i in rows["item"]], dtype=pl.String),
    )
    with whole_file(final) as hidden:
        named.write_parquet(hidden)
