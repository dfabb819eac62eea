"""A model that is updated every day, one that stays behind, and one that is trained anew every day, on a stream of ten steps.

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/stream.py world --json FILE
    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/stream.py toys --raw DIR --json FILE

At each step the three models rank the whole catalogue for every user of the step's events, before any model has seen them. The
items of the step are known to all three by their texts. The events are then given to `setrec update`, and a model is trained from
scratch, with `fit` and `refit`, on the version of the data that the update made.

world: the made-up world, whose tastes drift over a year. Its first half is the start; the rest, in order of time, are the steps.
toys: DIR is the folder of the official release. It knows three periods in order of time (training, validation, test) and each
user's order within a period, no times. The training period is the start. The validation period is steps 1 to 5, the test period
steps 6 to 10: a user's events of a period get random times in it, in their order. So the change from the training period to step 1
and from step 5 to step 6 is that of the data, and that within a period is not.
"""

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from setrec.cli import run
from setrec.commands import refit, update, update_link, update_report
from setrec.commands.gate import as_served, measure
from setrec.data import OfficialRelease, SyntheticWorld
from setrec.data.batches import BatchLoader, EvalPlan, EvalRows
from setrec.data.catalogue import Catalogue, Histories
from setrec.data.grow import Newest, grow, versions_of
from setrec.data.store import locked, write
from setrec.files.checkpoint import read_checkpoint
from setrec.inference.restore import read_trained
from setrec.trainer.ranking import data_of

STEPS = 10
MODEL = [
    "--model.backbone", "DecoderBackbone", "--model.backbone.family=qwen2", "--model.backbone.shape=nano", "--model.n_sem=2",
    "--model.lr=2e-3", "--model.objective=score", "--model.negatives=warm", "--model.missing_cf=zero", "--model.cf_dropout=0.2",
    "--model.memory=true", "--model.neighbours=true",
]  # fmt: skip
QUIET = [
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu",
    "--trainer.logger=false",
]  # fmt: skip


