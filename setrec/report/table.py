"""Prints a report as tables."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from setrec.schemas import GROUPS

WIDTH = 140  # characters of a line, where the output is no terminal


def print_report(content: dict[str, Any], console: Console | None = None) -> None:
    """Print the content of report.json, what matters most first."""
    if console is None:
        console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    settings, users = content["settings"], content["users"]
    for filtered in (settings["filter_seen"], not settings["filter_seen"]):
        console.print(means_table(content, filtered))
    if content["lists"]:
        console.print(lists_table(content))
    if any(row["baseline"] for row in content["tests"]):
        console.print(baseline_tests_table(content))
    if len(content["runs"]) > 1:
        console.print(ablation_table(content))
    console.print(popularity_table(content))
    console.print(history_table(content))
    counts = ", ".join(f"{users[group]:,} users {group}" for group in GROUPS)
    console.print(Text("\n".join([f"{content['dataset']}, {settings['split']}: {counts}.", *notes(content)])))


def notes(content: dict[str, Any]) -> list[str]:
    """How the figures were computed."""
    settings = content["settings"]
    seeds = ", ".join(f"{row['run']} {len(row['results'])}" for row in content["runs"])
    return [
        f"Seeds: {seeds}. A figure is the mean over users of the mean over seeds; ± is the standard deviation of the seeds' "
        "figures.",
        f"Intervals: {settings['confidence']:.0%}, percentiles of {settings['resamples']:,} bootstraps over users; they hold for "
        "these seeds only.",
        f"Tests: {settings['tested']} of the same users, {settings['permutations']:,} random flips of sign, two-sided; p after "
        f"Holm over the {len(content['tests'])} tests of this report; Wilcoxon's p beside it is not corrected.",
        "Popularity: tenths of the warm items by occurrences in training, 10 the most popular; recall over targets, not users.",
    ]


def format_figure(value: float | None, signed: bool = False) -> str:
    """A figure in few characters: .0189, −.0012, +.0100, 1.000; - for None."""
    if value is None:
        return "-"
    text = f"{abs(value):.4f}"
    text = text[1:] if text.startswith("0") else text[:5]
    return ("−" if value < 0 else "+" if signed else "") + text


def format_p(p: float) -> str:
    """A p-value: .0123, or <.0001."""
    return "<.0001" if p < 0.0001 else format_figure(p)


def heading(settings: dict[str, Any], filtered: bool) -> str:
    """The split and the filter, for a title."""
    return f"{settings['split']}, seen items {'masked' if filtered else 'not masked'}"


def new_table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose other columns are figures."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", expand=False)
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right", overflow="fold")
    return table


def means_table(content: dict[str, Any], filtered: bool) -> Table:
    """Mean ± standard deviation over seeds, with the interval over users in a second line; the best of a column is bold."""
    settings = content["settings"]
    columns = [(group, metric) for group in GROUPS for metric in settings["metrics"]]
    rows = [row for row in content["figures"] if row["filter_seen"] == filtered]
    title = f"{content['dataset']} {heading(settings, filtered)}: mean ± sd over seeds, [interval over users]"
    table = new_table(title, "", *(f"{group.capitalize()}\n{metric}" for group, metric in columns))
    best = {
        at: max((row["mean"] for row in rows if at == (row["group"], row["metric"])), default=None) for at in columns
    }
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {(row["group"], row["metric"]): row for row in rows if row["method"] == method}
        cells = []
        for at in columns:
            row = own.get(at)
            if row is None:
                cells.append(Text("-"))
                continue
            spread = "" if row["sd"] is None else f" ± {format_figure(row['sd'])}"
            cell = Text(f"{format_figure(row['mean'])}{spread}", style="bold" if row["mean"] == best[at] else "")
            cells.append(
                cell.append(f"\n[{format_figure(row['low'])}, {format_figure(row['high'])}]", style="not bold dim")
            )
        table.add_row(Text(method), *cells)
    return table


def lists_table(content: dict[str, Any]) -> Table:
    """What the lists hold, beside what they hit: mean ± standard deviation over seeds."""
    settings = content["settings"]
    rows = [row for row in content["lists"] if row["filter_seen"] == settings["filter_seen"]]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    title = (
        f"{content['dataset']} {heading(settings, settings['filter_seen'])}: what the lists hold, mean ± sd over seeds"
    )
    table = new_table(title, "", *metrics)
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {row["metric"]: row for row in rows if row["method"] == method}
        cells = []
        for metric in metrics:
            row = own.get(metric)
            spread = "" if row is None or row["sd"] is None else f" ± {row['sd']:.2g}"
            cells.append("-" if row is None else f"{row['mean']:.4g}{spread}")
        table.add_row(method, *cells)
    return table


def tests_of(content: dict[str, Any], **wanted: Any) -> dict[str, dict[str, Any]]:
    """The tests with these entries, by group."""
    return {row["group"]: row for row in content["tests"] if all(row[key] == value for key, value in wanted.items())}


def test_cells(tests: dict[str, dict[str, Any]]) -> list[Text]:
    """Two cells for each group: the difference with its interval, and both p-values."""
    cells = []
    for group in GROUPS:
        row = tests.get(group)
        if row is None:
            cells += [Text("-"), Text("-")]
            continue
        clear = row["low"] > 0 or row["high"] < 0
        difference = Text(format_figure(row["difference"], signed=True), style="bold" if clear else "")
        difference.append(
            f"\n[{format_figure(row['low'], True)}, {format_figure(row['high'], True)}]", style="not bold dim"
        )
        p = Text(format_p(row["p_holm"]), style="bold" if row["p_holm"] < 0.05 else "")
        cells += [difference, p.append(f"\n{format_p(row['p_wilcoxon'])}", style="not bold dim")]
    return cells


def test_columns() -> list[str]:
    """The headings of `test_cells`."""
    return [name for group in GROUPS for name in (f"{group.capitalize()}\ndifference", "p Holm\nWilcoxon")]


def baseline_tests_table(content: dict[str, Any]) -> Table:
    """The differences of runs and baselines."""
    settings = content["settings"]
    title = (
        f"{settings['tested']} less the baseline's, paired over users ({heading(settings, settings['filter_seen'])})"
    )
    table = new_table(title, "", *test_columns())
    for run, other in dict.fromkeys((row["run"], row["against"]) for row in content["tests"] if row["baseline"]):
        table.add_row(Text(f"{run} − {other}"), *test_cells(tests_of(content, run=run, against=other, baseline=True)))
    return table


def ablation_table(content: dict[str, Any]) -> Table:
    """The ablation table: the options that each run changes, and its difference to the first run."""
    settings, first = content["settings"], content["runs"][0]["run"]
    title = f"{settings['tested']} less {first}'s, paired over users ({heading(settings, settings['filter_seen'])})"
    table = new_table(title, "run", "what it changes", *test_columns())
    table.columns[1].justify = "left"
    for row in content["runs"][1:]:
        changes = [f"{name.partition('.')[2]} {option_text(value)}" for name, value in row["changed"].items()]
        changed = ", ".join(changes) or (row["model"] if row["model"] != content["runs"][0]["model"] else "-")
        table.add_row(
            Text(row["run"]),
            Text(changed),
            *test_cells(tests_of(content, run=row["run"], against=first, baseline=False)),
        )
    return table


def option_text(value: Any) -> str:
    """An option's value as on the command line; a class without its module."""
    if isinstance(value, str) and value.startswith("setrec."):
        return value.rpartition(".")[2]
    return json.dumps(value).strip('"')


