"""The first 20 losses of four runs: `python curves.py FILE`, run by make.sh beside the prepared data."""

import csv
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from setrec.cli import run

STEPS = 20
SHOP = [  # the prepared data, no raw files
    "--data.name=shop",
    "--data.reader=TableFiles",
    "--data.reader.events=events.csv",
    "--data.reader.items=items.csv",
    "--data.reader.user=customer",
    "--data.reader.item=product",
    "--data.reader.timestamp=bought_at",
    "--data.reader.rating=stars",
    "--data.reader.item_id=id",
    "--data.reader.text_fields=[title, category, brand]",
    "--data.cleaning.min_rating=2",
    "--data.cleaning.k_core=3",
    "--data.text=TfidfSVD",
    "--data.text.width=16",
    "--data.cf=[{class_path: CooccurrenceSVD, init_args: {width: 8}}]",
    "--data.batch_size=128",
    "--trainer.max_epochs=3",  # of 9 steps
    "--trainer.max_steps=20",
]
RUNS = {
    "quickstart": [
        "--config=configs/quickstart.yaml",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=20",
        "--trainer.limit_val_batches=1",
        "--test_after_fit=false",
    ],
    "t5": [*SHOP, "--model.backbone=T5Backbone", "--model.backbone.shape=tiny"],
    "decoder": [
        *SHOP,
        "--model.backbone=DecoderBackbone",
        "--model.backbone.family=qwen2",
        "--model.backbone.shape=tiny",
    ],
    "sasrec": [*SHOP, "--model=SASRecModule", "--model.warmup_steps=5"],
}
EVERYWHERE = [
    "--seed_everything=2023",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
]


def main() -> None:
    torch.set_num_threads(1)
    runs: dict[str, Any] = {}
    for name, own in RUNS.items():
        args = ["fit", *own, *EVERYWHERE]
        first, second = curve(args), curve(args)
        assert first == second, name  # to the bit
        assert len(first) == STEPS, (name, len(first))
        runs[name] = {"args": args, "loss": first}
    made_with = {package: version(package) for package in ("torch", "lightning", "transformers")}
    made_with["cpu"] = torch.backends.cpu.get_cpu_capability()
    Path(sys.argv[1]).write_text(json.dumps({"made_with": made_with, "runs": runs}, indent=1) + "\n")


def curve(args: list[str]) -> list[float]:
    """train/loss at every step."""
    with tempfile.TemporaryDirectory() as folder:
        places = [f"--trainer.logger.save_dir={folder}", f"--trainer.default_root_dir={folder}"]
        own_data = [f"--data.root={folder}/data"] if "--data.name=shop" not in args else []
        run([*args, *places, *own_data])
        (path,) = Path(folder).rglob("metrics.csv")
        with path.open() as file:
            return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


if __name__ == "__main__":
    main()
