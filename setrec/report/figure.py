"""Draws a report as one picture."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from setrec.errors import SETRecError
from setrec.files.whole import whole_file
from setrec.report.table import bucket_label
from setrec.schemas import GROUPS

MARKERS = "osD^vPX<>*"
MIN_SIZE = 20  # a point of a breakdown needs this many users or targets; a wide interval would hide the other points


class Style:
    """A colour and a marker for each method: runs in colours, baselines in greys."""

    def __init__(self, content: dict[str, Any]) -> None:
        kinds = {row["method"]: row["baseline"] for row in content["figures"]}
        runs = [name for name, baseline in kinds.items() if not baseline]
        baselines = [name for name, baseline in kinds.items() if baseline]
        colours = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
        self.colour = {name: colours[i % 10] for i, name in enumerate(runs)}
        self.colour |= {name: str(0.7 - 0.5 * i / max(len(baselines) - 1, 1)) for i, name in enumerate(baselines)}
        self.methods = [*runs, *baselines]
        self.runs = runs

    def line(self, method: str) -> dict[str, Any]:
        """Arguments of matplotlib for a method's line or point."""
        place = self.methods.index(method)
        run = method in self.runs
        return {
            "color": self.colour[method],
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 5 if run else 4,
            "linewidth": 1.8 if run else 1.1,
            "linestyle": "-" if run else "--",
            "zorder": 3 if run else 2,
        }


