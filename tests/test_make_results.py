"""docs/results.md is what its result files give; the script's tables, from files made on the spot."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from setrec.evaluation.results import write_results

ROOT = Path(__file__).parents[1]
_SPEC = importlib.util.spec_from_file_location("make_results", ROOT / "docs/make_results.py")
assert _SPEC is not None
assert _SPEC.loader is not None
script = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(script)

PAGE = """# Title

<!-- table {masked: true, runs: a, groups: [all, cold], cutoffs: [5, 10]} -->
.9999 typed by hand
<!-- end -->
<!-- lists {masked: false, runs: a} -->
<!-- end -->
<!-- runs {runs: a} -->
<!-- end -->
<!-- tests {file: report.json} -->
<!-- end -->
<!-- published {data: [Toys]} -->
<!-- end -->
<!-- table {masked: true, runs: b} -->
<!-- end -->
The end.
"""


def figures(value: float) -> dict[str, Any]:
    row = {f"{kind}@{k}": value + k / 1000 for kind in ("recall", "ndcg") for k in (5, 10)}
    return {group: dict(row) for group in ("all", "warm", "cold")}


def results(seed: int, value: float) -> dict[str, Any]:
    def part(value: float) -> dict[str, Any]:
        held = {"model": {"coverage@10": value, "gini@10": 0.5}, "popularity": {"coverage@10": 0.001}}
        baselines = {"model_train": figures(value / 2), "popularity": figures(0.01), "item_cf_train": figures(0.02)}
        return {"metrics": figures(value), "baselines": baselines, "lists": held}

    protocol = {"dataset": "toy", "split": "test", "filter_seen": True, "seed": seed, "date": "2026-11-26T10:00:00"}
    machine = {"cpu": "a CPU", "cores": 2, "threads": 1}
    fit = {"commit": "a" * 40, "changed": False, "command": "setrec fit", "seeds": {"data": seed}, "machine": machine}
    refit = fit | {"commit": "b" * 40, "changed": True, "command": "setrec refit | x", "from": fit}
    other = {"filter_seen": False, **part(value / 10)}
    return {"protocol": protocol | {"caution": "mind the split"}, **part(value), "other_filter": other, "run": refit}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    (tmp_path / "page.md").write_text(PAGE)
    (folder / "runs.yaml").write_text("a: {run: Ours, none: Never run}\nb: {none: Never run}\n")
    published = [{"method": "TIGER", "figures": {"Toys": [0.0712, None]}, "protocol": "masked", "source": "a paper"}]
    (folder / "published.json").write_text(json.dumps(published))
    row = {"run": "ours", "against": "item CF", "group": "all", "difference": -0.002, "low": -0.01, "high": 0.001}
    report = {"settings": {"tested": "ndcg@10", "filter_seen": True}, "tests": [row | {"p_holm": 0.00001}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    for seed, value in ((10, 0.3), (2, 0.2)):
        run = tmp_path / f"version_{seed}"
        run.mkdir()
        (run / "results.json").write_text(json.dumps(results(seed, value)))
    return folder


def call(folder: Path, *words: str) -> int:
    return int(script.main([*words, f"--folder={folder}", f"--page={folder.parent / 'page.md'}"]))


def test_the_page_is_what_its_files_give() -> None:
    assert script.main(["--check"]) == 0, "run: python docs/make_results.py"


def test_tables_from_files(folder: Path) -> None:
    page = folder.parent / "page.md"
    runs = [str(folder.parent / "version_10"), str(folder.parent / "version_2/results.json")]
    assert call(folder, "--add", "run", *runs) == 0
    assert {path.name for path in folder.glob("run_*")} == {"run_2.json", "run_10.json"}
    call(folder, "--add", "report", str(folder.parent / "report.json"))
    text = page.read_text()
    for line in (
        "| toy, test, seen items masked | All @5 | All @10 | Cold @5 | Cold @10 |",
        "| Ours | .2550 ± .0707 / .2550 ± .0707 | .2600 ± .0707 / .2600 ± .0707 | .2550 ± .0707 / .2550 ± .0707 | "
        ".2600 ± .0707 / .2600 ± .0707 |",
        "| popularity | .0150 / .0150 | .0200 / .0200 | .0150 / .0150 | .0200 / .0200 |",
        "| Ours | 0.025 ± 0.00707 | 0.5 ± 0 | - | - | - | - |",
        "| ours against item CF | all | -.0020 [-.0100, +.0010] | < .0001 |",
        "| TIGER | .0712 / - | masked | a paper |",
        f"| Ours: run_2.json | {'b' * 12} with changes, {'a' * 12} | 2026-11-26 | data 2 | a CPU, 2 cores, 1 threads | "
        "`setrec fit`<br>`setrec refit \\| x` |",
        "Mind the split.",
    ):
        assert line in text.splitlines()
    assert "| Ours, counted in train | .1300 ± .0354" in text
    assert "| item CF, counted in train | .0250 / .0250" in text
    assert "Never run" not in text
    assert ".9999" not in text
    assert "<!-- table {masked: true, runs: b} -->\nNo result files yet.\n<!-- end -->\nThe end.\n" in text
    call(folder)
    assert page.read_text() == text


def test_a_figure_typed_by_hand_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = folder.parent / "page.md"
    call(folder)
    assert call(folder, "--check") == 0
    page.write_text(page.read_text().replace(".0712", ".0812"))
    assert call(folder, "--check") == 1
    assert "run python docs/make_results.py" in capsys.readouterr().err
    assert ".0812" in page.read_text()  # a check writes nothing


def test_a_changed_file_of_results_is_refused(folder: Path) -> None:
    path = write_results(folder.parent / "results.json", results(7, 0.1))
    path.write_text(path.read_text().replace("0.1", "0.2", 1))
    with pytest.raises(SystemExit, match=r"is not as it was written \(it was changed after it was written\)"):
        call(folder, "--add", "run", str(path))


def test_results_that_do_not_say_where_they_come_from_are_refused(folder: Path) -> None:
    old = folder.parent / "results.json"
    old.write_text(json.dumps({key: value for key, value in results(1, 0.1).items() if key != "run"}))
    with pytest.raises(SystemExit, match="does not say which run made it"):
        call(folder, "--add", "run", str(old))
    with pytest.raises(SystemExit, match="there is no such table; take one of table, lists, runs, tests, published"):
        script.made("<!-- tables {} -->\n<!-- end -->", folder)