def popularity_table(content: dict[str, Any]) -> Table:
    """Recall of targets by popularity decile, one column for each method."""
    settings, rows = content["settings"], content["popularity"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    title = f"Found in the first {settings['k']}, by popularity of the target ({heading(settings, settings['filter_seen'])})"
    table = new_table(title, "decile", "bought", "targets", *methods)
    for decile in dict.fromkeys(row["decile"] for row in rows):
        own = [row for row in rows if row["decile"] == decile]
        one = own[0]
        span = str(one["least"]) if one["least"] == one["most"] else f"{one['least']}-{one['most']}"
        table.add_row(str(decile or "cold"), span, f"{one['targets']:,}", *bold_best([row["recall"] for row in own]))
    return table


def history_table(content: dict[str, Any]) -> Table:
    """The tested metric by length of history, one column for each method."""
    settings = content["settings"]
    rows = [row for row in content["history"] if row["metric"] == settings["tested"]]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    title = f"{settings['tested']} by length of history ({heading(settings, settings['filter_seen'])})"
    table = new_table(title, "items", "users", *methods)
    for start in dict.fromkeys(row["from"] for row in rows):
        own = [row for row in rows if row["from"] == start]
        table.add_row(bucket_label(own[0]), f"{own[0]['users']:,}", *bold_best([row["mean"] for row in own]))
    return table


def bucket_label(row: dict[str, Any]) -> str:
    """The label of a bucket of history lengths: up to 5, 6-10, over 50."""
    if row["to"] is None:
        return f"over {row['from'] - 1}"
    return f"up to {row['to']}" if row["from"] == 0 else f"{row['from']}-{row['to']}"


def bold_best(values: list[float]) -> list[Text]:
    """Figures as text, the best in bold."""
    best = max(values)
    return [Text(format_figure(value), style="bold" if value == best > 0 else "") for value in values]
