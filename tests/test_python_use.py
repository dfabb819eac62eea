"""Without the command line: Lightning's Trainer, a module, a datamodule, a checkpoint."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from setrec import Recommender
from setrec.backbones import T5Backbone
from setrec.data import Cleaning, SETRecDataModule, SyntheticWorld
from setrec.errors import ConfigError
from setrec.module import SETRecModule
from setrec.sasrec import SASRecModule


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        yield


def world(folder: Path, name: str = "tiny", **options: Any) -> SETRecDataModule:
    reader = SyntheticWorld(users=60, items=40, seed=options.pop("seed", 1))
    options = {"reader": reader, "cleaning": Cleaning(k_core=2), "batch_size": 64} | options
    return SETRecDataModule(name=name, root=str(folder / "data"), **options)


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=folder, **quiet, **{"max_epochs": 1} | options)


def module(**options: Any) -> SETRecModule:
    return SETRecModule(backbone=T5Backbone(shape="nano"), n_sem=2, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SETRecModule, Path]:
    """Its folder, a module that was fitted in Python, and its checkpoint."""
    folder = tmp_path_factory.mktemp("python")
    fitted = module(neighbours=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        runner = trainer(folder)
        runner.fit(fitted, datamodule=world(folder))
    path = Path(runner.checkpoint_callback.best_model_path)
    return folder, fitted, path


def scores(loaded: SETRecModule, data: SETRecDataModule) -> torch.Tensor:
    loaded.eval().prepare_scoring("test")
    with torch.no_grad():
        return torch.cat([loaded.score(batch) for batch in data.test_dataloader()])


def test_a_loaded_checkpoint_scores_and_recommends(trained: tuple[Path, SETRecModule, Path]) -> None:
    _, fitted, path = trained
    loaded = SETRecModule.load_from_checkpoint(path)
    assert loaded.chosen == fitted.chosen
    assert loaded.weights_chosen
    assert torch.equal(scores(loaded, loaded.data), scores(fitted, fitted.data))
    history = [loaded.data.catalogue.ids[3], loaded.data.catalogue.ids[5]]
    (listed,) = Recommender.load(path).recommend([history], k=5)
    assert len(listed.items) == 5


def test_a_loaded_checkpoint_is_tested_with_its_data_or_with_data_given(
    trained: tuple[Path, SETRecModule, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, path = trained
    data = world(folder)
    alone = SETRecModule.load_from_checkpoint(path)
    given = SETRecModule.load_from_checkpoint(str(path), datamodule=world(folder))
    tables = []
    for run in (
        lambda: trainer(tmp_path).test(alone),
        lambda: trainer(tmp_path).test(alone, datamodule=data),
        lambda: trainer(tmp_path).test(given),
        lambda: trainer(tmp_path).test(module(neighbours=True), datamodule=world(folder), ckpt_path=path),
    ):
        capsys.readouterr()
        run()
        tables.append(capsys.readouterr().out)
    assert "SETRec" in tables[0]
    assert tables[1:] == tables[:1] * 3
    trainer(tmp_path).validate(alone)
    predictions = trainer(tmp_path).predict(alone)
    assert sum(len(batch.user) for batch in predictions) == len(data_ids(alone))


def data_ids(loaded: SETRecModule) -> list[str]:
    return loaded.data.histories.ids


def test_a_loaded_checkpoint_is_trained_further(trained: tuple[Path, SETRecModule, Path], tmp_path: Path) -> None:
    _, _, path = trained
    loaded = SETRecModule.load_from_checkpoint(path, lr=5e-4)
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    runner = trainer(tmp_path)
    runner.fit(loaded)
    assert runner.optimizers[0].param_groups[0]["initial_lr"] == 5e-4
    assert any(not torch.equal(before[name], value) for name, value in loaded.state_dict().items())


def test_a_resumed_fit_in_python(trained: tuple[Path, SETRecModule, Path], tmp_path: Path) -> None:
    folder, _, path = trained
    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(module(neighbours=True, lr=1e-5), datamodule=world(folder), ckpt_path=path)
    assert runner.optimizers[0].param_groups[0]["initial_lr"] == 1e-5


def test_prepared_data_is_compared_before_it_is_replaced(
    trained: tuple[Path, SETRecModule, Path], tmp_path: Path
) -> None:
    """By a checkpoint that the Trainer is given, by `start_from`, and by a module that was loaded."""
    folder, _, path = trained
    kept = {file.name: file.read_bytes() for file in (folder / "data/tiny").iterdir()}
    loaded = SETRecModule.load_from_checkpoint(path)

    def other() -> SETRecDataModule:  # the world under that name is another now
        return world(folder, seed=2)

    for run in (
        lambda: trainer(tmp_path).test(module(neighbours=True), datamodule=other(), ckpt_path=path),
        lambda: trainer(tmp_path).predict(module(neighbours=True), datamodule=other(), ckpt_path=str(path)),
        lambda: trainer(tmp_path).fit(module(neighbours=True), datamodule=other(), ckpt_path=path),
        lambda: trainer(tmp_path).fit(module(neighbours=True, start_from=str(path)), datamodule=other()),
        lambda: trainer(tmp_path).test(loaded, datamodule=other()),
    ):
        with pytest.raises(ConfigError, match="trained on the data set 'tiny' .* nothing was changed in .*data/tiny"):
            run()
    assert {file.name: file.read_bytes() for file in (folder / "data/tiny").iterdir()} == kept


def test_start_from_in_python(trained: tuple[Path, SETRecModule, Path], tmp_path: Path) -> None:
    folder, _, path = trained
    trainer(tmp_path, limit_train_batches=1).fit(
        module(neighbours=True, start_from=str(path)), datamodule=world(folder)
    )
    kept = tmp_path / "sasrec.ckpt"
    runner = trainer(tmp_path, limit_train_batches=1)
    runner.fit(SASRecModule(), datamodule=world(folder))
    runner.save_checkpoint(kept)
    for start, sentence in (
        (kept, "is a checkpoint of setrec.sasrec.SASRecModule: give"),
        ("no.ckpt", "no.ckpt is not a checkpoint"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            trainer(tmp_path).fit(module(neighbours=True, start_from=str(start)), datamodule=world(folder))


@pytest.mark.parametrize("make", [module, SASRecModule])
def test_a_second_datamodule(tmp_path: Path, make: Any) -> None:
    used = make()
    trainer(tmp_path).fit(used, datamodule=world(tmp_path))
    other = world(tmp_path, "other", seed=2)
    for run in ("fit", "validate", "test", "predict"):
        with pytest.raises(ConfigError, match="made for the data set 'tiny' .* cannot go on with 'other'"):
            getattr(trainer(tmp_path), run)(used, datamodule=other)
    again = world(tmp_path)  # the same data in another object
    trainer(tmp_path).validate(used, datamodule=again)
    trainer(tmp_path).fit(used, datamodule=again)


def test_the_same_data_fitted_in_another_way(tmp_path: Path) -> None:
    used = module(negatives="warm")
    trainer(tmp_path).fit(used, datamodule=world(tmp_path))
    later = world(tmp_path, fit_on="validation")
    trainer(tmp_path, limit_val_batches=0).fit(used, datamodule=later)
    assert used.model is not None
    assert torch.equal(used.model.negatives.allowed, later.targets.nonzero().flatten())


def test_a_module_without_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pass it as `datamodule` to the Trainer"):
        trainer(tmp_path).fit(module())
    with pytest.raises(ConfigError, match="pass it as `datamodule` to the Trainer"):
        _ = module().data


def test_checkpoints_that_cannot_be_loaded(trained: tuple[Path, SETRecModule, Path], tmp_path: Path) -> None:
    folder, _, path = trained
    with pytest.raises(ConfigError, match="holds a setrec.module.SETRecModule, not a setrec.sasrec.SASRecModule"):
        SASRecModule.load_from_checkpoint(path)
    other = world(tmp_path, "other", seed=2)
    other.prepare_data()
    with pytest.raises(ConfigError, match="trained on the data set 'tiny' .* but this is 'other'"):
        SETRecModule.load_from_checkpoint(path, datamodule=other)
    with pytest.raises(ConfigError, match="--model.n_sem was 2, is 1"):
        SETRecModule.load_from_checkpoint(path, n_sem=1)
    (tmp_path / "no.ckpt").write_text("no checkpoint")
    with pytest.raises(ConfigError, match="no.ckpt is not a checkpoint"):
        SETRecModule.load_from_checkpoint(tmp_path / "no.ckpt")
    moved = torch.load(path, weights_only=True)
    moved["datamodule_hyper_parameters"]["root"] = str(tmp_path / "elsewhere")
    torch.save(moved, tmp_path / "moved.ckpt")
    with pytest.raises(ValueError, match="holds no prepared data"):
        SETRecModule.load_from_checkpoint(tmp_path / "moved.ckpt")
    SETRecModule.load_from_checkpoint(tmp_path / "moved.ckpt", datamodule=world(folder))
