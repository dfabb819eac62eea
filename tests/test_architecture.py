"""docs/architecture.md says what the code does: its table of rooms holds for every import, its paths and tests exist."""

import ast
import re
from collections import Counter
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ROOT / "setrec"
TEXT = (ROOT / "docs" / "architecture.md").read_text()


def rooms() -> list[set[Path]]:
    """The modules of each room, from the top of the table to the bottom."""
    lines = TEXT.split("| room | files |")[1].splitlines()[2:]
    rows = [line.split("|")[1:3] for line in takewhile(lambda line: line.startswith("|"), lines)]
    found = []
    for room, files in rows:
        folder = CODE / room.strip().strip("`") if "/" in room else None
        if folder is None:
            found.append({CODE / file for file in re.findall(r"`(\w+\.py)`", files)})
        else:
            found.append(set(folder.glob("*.py")))
            named = {folder / f"{file}.py" for file in re.findall(r"`(\w+)`", files)}
            assert named <= found[-1], f"{room}: no such file {named - found[-1]}"
            if "commands" not in room:
                assert {path for path in found[-1] if path.stem != "__init__"} == named, room
    return found


def imports(path: Path) -> set[Path]:
    """The modules of this project that a file imports, those inside functions and for type checking included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    places = [ROOT.joinpath(*name.split(".")) for name in names if name.startswith("setrec.")]
    return {file for place in places for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}


def test_every_module_is_in_one_room_and_uses_only_those_above() -> None:
    """Folders' __init__ files that a `from setrec.data.x import y` passes through count as imports too."""
    place = {path: number for number, modules in enumerate(rooms()) for path in modules}
    assert Counter(path for modules in rooms() for path in modules).most_common(1)[0][1] == 1
    assert set(place) == set(CODE.rglob("*.py"))
    upward = [(a, b) for a in place for b in imports(a) if place[b] > place[a]]
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