def world(users: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events (user, item, timestamp, step; step 0 is the start) and items."""
    log = SyntheticWorld(users=users, items=users // 3, events=14).read(None)
    events = log.events.rename({"time": "timestamp"}).sort("timestamp", maintain_order=True)
    step = np.maximum(np.arange(len(events)) * 2 * STEPS // len(events) - STEPS + 1, 0)
    return events.with_columns(step=pl.Series(step)), log.items


def toys(raw: Path, users: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The same of the official release, with a sample of its users."""
    log, rng = OfficialRelease().read(raw), np.random.default_rng(0)
    chosen = rng.permutation(len(log.user_ids))[:users]
    parts = []
    for period, (rows, length) in enumerate(
        ((log.train, 5 * STEPS), (log.validation, STEPS // 2), (log.test, STEPS // 2))
    ):
        first = (0, 1, 1 + STEPS // 2)[period]
        for user in chosen.tolist():
            items = rows.row(user)
            when = np.sort(rng.random(len(items)))  # (items,) in the period
            step = 0 if period == 0 else (when * length).astype(int) + first
            start = {0: 0, 1: 5 * STEPS, 2: 5 * STEPS + STEPS // 2}[period]
            days = (start + when * length) * 86_400
            parts.append(pl.DataFrame({"user": [f"u{user}"] * len(items), "item": items, "timestamp": days.astype(int)})
                         .with_columns(step=pl.lit(0) if period == 0 else pl.Series(step, dtype=pl.Int64)))  # fmt: skip
    events = pl.concat(parts, how="vertical_relaxed").sort("timestamp", maintain_order=True)
    own = log.items["id"]
    return events.with_columns(item=own[events["item"].to_numpy()], step=pl.col("step").cast(pl.Int64)), log.items


def write_steps(folder: Path, events: pl.DataFrame, items: pl.DataFrame) -> None:
    """The files of every step: its events, and the items that it has first."""
    first = events.group_by("item").agg(pl.col("step").min())
    for step in range(STEPS + 1):
        events.filter(pl.col("step") == step).drop("step").write_csv(folder / f"events_{step}.csv")
        own = first.filter(pl.col("step") == step)["item"].to_list()
        items.filter(pl.col("id").is_in(own)).select("id", "title", "text").write_csv(folder / f"items_{step}.csv")


def fit(folder: Path, epochs: int) -> Path:
    """The first model: fit, then refit."""
    reader = {"events": "events_0.csv", "items": "items_0.csv", "user": "user", "item": "item", "item_id": "id"}
    flags = [f"--data.reader.{name}={value}" for name, value in reader.items()]
    done = run([
        "fit", "--data.name=stream", f"--data.root={folder / 'data'}", f"--data.raw={folder}", "--data.reader=TableFiles", *flags,
        "--data.reader.text_fields=[text]", "--data.cleaning.k_core=0", "--data.split.test_share=0.005",
        "--data.split.validation_factor=20", "--data.split.min_train=1", f"--trainer.max_epochs={epochs}", *MODEL, *QUIET,
        f"--trainer.default_root_dir={folder / 'runs'}",
    ])  # fmt: skip
    return refitted(done.checkpoint.best_model_path, folder / "runs")


def refitted(checkpoint: str, where: Path) -> Path:
    done = refit.from_words(["--ckpt_path", checkpoint, f"--trainer.default_root_dir={where}", *QUIET])
    return Path(done.checkpoint.outcome).resolve()


def fully(first: Path, version: Path, epochs: int) -> tuple[Path, float]:
    """A model trained from scratch on a version of the data, and the CPU minutes."""
    began = time.process_time()
    known: dict[str, Any] = update.checkpoint_arguments(first)
    data = known["data"] | {"name": version.name, "fit_on": "train"}
    model = known["model"] | {"start_from": None, "lr": 2e-3}
    words = ["fit", "--config", json.dumps({"model": model, "data": data}), f"--trainer.max_epochs={epochs}", *QUIET]
    done = run([*words, f"--trainer.default_root_dir={version / 'full'}"])
    return refitted(done.checkpoint.best_model_path, version / "full"), (time.process_time() - began) / 60


def figures(folder: Path, step: int, first: Path, models: dict[str, Path]) -> dict[str, Any]:
    """Recall@10 and NDCG@10 of the models on the events of a step, and the number of users."""
    base = list(versions_of(folder / "data/stream").values())
    before = base[-1] if base else folder / "data/stream"
    files = {"events": folder / f"events_{step}.csv", "items": folder / f"items_{step}.csv"}
    options = update.Options(current=folder / "current.ckpt", **files)
    checkpoint = read_checkpoint(first)
    made = data_of(checkpoint).preparation
    log = update.read_events(options, made.reader)
    _, items = update.new_items(options, before, log, made)
    grown = grow(before, f"asked_{step}", log, items, made.cf, made.cleaning, Newest(share=1.0), "")
    asked = folder / "data" / f"asked_{step}"
    with locked(asked):
        write(asked, grown.prepared, grown.about)
    catalogue, h = Catalogue.load(asked), Histories.load(asked)
    rows = EvalRows(h.train, h.validation, 50)
    users = np.flatnonzero(h.validation.lengths)
    found: dict[str, Any] = {"users": len(users), "events": len(h.validation.items)}
    for name, path in models.items():
        served = as_served(read_trained(path), catalogue)
        loader = BatchLoader(rows, EvalPlan(users, rows.shown[users], 128))
        table = measure(lambda b, s=served: next(s.scorer.scores(b, [s.weights])), loader, catalogue.warm)
        found[name] = {metric: table.value(metric) for metric in ("recall@10", "ndcg@10")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["world", "toys"])
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--no_full", action="store_true")
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder")
    parser.add_argument("--json", type=Path)
    given, flags = parser.parse_known_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    events, items = world(given.users) if given.data == "world" else toys(given.raw, given.users)
    write_steps(given.folder, events, items)
    began = time.process_time()
    first = fit(given.folder, given.epochs)
    start = (time.process_time() - began) / 60
    link = given.folder / "current.ckpt"
    update_link.point(link, first)
    full, steps = first, []
    for step in range(1, given.steps + 1):
        models = {"behind": first, "updated": link.resolve()} | ({} if given.no_full else {"full": full})
        row = {"step": step} | figures(given.folder, step, first, models)
        words = ["--current", str(link), "--events", str(given.folder / f"events_{step}.csv"), "--keep", "99"]
        words += ["--items", str(given.folder / f"items_{step}.csv"), *QUIET, *flags]
        with contextlib.suppress(SystemExit):
            update.from_words(words)
        version = list(versions_of(given.folder / "data/stream").values())[-1]
        report = update_report.report_of(version) or {}
        row |= {"published": report["published"], "minutes": {"updated": report["cpu_minutes"]}}
        if not given.no_full and step < given.steps:
            full, row["minutes"]["full"] = fully(first, version, given.epochs)
        steps.append(row)
        print(json.dumps(row), flush=True)
        if given.json:
            given.json.write_text(json.dumps({"arguments": [given.data, given.users, given.epochs, *flags],
                                              "start_minutes": start, "steps": steps}, indent=1))  # fmt: skip
    for name in models:
        mean = {metric: np.mean([row[name][metric] for row in steps]) for metric in ("recall@10", "ndcg@10")}
        minutes = sum(row["minutes"].get(name, 0) for row in steps)
        print(f"{name:8} {mean['recall@10']:.4f} {mean['ndcg@10']:.4f} {minutes:.1f} CPU minutes")


if __name__ == "__main__":
    main()
