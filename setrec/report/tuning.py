"""What a search for options found, as tables and a picture."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from setrec.report.figure import save


def print_tuning(content: dict[str, Any]) -> None:
    """Print the content of tune.json: a row for each trial, then what mattered.

    Args:
        content: {"monitor": name, "trials": [{"number", "state", "value", "options": {name: value}, "reason"}],
            "importance": {name: share}}.
    """
    names = sorted({name for trial in content["trials"] for name in trial["options"]})
    rows = [["trial", content["monitor"], "state", *names]]
    for trial in content["trials"]:
        value = "-" if trial["value"] is None else f"{trial['value']:.4f}"
        options = [_short(trial["options"].get(name, "-")) for name in names]
        rows.append([str(trial["number"]), value, trial["state"], *options])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for trial in content["trials"]:
        if trial["reason"]:
            print(f"trial {trial['number']}, {trial['state']}: {trial['reason']}")
    if content["importance"]:
        print(f"what mattered for {content['monitor']} (shares of its variance, 1 in all; rough with few trials):")
        for name, share in content["importance"].items():
            print(f"  {share:.2f}  {name}")
    else:
        print("what mattered: not known before two trials with different figures have finished")


def draw_tuning(content: dict[str, Any], path: Path) -> Path:
    """Draw the figure of every trial, the best so far, and what mattered.

    Raises:
        SETRecError: the file can't be written.
    """
    figure = Figure(figsize=(11, 3 + 0.25 * len(content["importance"])), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for state, marker in (("complete", "o"), ("pruned", "x")):
        found = [(t["number"], t["value"]) for t in content["trials"] if t["state"] == state and t["value"] is not None]
        if found:
            left.plot(*zip(*found, strict=True), marker, label=state, markersize=5)
    done = [(t["number"], t["value"]) for t in content["trials"] if t["state"] == "complete"]
    better, best = (max if content["mode"] == "max" else min), list[float]()
    for _, value in done:
        best.append(better([*best[-1:], value]))
    if done:
        left.step([number for number, _ in done], best, where="post", label="best so far", color="grey")
        left.legend(fontsize="small")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="trial", title=f"validation {content['monitor']}")
    left.grid(alpha=0.3)
    names = list(content["importance"])[::-1]
    right.barh(names, [content["importance"][name] for name in names])
    right.set(title="what mattered: share of the variance", xlim=(0, 1))
    return save(figure, path)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
