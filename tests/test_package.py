"""What pip installs: every package, the shipped configurations and the files that are no Python."""

import tomllib
from pathlib import Path

from setrec.commands.configurations import SHIPPED

ROOT = Path(__file__).parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_installed() -> None:
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "setrec").rglob("__init__.py")]
    assert sorted(SETUPTOOLS["packages"]) == sorted([".".join(folder.parts) for folder in folders] + ["setrec.configs"])
    assert not [path for path in (ROOT / "setrec").rglob("*.py") if not (path.parent / "__init__.py").exists()]


def test_every_other_file_is_installed() -> None:
    places = {"setrec.configs": ROOT / SETUPTOOLS["package-dir"]["setrec.configs"]}
    found = set()
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = places.get(package, ROOT / package.replace(".", "/"))
        found |= {path for pattern in patterns for path in folder.glob(pattern)}
    others = {path for path in (ROOT / "setrec").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert found == others | {path for path in (ROOT / "configs").rglob("*") if path.is_file()}
    assert (ROOT / "setrec/py.typed") in found
    assert SHIPPED == ROOT / "configs"
