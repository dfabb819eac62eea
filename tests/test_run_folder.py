"""Every run has a folder of its own, whatever its name, and prints commands that can be pasted."""

import multiprocessing
import shlex
import subprocess
from pathlib import Path

import pytest
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from setrec.cli import main
from setrec.commands.words import command_of, without
from setrec.errors import ConfigError
from setrec.trainer.run_folder import FolderOnly, claim_version, folder_of
from tests.conftest import TrainedRun, command, model


def claim(kind: type, folder: Path, barrier: object, found: object) -> None:
    logger = kind(folder)
    claim_version(logger)
    barrier.wait()  # type: ignore[attr-defined]
    found.put(logger.version)  # type: ignore[attr-defined]


@pytest.mark.process
@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger, FolderOnly])
def test_runs_that_start_together_get_a_folder_each(tmp_path: Path, kind: type) -> None:
    (tmp_path / "lightning_logs/version_4").mkdir(parents=True)
    fork = multiprocessing.get_context("fork")
    barrier, found = fork.Barrier(4), fork.Queue()
    processes = [fork.Process(target=claim, args=(kind, tmp_path, barrier, found)) for _ in range(4)]
    for process in processes:
        process.start()
    assert sorted(found.get(timeout=60) for _ in processes) == [5, 6, 7, 8]
    for process in processes:
        process.join()


def test_the_folder_is_made_with_the_number_and_once(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="runs")
    claim_version(logger)
    assert not (tmp_path / "runs").exists()  # an option may still be refused
    assert (logger.version, logger.version) == (0, 0)
    assert (tmp_path / "runs/version_0").is_dir()
    named = TensorBoardLogger(tmp_path, name="runs", version="mine")
    claim_version(named)
    assert named.log_dir == str(tmp_path / "runs/mine")


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    logger = TensorBoardLogger(tmp_path / "file")
    claim_version(logger)
    with pytest.raises(ConfigError, match="lightning_logs cannot be written to"):
        _ = logger.version


def test_a_trial_has_no_folder(tmp_path: Path) -> None:
    assert folder_of(Trainer(fast_dev_run=True, default_root_dir=tmp_path, accelerator="cpu")) is None
    assert folder_of(Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu")) == tmp_path


def test_runs_without_a_logger_have_folders_too(tmp_path: Path) -> None:
    flags = [
        "--trainer.logger=false",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=1",
        "--test_after_fit=true",
    ]
    for number in range(2):
        main([*command("fit", tmp_path, *flags), *model()])
        folder = tmp_path / f"lightning_logs/version_{number}"
        assert (folder / "checkpoints/last.ckpt").is_file()
        names = {"checkpoints", "config.yaml", "results.json", "per_user.parquet", "hits.parquet"}
        assert {path.name for path in folder.iterdir()} == names
    assert {path.name for path in tmp_path.iterdir()} == {"data", "lightning_logs"}


def test_a_trial_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main([*command("fit", tmp_path, "--trainer.fast_dev_run=true", "--test_after_fit=true"), *model()])
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_printed_commands_can_be_pasted(
    tiny_run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my runs; it's $HOME"
    flags = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    main([*command("fit", folder, *flags), *model()])
    (printed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert shell_words(printed.removeprefix("next: "))[:2] == ["setrec", "test"]
    checkpoint = shlex.split(printed)[-1]
    assert Path(checkpoint).is_relative_to(folder)
    table = tmp_path / "new items.csv"
    table.write_text("id,title\nnew-1,a garden lamp\n")
    main(["add-items", "--ckpt_path", checkpoint, "--items", str(table)])
    (printed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    words = shell_words(printed.removeprefix("next: "))
    assert words[:2] == ["setrec", "predict"]
    assert Path(words[3]).is_dir()
    assert words[4:] == ["--histories", "FILE"]


def shell_words(line: str) -> list[str]:
    """The words that a shell makes of a line."""
    done = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_words() -> None:
    assert command_of(["fit", "--a", "b c"]) == "setrec fit --a 'b c'"
    words = [
        "fit",
        "--config",
        "quickstart",
        "--config",
        '{"a": 1}',
        "--config={}",
        "--ckpt_path",
        "x",
        "--ckpt_path=y",
    ]
    assert without(words, "--ckpt_path") == words[:6]
    assert without(words, "--config", "{") == [*words[:3], *words[6:]]
