"""Every tracker gets the figures, the curve of beta and the table, in its own form; results.json stands beside every run."""

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from setrec import Recommender
from setrec.cli import main
from tests.conftest import command, model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("error"),
    # Lightning's own calls into jsonargparse and torch, and what pyproject.toml lists of short runs
    *map(
        pytest.mark.filterwarnings,
        [
            "ignore::DeprecationWarning",
            "ignore::FutureWarning:lightning.pytorch",
            "ignore:The number of training batches:UserWarning",
            "ignore:\n:UserWarning",
        ],
    ),
]

FLAGS = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--test_after_fit=true"]
RECALL = "test/all/recall@10"


def fit(folder: Path, *flags: str) -> tuple[Path, float]:
    """Run a fit; returns the folder of the run and its Recall@10 on test."""
    main([*command("fit", folder, *FLAGS), *model(), *flags])
    (found,) = [path for path in folder.rglob("results.json") if path.with_name("config.yaml").exists()]
    run = found.parent
    names = {path.name for path in run.iterdir()}
    assert names >= {"checkpoints", "config.yaml", "results.json", "per_user.parquet", "hits.parquet"}
    results = json.loads(found.read_text())
    assert Recommender.load(run / "checkpoints/last.ckpt").info()["results"] is not None
    return run, results["metrics"]["all"]["recall@10"]


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package = pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "online")  # Lightning overwrites it, for all runs after it too; so it is put back
    package.teardown()  # what another test has left
    yield
    package.finish()
    monkeypatch.delenv("WANDB_MODE")
    package.teardown()


def test_tensorboard_and_csv_side_by_side(tmp_path: Path) -> None:
    """Two trackers: the first has the run's folder, and both get everything."""
    kinds = [
        {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": {"save_dir": str(tmp_path), "name": kind}}
        for kind in ("TensorBoardLogger", "CSVLogger")
    ]
    (tmp_path / "loggers.yaml").write_text(yaml.safe_dump({"trainer": {"logger": kinds}}))
    run, recall = fit(tmp_path, f"--config={tmp_path / 'loggers.yaml'}")
    assert run == tmp_path / "TensorBoardLogger/version_0"
    events = EventAccumulator(str(run)).Reload()
    assert events.Scalars(RECALL)[-1].value == pytest.approx(recall)
    assert events.Tags()["images"] == ["validation/beta curve"]
    assert b"item CF" in events.Tensors("test/table/text_summary")[-1].tensor_proto.string_val[0]
    table = pl.read_csv(tmp_path / "CSVLogger/version_0/metrics.csv")
    assert table[RECALL].drop_nulls().to_list() == [pytest.approx(recall)]
    assert table["validation/recall@10, beta 0.3"].drop_nulls().len() == 1


@pytest.mark.usefixtures("mlflow")
def test_mlflow(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run, recall = fit(tmp_path, "--trainer.logger=MLFlowLogger", f"--trainer.logger.tracking_uri=file:{tmp_path}/ml")
    client = MlflowClient(f"file:{tmp_path}/ml")
    (experiment,) = [one for one in client.search_experiments() if one.name == "lightning_logs"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.metrics[RECALL.replace("@", "")] == pytest.approx(recall)
    assert run.name == found.info.run_id
    assert "results.json" in {file.path for file in client.list_artifacts(found.info.run_id)}
    assert [file.path for file in client.list_artifacts(found.info.run_id, "test")] == ["test/table.txt"]
    (picture,) = client.list_artifacts(found.info.run_id, "validation")
    assert picture.path.endswith(".png")


@pytest.mark.process
@pytest.mark.usefixtures("wandb")
def test_wandb_offline(tmp_path: Path) -> None:
    import wandb

    run, recall = fit(
        tmp_path, "--trainer.logger=WandbLogger", "--trainer.logger.offline=true", "--trainer.logger.save_dir=w"
    )
    summary = dict(wandb.run.summary)
    assert summary[RECALL] == pytest.approx(recall)
    assert summary["validation/beta curve"]["count"] == 1
    assert summary["test/table"]["ncols"] == 13
    assert run.name == wandb.run.id
    wandb.finish()
    (table,) = (tmp_path / "w").rglob("*.table.json")
    assert "item CF" in {row[0] for row in json.loads(table.read_text())["data"]}
