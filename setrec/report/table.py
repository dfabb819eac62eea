"""A report as printed tables."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from setrec.schemas import GROUPS

WIDTH = 140  # where the output is no terminal


def print_report(made: dict[str, Any], console: Console | None = None) -> None:
    """Print everything `study` found, the most wanted first."""
    if console is None:
        console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    settings, users = made["settings"], made["users"]
    main = settings["filter_seen"]
    for filtered in (main, not main):
        console.print(means(made, filtered))
    if any(row["baseline"] for row in made["tests"]):
        console.print(against_baselines(made))
    if len(made["runs"]) > 1:
        console.print(against_first(made))
    console.print(by_popularity(made))
    console.print(by_history(made))
    asked = ", ".join(f"{users[group]:,} users {group}" for group in GROUPS)
    console.print(Text("\n".join([f"{made['dataset']}, {settings['split']}: {asked}.", *notes(made)])))


def notes(made: dict[str, Any]) -> list[str]:
    """How the figures came about."""
    settings = made["settings"]
    seeds = ", ".join(f"{row['run']} {len(row['results'])}" for row in made["runs"])
    return [
        f"Seeds: {seeds}. A figure is the mean over users of a user's mean over seeds; ± is the standard deviation of the seeds' "
        "figures.",
        f"Intervals: {settings['confidence']:.0%}, percentiles of {settings['resamples']:,} bootstraps over users; they hold for "
        "the seeds at hand.",
        f"Tests: {settings['tested']} of the same users, {settings['permutations']:,} random flips of sign, two-sided; p after "
        f"Holm over the {len(made['tests'])} tests of this report; Wilcoxon's p beside it is not corrected.",
        "Popularity: tenths of the warm items by occurrences in training, 10 the most bought; recall over targets, not users.",
    ]


def short(value: float | None, signed: bool = False) -> str:
    """.0189, -.0012, +.0100, 1.000; - for nothing."""
    if value is None:
        return "-"
    text = f"{abs(value):.4f}"
    text = text[1:] if text.startswith("0") else text[:5]
    return ("−" if value < 0 else "+" if signed else "") + text


def p_text(p: float) -> str:
    """.0123, or <.0001."""
    return "<.0001" if p < 0.0001 else short(p)


def heading(settings: dict[str, Any], filtered: bool) -> str:
    return f"{settings['split']}, seen items {'masked' if filtered else 'not masked'}"


def new_table(title: str, *columns: str) -> Table:
    """A table whose first column is text and the others figures."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", expand=False)
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right", overflow="fold")
    return table


def means(made: dict[str, Any], filtered: bool) -> Table:
    """Mean ± standard deviation over seeds, and the interval over users under it; the best of a column is bold."""
    settings = made["settings"]
    columns = [(group, metric) for group in GROUPS for metric in settings["metrics"]]
    rows = [row for row in made["figures"] if row["filter_seen"] == filtered]
    title = f"{made['dataset']} {heading(settings, filtered)}: mean ± sd over seeds, [interval over users]"
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
            spread = "" if row["sd"] is None else f" ± {short(row['sd'])}"
            cell = Text(f"{short(row['mean'])}{spread}", style="bold" if row["mean"] == best[at] else "")
            cells.append(cell.append(f"\n[{short(row['low'])}, {short(row['high'])}]", style="not bold dim"))
        table.add_row(Text(method), *cells)
    return table


def tests_of(made: dict[str, Any], **wanted: Any) -> dict[str, dict[str, Any]]:
    """The tests that have these entries, by group."""
    return {row["group"]: row for row in made["tests"] if all(row[key] == value for key, value in wanted.items())}