def draw_report(content: dict[str, Any], path: Path) -> Path:
    """Draw the content of report.json: means, differences and breakdowns, with their intervals.

    Raises:
        SETRecError: the file can't be written.
    """
    style = Style(content)
    n_tests = len({(row["run"], row["against"]) for row in content["tests"]})
    height = 5.5 + 0.28 * max(len(style.methods), 1) + 0.28 * max(n_tests, 6)
    figure = Figure(figsize=(15, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    rows = figure.subplots(3, 3, height_ratios=[max(len(style.methods), 4), max(n_tests, 4), 10])
    settings = content["settings"]
    for g, group in enumerate(GROUPS):
        means_panel(rows[0, g], content, style, group)
        differences_panel(rows[1, g], content, style, group)
        for axes in rows[:2, g] if g else ():  # only the first panel of a row shows the names
            axes.set_yticklabels([])
    grid = rows[2, 0].get_gridspec()
    for axes in rows[2]:
        axes.remove()
    lower = grid[2, :].subgridspec(1, 2)
    popularity_panel(figure.add_subplot(lower[0]), content, style)
    history_panel(figure.add_subplot(lower[1]), content, style)
    seen = "masked" if settings["filter_seen"] else "not masked"
    figure.suptitle(
        f"{content['dataset']}, {settings['split']}, seen items {seen}; bars: {settings['confidence']:.0%} over users"
    )
    return save(figure, path)


def save(figure: Figure, path: Path) -> Path:
    """Write a picture, whole or not at all; returns its path.

    Raises:
        SETRecError: it cannot be written.
    """
    try:
        with whole_file(path) as hidden:
            figure.savefig(hidden, format="png")
    except OSError as error:
        raise SETRecError(f"{path} can't be written ({error.strerror or error}): choose another --output.") from None
    return path


def empty_panel(axes: Axes, title: str) -> None:
    """A panel without data."""
    axes.set_title(title, fontsize="medium")
    axes.text(0.5, 0.5, "nothing to show", ha="center", va="center", transform=axes.transAxes, color="grey")
    axes.set_xticks([]), axes.set_yticks([])


def means_panel(axes: Axes, content: dict[str, Any], style: Style, group: str) -> None:
    """The tested metric of every method: the mean with its interval, and a ring for every seed."""
    settings = content["settings"]
    wanted = {"group": group, "metric": settings["tested"], "filter_seen": settings["filter_seen"]}
    rows = {row["method"]: row for row in content["figures"] if all(row[key] == value for key, value in wanted.items())}
    title = f"{group.capitalize()}: {settings['tested']}"
    if not rows:
        return empty_panel(axes, title)
    for y, method in enumerate(style.methods):
        row = rows[method]
        spread = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        axes.errorbar(row["mean"], y, xerr=spread, capsize=3, **style.line(method))
        if len(row["seeds"]) > 1:
            axes.plot(row["seeds"], [y] * len(row["seeds"]), "o", markersize=8, markerfacecolor="none",
                      markeredgecolor=style.colour[method], alpha=0.6, linestyle="none")  # fmt: skip
    label_rows(axes, style.methods, title)


def differences_panel(axes: Axes, content: dict[str, Any], style: Style, group: str) -> None:
    """Every paired difference with its interval and its p after Holm."""
    tests = [row for row in content["tests"] if row["group"] == group]
    title = f"{group.capitalize()}: difference in {content['settings']['tested']}, p after Holm"
    if not tests:
        return empty_panel(axes, title)
    axes.axvline(0, color="black", linewidth=0.8)
    for y, row in enumerate(tests):
        spread = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
        axes.errorbar(
            row["difference"], y, xerr=spread, capsize=3, color=style.colour[row["run"]], marker="o", markersize=5
        )
        p = "p < .0001" if row["p_holm"] < 0.0001 else f"p = {row['p_holm']:.2g}"
        axes.annotate(p, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize="x-small")
    label_rows(axes, [f"{row['run']} − {row['against']}" for row in tests], title)


def label_rows(axes: Axes, names: list[str], title: str) -> None:
    """Label the rows, the first one on top."""
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="x", labelsize="small")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(title, fontsize="medium")


def popularity_panel(axes: Axes, content: dict[str, Any], style: Style) -> None:
    """Recall of targets by popularity decile."""
    rows = [row for row in content["popularity"] if row["targets"] >= MIN_SIZE]
    title = f"Targets found in the first {content['settings']['k']}, by popularity decile of the target"
    if not rows:
        return empty_panel(axes, title)
    draw_lines(axes, rows, style, "decile", "recall")
    first = {row["decile"]: row for row in rows}
    names = [
        f"{decile or 'cold'}\n{row['least']}-{row['most']}\n{row['targets']:,}"
        if row["least"] != row["most"]
        else f"{decile or 'cold'}\n{row['least']}\n{row['targets']:,}"
        for decile, row in first.items()
    ]
    axes.set_xticks(range(len(names)), names, fontsize="small")
    axes.set_xlabel(f"decile / occurrences in training / targets, where at least {MIN_SIZE}", fontsize="small")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small", ncols=2)


def history_panel(axes: Axes, content: dict[str, Any], style: Style) -> None:
    """The tested metric by length of history."""
    tested = content["settings"]["tested"]
    rows = [row for row in content["history"] if row["metric"] == tested and row["users"] >= MIN_SIZE]
    title = f"{tested} by length of history"
    if not rows:
        return empty_panel(axes, title)
    draw_lines(axes, rows, style, "from", "mean")
    first = {row["from"]: row for row in rows}
    axes.set_xticks(
        range(len(first)), [f"{bucket_label(row)}\n{row['users']:,}" for row in first.values()], fontsize="small"
    )
    axes.set_xlabel(f"items / users, where at least {MIN_SIZE}", fontsize="small")
    axes.set_title(title, fontsize="medium")


def draw_lines(axes: Axes, rows: list[dict[str, Any]], style: Style, x: str, y: str) -> None:
    """One line for each method over the values of x; lines are shifted a little, so that intervals don't overlap."""
    places = {value: i for i, value in enumerate(dict.fromkeys(row[x] for row in rows))}
    for m, method in enumerate(style.methods):
        own = [row for row in rows if row["method"] == method]
        shift = 0.5 * (m / max(len(style.methods) - 1, 1) - 0.5)
        spread = [[row[y] - row["low"] for row in own], [row["high"] - row[y] for row in own]]
        axes.errorbar([places[row[x]] + shift for row in own], [row[y] for row in own], yerr=spread, capsize=2,
                      elinewidth=0.8, label=method, **style.line(method))  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.tick_params(axis="y", labelsize="small")
