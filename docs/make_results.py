"""Makes the tables of docs/results.md from the files in docs/results, so that no figure is typed by hand.

    python docs/make_results.py --add NAME RUN...   copy results of folders or files to docs/results/NAME_SEED.json,
                                                    a report.json to NAME.json, and write the tables
    python docs/make_results.py                     write the tables
    python docs/make_results.py --check             say whether the page is what its files give; exit status 1: it is not

A table stands between two comments of the page: `<!-- KIND {options} -->`, in YAML, and `<!-- end -->`. Kinds:

    table      Recall / NDCG of runs and of the baselines of the first run; masked, runs, groups, cutoffs
    lists      what the lists of the same rows hold; masked, runs
    runs       commit, seeds, commands and machine of every file of the runs; runs
    tests      paired tests of a report; file, docs/results/FILE
    published  figures of published.json with their sources; data

`runs` names an entry {NAME: label, ...} of docs/results/runs.yaml. A run without files has no row. Files are those that
`setrec test` writes as results.json, and `setrec report` as report.json.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from setrec.evaluation.results import LIST_COLUMNS, MODEL, TRAIN_ALONE, label_of
from setrec.files.hashes import read_sealed

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(r"^<!-- (\w+) (\{.*?\}) -->\n(.*?)^<!-- end -->$", re.M | re.S)
NOTHING = "No result files yet.\n"
Files = list[dict[str, Any]]  # the results of one run, a file for each seed


def read(path: Path) -> dict[str, Any]:
    """The content of a file that `setrec test` or `setrec report` wrote, if it was not changed since."""
    try:
        return read_sealed(path)
    except ValueError as error:
        raise SystemExit(f"{path} is not as it was written ({error}): test or report again.") from None


def files_of(folder: Path, name: str) -> Files:
    """The results of a run, in order of the seeds."""
    paths = [path for path in folder.glob(f"{name}_*.json") if re.fullmatch(re.escape(name) + r"_\d+", path.stem)]
    found = [read(path) | {"file": path.name} for path in paths]
    return sorted(found, key=lambda one: one["protocol"]["seed"])


def runs_of(folder: Path, options: dict[str, Any]) -> dict[str, Files]:
    """Label -> results, for the runs that have files."""
    names = yaml.safe_load((folder / "runs.yaml").read_text())[options["runs"]]
    found = {label: files_of(folder, name) for name, label in names.items()}
    return {label: files for label, files in found.items() if files}


def rows_of(runs: dict[str, Files], masked: bool) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every row of a table under one filter: its label, and for every seed {"metrics": ..., "lists": ...}."""

    def of(one: dict[str, Any]) -> dict[str, Any]:
        part: dict[str, Any] = one if one["protocol"]["filter_seen"] == masked else one["other_filter"]
        return part

    def row(files: Files, name: str) -> list[dict[str, Any]]:
        parts = [of(one) for one in files]
        rows = [part["metrics"] if name == MODEL else part["baselines"][name] for part in parts]
        return [{"metrics": m, "lists": p.get("lists", {}).get(name, {})} for m, p in zip(rows, parts, strict=True)]

    for label, files in runs.items():
        for name in (MODEL, MODEL + TRAIN_ALONE):
            if name == MODEL or all(name in of(one)["baselines"] for one in files):
                yield label_of(name, label), row(files, name)
    first = next(iter(runs.values()))[:1]  # a baseline has no seed
    for name in of(first[0])["baselines"]:
        if name != MODEL + TRAIN_ALONE:
            yield label_of(name), row(first, name)


def short(value: float) -> str:
    """A figure in five characters: .0189."""
    text = f"{value:.4f}"
    return text[1:] if text.startswith("0") else text


def mean(values: list[float], form: Callable[[float], str] = short) -> str:
    """The mean over seeds, and ± its standard deviation where there are several."""
    spread = f" ± {form(statistics.stdev(values))}" if len(values) > 1 else ""
    return form(statistics.fmean(values)) + spread


def lines(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *rows])


def table(folder: Path, options: dict[str, Any]) -> str:
    """See the module."""
    runs = runs_of(folder, options)
    if not runs:
        return NOTHING
    groups, cutoffs = options.get("groups", ["all", "warm", "cold"]), options.get("cutoffs", [10])
    at = [(group, k) for group in groups for k in cutoffs]
    rows = []
    for label, seeds in rows_of(runs, options["masked"]):
        cells = [
            " / ".join(mean([one["metrics"][group][f"{kind}@{k}"] for one in seeds]) for kind in ("recall", "ndcg"))
            for group, k in at
        ]
        rows.append([label, *cells])
    first = next(iter(runs.values()))[0]["protocol"]
    what = f"{first['dataset']}, {first['split']}, seen items {'' if options['masked'] else 'not '}masked"
    caution = f"\n{first['caution'][:1].upper()}{first['caution'][1:]}.\n" if first.get("caution") else ""
    return lines([what, *(f"{group.capitalize()} @{k}" for group, k in at)], rows) + caution


