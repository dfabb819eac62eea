"""From a CSV of events and a CSV of items to a test table in one command."""

import json
from pathlib import Path

import pytest

from setrec.cli import run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


def test_the_whole_road(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # its paths are the repository's, as in the command that the file begins with
    run(
        [
            "fit",
            "--config=configs/csv_example.yaml",
            f"--data.root={tmp_path / 'data'}",
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.max_epochs=2",
            "--trainer.enable_progress_bar=false",
            "--trainer.accelerator=cpu",
        ]
    )
    shown = capsys.readouterr()
    assert "events.csv: 1,565 rows; 1 skipped: no item (line 402)" in shown.err
    assert "csv_example, test" in shown.out
    manifest = json.loads((tmp_path / "data" / "csv_example" / "manifest.json").read_text())
    assert manifest["counts"]["users"] == 159
    assert manifest["counts"]["cold"] == 11
    assert manifest["counts"]["train"] + manifest["counts"]["validation"] + manifest["counts"]["test"] < 1563
    assert set(manifest["sources"]) == {"events.csv", "items.csv"}
    results = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    for group in ("all", "warm", "cold"):
        assert 0 < results["metrics"][group]["recall@10"] < 1


def test_the_files_are_small():
    for name in ("events.csv", "items.csv"):
        assert (ROOT / "tests" / "files" / name).stat().st_size < 100_000
