"""docs/architecture.md says what the code does: its table of places holds for every import, its paths and tests exist."""

import ast
import re
from collections import Counter
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ROOT / "setrec"
TEXT = (ROOT / "docs" / "architecture.md").read_text()


def places() -> list[set[Path]]:
    """The modules of each place, from the top of the table to the bottom."""
    lines = TEXT.split("| place | files |")[1].splitlines()[2:]
    rows = [line.split("|")[1:3] for line in takewhile(lambda line: line.startswith("|"), lines)]
    found = []
    for name, files in rows:
        folder = CODE / name.strip().strip("`") if "/" in name else None
        if folder is None:
            found.append({CODE / file for file in re.findall(r"`(\w+\.py)`", files)})
        else:
            found.append(set(folder.glob("*.py")))
            named = {folder / f"{file}.py" for file in re.findall(r"`(\w+)`", files)}
            assert named <= found[-1], f"{name}: no such file {named - found[-1]}"
            if "commands" not in name:
                assert {path for path in found[-1] if path.stem != "__init__"} == named, name
    return found


def imports(path: Path) -> set[Path]:
    """The modules of this project that a file imports, those inside functions and for type checking included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    paths = [ROOT.joinpath(*name.split(".")) for name in names if name.startswith("setrec.")]
    return {file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()}


def test_every_module_is_in_one_place_and_uses_only_those_above() -> None:
    row = {path: number for number, modules in enumerate(places()) for path in modules}
    assert sum(map(len, places())) == len(row), "a module stands in two places"
    assert set(row) == set(CODE.rglob("*.py"))
    upward = [(a, b) for a in row for b in imports(a) if row[b] > row[a]]
    assert not upward, [f"{a.relative_to(CODE)} imports {b.relative_to(CODE)}" for a, b in upward]


@pytest.mark.parametrize("walk", TEXT.split("\n### ")[1:], ids=lambda walk: walk.split("\n")[0])
def test_walks_name_every_file_once(walk: str) -> None:
    paths = re.findall(r"`([\w/]+\.py)`", walk.split("\n## ")[0])
    assert len(paths) > 10
    assert [path for path in paths if not (CODE / path).is_file()] == []
    assert [path for path, times in Counter(paths).items() if times > 1] == []


def test_paths_and_tests_exist() -> None:
    for path in re.findall(r"`((?:setrec|tests|docs|configs)/[\w/]+(?:\.\w+)?)`", TEXT):
        assert (ROOT / path).exists(), path
    for file, name in re.findall(r"`(tests/\w+\.py)::(\w+)`", TEXT):
        assert f"def {name}(" in (ROOT / file).read_text(), name
