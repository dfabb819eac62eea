"""A checkpoint's data arguments are not obeyed unasked: nothing is prepared, downloaded or written because a checkpoint says so."""

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from setrec.cli import dispatch, run
from setrec.commands.fit import asks_to_prepare, checkpoint_arguments
from setrec.errors import ConfigError, DataError
from tests.conftest import TrainedRun
from tests.test_class_names import poisoned

pytestmark = pytest.mark.slow  # trains

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A server somewhere, and the paths that it was asked for. The working directory is an empty folder."""
    paths: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()


def forged(run: TrainedRun, folder: Path, url: str) -> Path:
    """A checkpoint that wants to download from `url`, read `folder`/raw and write to `folder`/elsewhere."""
    raw = folder / "raw"
    raw.mkdir()
    (raw / "events.csv").write_text(
        "user_id,item_id,timestamp\n" + "".join(f"u{i % 9},i{i % 7},{i}\n" for i in range(99))
    )
    reader = {
        "class_path": "setrec.data.RecBoleFiles",
        "init_args": {"download": [{"url": f"{url}/x.zip", "file": "x.zip"}]},
    }
    arguments = {"root": str(folder / "elsewhere"), "raw": str(raw), "reader": reader}
    return poisoned(run.checkpoint, folder / "x.ckpt", "datamodule_hyper_parameters", arguments)


@pytest.mark.parametrize("command", ["test", "validate", "predict", "fit", "refit"])
@pytest.mark.parametrize("raw", [True, False])
def test_a_checkpoint_alone_prepares_nothing(
    command: str, raw: bool, asked: tuple[str, list[str]], tiny_run: TrainedRun, tmp_path: Path
) -> None:
    url, paths = asked
    path = forged(tiny_run, tmp_path, url)
    if not raw:
        poisoned(path, path, "datamodule_hyper_parameters", {"raw": None})
    with pytest.raises((DataError, ConfigError), match="holds no prepared data .*--data.raw DIR"):
        dispatch([command, "--ckpt_path", str(path), f"--trainer.default_root_dir={tmp_path / 'run'}", *QUIET])
    assert not paths
    assert not (tmp_path / "elsewhere").exists()
    assert not list(Path().iterdir())


def test_data_that_is_asked_for_is_compared_before_it_is_written(
    asked: tuple[str, list[str]], tiny_run: TrainedRun, tmp_path: Path
) -> None:
    url, paths = asked
    path = forged(tiny_run, tmp_path, url)
    flags = [f"--trainer.default_root_dir={tmp_path / 'run'}", *QUIET]
    with pytest.raises(ConfigError, match="trained on the data set"):
        run(["test", "--ckpt_path", str(path), "--data.reader=SyntheticWorld", *flags])
    assert not Path("data/tiny/manifest.json").exists()
    with pytest.raises(DataError, match="needs raw files"):  # asked for, but from where? not from the checkpoint's URL
        run(["test", "--ckpt_path", str(path), "--data.cleaning.k_core=3", *flags])
    assert not paths
    assert not (tmp_path / "elsewhere").exists()


def test_ones_own_run_goes_on_without_raw_files_and_writes_nothing_to_its_data(
    tiny_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = poisoned(tiny_run.checkpoint, tmp_path / "x.ckpt", "datamodule_hyper_parameters", {"raw": "gone"})
    before = {file: file.stat().st_mtime_ns for file in tiny_run.data.parent.rglob("*")}
    for command in ("test", "predict"):
        run([command, "--ckpt_path", str(path), f"--trainer.default_root_dir={tmp_path / 'run'}", *QUIET])
    assert {file: file.stat().st_mtime_ns for file in tiny_run.data.parent.rglob("*")} == before


def test_damaged_prepared_data_is_refused(tiny_run: TrainedRun, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tiny_run.data.parent, tmp_path / "data"))
    with (data / "tiny/users.parquet").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff")
    with pytest.raises(DataError, match="users.parquet was changed or damaged"):
        run(["test", "--ckpt_path", str(tiny_run.checkpoint), f"--data.root={data}", *QUIET])


@pytest.mark.parametrize(
    ("words", "prepares"),
    [
        (["test"], False),
        (["test", "--data.root=x", "--data.name", "y", "--data.batch_size=3"], False),
        (["test", "--data.raw", "x"], True),
        (["test", "--data.reader.download=null"], True),
        (["test", "--data.prepared_only=false"], True),
        (["test", "--data", "data.yaml"], True),
        (["test", "--config", "with_root.yaml"], False),
        (["test", "--config=with_text.yaml"], True),
    ],
)
def test_what_asks_to_prepare(
    words: list[str], prepares: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: TrainedRun
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("with_root.yaml").write_text("data: {root: x}\n")
    Path("with_text.yaml").write_text("data: {text: null}\n")
    assert asks_to_prepare(words) is prepares
    known = checkpoint_arguments(tiny_run.checkpoint, words)["data"]
    assert known["prepared_only"] is not prepares
    assert ("root" in known) is not prepares
    assert "raw" not in known
    stored = torch.load(tiny_run.checkpoint, weights_only=True)["datamodule_hyper_parameters"]
    assert known["name"] == stored["name"]
