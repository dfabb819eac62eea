"""Every shipped configuration runs: fit with its own options, one epoch on a tiny made-up world, then test."""

import json
from pathlib import Path

import pytest
import yaml

from setrec.cli import run

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = {  # whatever the configuration reads or loads, replaced by something small that is here
    "t5": ["--model.backbone.pretrained=null", "--model.backbone.shape=nano"],
    "one shape": ["--model.backbone.shape=nano"],
}
RUN_HERE = sorted(
    path.name
    for path in CONFIGS.glob("*.yaml")
    if "_t5" in path.name or "_best" in path.name or path.name == "quickstart.yaml"
)  # test_decoder.py, test_sasrec.py and test_csv_example.py run the others


@pytest.mark.parametrize("name", RUN_HERE)
def test_config_fits_and_tests(name: str, tmp_path: Path) -> None:
    config = yaml.safe_load((CONFIGS / name).read_text())
    slots = config["model"].get("n_cf", 1)
    run(
        [
            "fit",
            f"--config={CONFIGS / name}",
            "--data.reader=SyntheticWorld",
            "--data.reader.users=120",
            "--data.reader.items=60",
            "--data.cleaning.k_core=2",
            "--data.text=TfidfSVD",
            f"--data.cf=[{', '.join(['CooccurrenceSVD'] * slots)}]",
            f"--data.root={tmp_path}",
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.max_epochs=1",
            "--trainer.limit_train_batches=3",
            "--trainer.enable_progress_bar=false",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            "--test_after_fit=true",
            *SMALL["t5" if "_t5" in name else "one shape"],
        ]
    )
    results = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    assert results["metrics"]["all"]["recall@20"] > 0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_config_says_how_to_run_it(path: Path) -> None:
    first = path.read_text().splitlines()[:4]
    assert all(line.startswith("#") for line in first[:2])
    assert any(f"configs/{path.name}" in line for line in first)
    assert len(path.read_text().splitlines()) <= 50