def lists(folder: Path, options: dict[str, Any]) -> str:
    """See the module."""
    runs = runs_of(folder, options)
    if not runs:
        return NOTHING
    rows = []
    for label, seeds in rows_of(runs, options["masked"]):
        cells = [[one["lists"][name] for one in seeds if name in one["lists"]] for name in LIST_COLUMNS]
        rows.append([label, *(mean(values, lambda x: f"{x:.3g}") if values else "-" for values in cells)])
    what = f"seen items {'' if options['masked'] else 'not '}masked"
    return lines([what, *LIST_COLUMNS], rows)


def runs(folder: Path, options: dict[str, Any]) -> str:
    """See the module."""
    rows = []
    for label, files in runs_of(folder, options).items():
        for one in files:
            run = one["run"]
            steps = [run]
            while "from" in steps[-1]:
                steps.append(steps[-1]["from"])
            commits = [
                f"{(step['commit'] or 'unknown')[:12]}{' with changes' if step['changed'] else ''}" for step in steps
            ]
            seeds = ", ".join(f"{name} {seed}" for name, seed in run["seeds"].items())
            computer = run["machine"]
            commands = "<br>".join(f"`{step['command']}`" for step in reversed(steps))
            about = f"{computer.get('gpu', computer['cpu'])}, {computer['cores']} cores, {computer['threads']} threads"
            commit, date = ", ".join(dict.fromkeys(commits)), one["protocol"]["date"][:10]
            rows.append([f"{label}: {one['file']}", commit, date, seeds, about, commands.replace("|", "\\|")])
    head = ["file", "commit", "date", "seeds", "machine", "commands"]
    return lines(head, rows) if rows else NOTHING


def tests(folder: Path, options: dict[str, Any]) -> str:
    """See the module."""
    if not (folder / options["file"]).is_file():
        return NOTHING
    report = read(folder / options["file"])
    rows = []
    for one in report["tests"]:
        if one["group"] in options.get("groups", ["all"]):
            sign = "+" if one["difference"] >= 0 else "-"
            low, high = (f"{'-' if one[end] < 0 else '+'}{short(abs(one[end]))}" for end in ("low", "high"))
            p = "< .0001" if one["p_holm"] < 0.0001 else short(one["p_holm"])
            difference = f"{sign}{short(abs(one['difference']))} [{low}, {high}]"
            rows.append([f"{one['run']} against {one['against']}", one["group"], difference, p])
    seen = "" if report["settings"]["filter_seen"] else "not "
    return lines(
        [f"{report['settings']['tested']}, seen items {seen}masked", "group", "difference", "p after Holm"], rows
    )


def published(folder: Path, options: dict[str, Any]) -> str:
    """See the module."""
    rows = []
    for one in json.loads((folder / "published.json").read_text()):
        cells = [one["figures"].get(data) for data in options["data"]]
        figures = ["" if cell is None else " / ".join("-" if x is None else short(x) for x in cell) for cell in cells]
        rows.append([one["method"], *figures, one["protocol"], one["source"]])
    return lines(["published Recall@10 / NDCG@10", *options["data"], "protocol", "source"], rows)


KINDS = {kind.__name__: kind for kind in (table, lists, runs, tests, published)}


def made(page: str, folder: Path) -> str:
    """The page with the tables that the files give."""

    def block(match: re.Match[str]) -> str:
        kind, options, _ = match.groups()
        if kind not in KINDS:
            raise SystemExit(f"<!-- {kind} ... -->: there is no such table; take one of {', '.join(KINDS)}.")
        return f"<!-- {kind} {options} -->\n{KINDS[kind](folder, yaml.safe_load(options))}<!-- end -->"

    return BLOCK.sub(block, page)


def add(name: str, places: list[str], folder: Path) -> None:
    """Copy results files to docs/results/NAME_SEED.json, and reports to NAME.json. Results must say which run made them."""
    for place in map(Path, places):
        path = place / "results.json" if place.is_dir() else place
        results = read(path)
        if "run" not in results and "tests" not in results:
            raise SystemExit(f"{path} does not say which run made it: test the checkpoint again with this version.")
        target = folder / (f"{name}.json" if "tests" in results else f"{name}_{results['protocol']['seed']}.json")
        shutil.copyfile(path, target)
        print(f"{path} -> {target}")


def main(words: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", nargs="+", metavar=("NAME", "RUN"), help="name of the files, then the runs")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if the page is not up to date"
    )
    parser.add_argument("--page", type=Path, default=DOCS / "results.md", help="the page")
    parser.add_argument("--folder", type=Path, default=DOCS / "results", help="the folder of result files")
    given = parser.parse_args(words)
    if given.add:
        add(given.add[0], given.add[1:], given.folder)
    page = given.page.read_text(encoding="utf8")
    wanted = made(page, given.folder)
    if given.check:
        if wanted != page:
            print(f"{given.page} is not what {given.folder} gives: run python docs/make_results.py", file=sys.stderr)
        return int(wanted != page)
    given.page.write_text(wanted, encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
