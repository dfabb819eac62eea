"""What each command may import, each group in a fresh process: training's packages take seconds to import."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
OLD = ROOT / "tests/files/old"
HEAVY = ["torch", "lightning", "torchmetrics", "matplotlib", "sklearn", "transformers", "fastapi"]
WITHOUT_LIGHTNING = {  # module -> packages of HEAVY that it may import
    "setrec.recommend": {"torch"},
    "setrec.commands.serve": {"torch"},
    "setrec.commands.predict_file": {"torch"},
    "setrec.commands.add_items": {"torch"},
    "setrec.commands.publish": {"torch"},
    "setrec.commands.export": {"torch"},
}


def run(code: str, folder: Path = ROOT) -> str:
    """The last line that a fresh Python prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_the_overview_imports_nothing_heavy() -> None:
    found = run(
        f"import json, sys; from setrec.cli import main; main(['--help']);"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    assert json.loads(found) == []


def test_answering_needs_no_training_packages() -> None:
    """All in one process, so that a package is charged to the first module that imports it."""
    found = run(
        f"import importlib, json, sys; before, table = set(), {{}}\n"
        f"for module in {list(WITHOUT_LIGHTNING)}:\n"
        f"    importlib.import_module(module)\n"
        f"    now = {{name for name in {HEAVY} if name in sys.modules}}\n"
        f"    table[module], before = sorted(now - before), now\n"
        f"assert 'setrec.encoders' in sys.modules\n"  # --encoder takes the names of its classes
        f"from setrec import Recommender\n"
        f"print(json.dumps(table))"
    )
    table = json.loads(found)
    assert table.keys() == WITHOUT_LIGHTNING.keys()
    for module, packages in table.items():
        assert set(packages) <= WITHOUT_LIGHTNING[module], module


def test_a_recommendation_needs_no_lightning(tmp_path: Path) -> None:
    """The checkpoint of tests/test_old.py, which has a T5 backbone: that needs transformers."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    found = run(
        f"import json, sys; from setrec import Recommender; answers = Recommender.load('t5.ckpt').recommend([[]], k=3);"
        f"print(json.dumps([len(answers[0].items), [name for name in {HEAVY} if name in sys.modules]]))",
        tmp_path,
    )
    n_items, packages = json.loads(found)
    assert n_items == 3
    assert "transformers" in packages
    assert not {"lightning", "torchmetrics", "matplotlib", "fastapi"} & set(packages)