def test_cells(tests: dict[str, dict[str, Any]]) -> list[Text]:
    """Two cells a group: the difference with its interval, and both p."""
    cells = []
    for group in GROUPS:
        row = tests.get(group)
        if row is None:
            cells += [Text("-"), Text("-")]
            continue
        holds = row["low"] > 0 or row["high"] < 0
        difference = Text(short(row["difference"], signed=True), style="bold" if holds else "")
        difference.append(f"\n[{short(row['low'], True)}, {short(row['high'], True)}]", style="not bold dim")
        p = Text(p_text(row["p_holm"]), style="bold" if row["p_holm"] < 0.05 else "")
        cells += [difference, p.append(f"\n{p_text(row['p_wilcoxon'])}", style="not bold dim")]
    return cells


def test_columns() -> list[str]:
    return [name for group in GROUPS for name in (f"{group.capitalize()}\ndifference", "p Holm\nWilcoxon")]


def against_baselines(made: dict[str, Any]) -> Table:
    """Every run less every baseline."""
    settings = made["settings"]
    title = (
        f"{settings['tested']} less the baseline's, paired over users ({heading(settings, settings['filter_seen'])})"
    )
    table = new_table(title, "", *test_columns())
    for run, other in dict.fromkeys((row["run"], row["against"]) for row in made["tests"] if row["baseline"]):
        table.add_row(Text(f"{run} − {other}"), *test_cells(tests_of(made, run=run, against=other, baseline=True)))
    return table


def against_first(made: dict[str, Any]) -> Table:
    """The ablation table: what each run changes, and what that does."""
    settings, first = made["settings"], made["runs"][0]["run"]
    title = f"{settings['tested']} less {first}'s, paired over users ({heading(settings, settings['filter_seen'])})"
    table = new_table(title, "run", "what it changes", *test_columns())
    table.columns[1].justify = "left"
    for row in made["runs"][1:]:
        changes = [f"{name.partition('.')[2]} {plain(value)}" for name, value in row["changed"].items()]
        changed = ", ".join(changes) or (row["model"] if row["model"] != made["runs"][0]["model"] else "-")
        table.add_row(
            Text(row["run"]), Text(changed), *test_cells(tests_of(made, run=row["run"], against=first, baseline=False))
        )
    return table


def plain(value: Any) -> str:
    """An option's value; a class without its module, none and booleans as the command line writes them."""
    if isinstance(value, str) and value.startswith("setrec."):
        return value.rpartition(".")[2]
    return json.dumps(value).strip('"')


def by_popularity(made: dict[str, Any]) -> Table:
    """Recall of targets by decile, a method a column."""
    settings, rows = made["settings"], made["popularity"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    title = f"Found in the first {settings['k']}, by popularity of the target ({heading(settings, settings['filter_seen'])})"
    table = new_table(title, "decile", "bought", "targets", *methods)
    for decile in dict.fromkeys(row["decile"] for row in rows):
        own = [row for row in rows if row["decile"] == decile]
        one = own[0]
        span = str(one["least"]) if one["least"] == one["most"] else f"{one['least']}-{one['most']}"
        table.add_row(str(decile or "cold"), span, f"{one['targets']:,}", *marked([row["recall"] for row in own]))
    return table


def by_history(made: dict[str, Any]) -> Table:
    """The tested metric by length of history, a method a column."""
    settings = made["settings"]
    rows = [row for row in made["history"] if row["metric"] == settings["tested"]]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    title = f"{settings['tested']} by length of history ({heading(settings, settings['filter_seen'])})"
    table = new_table(title, "items", "users", *methods)
    for start in dict.fromkeys(row["from"] for row in rows):
        own = [row for row in rows if row["from"] == start]
        table.add_row(span_of(own[0]), f"{own[0]['users']:,}", *marked([row["mean"] for row in own]))
    return table


def span_of(row: dict[str, Any]) -> str:
    """up to 5, 6-10, over 50."""
    if row["to"] is None:
        return f"over {row['from'] - 1}"
    return f"up to {row['to']}" if row["from"] == 0 else f"{row['from']}-{row['to']}"


def marked(values: list[float]) -> list[Text]:
    """Figures, the best of them bold."""
    best = max(values)
    return [Text(short(value), style="bold" if value == best > 0 else "") for value in values]
