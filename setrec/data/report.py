"""What preparing did to the raw data: kept in the manifest, and printed in a few lines."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from setrec.data.readers.base import SplitLog
from setrec.files.mapped import not_zero, row_hashes

_REAL_DATES = 631_152_000  # 1990-01-01: no log of events is older
_FEW_EVENTS, _FEW_ITEMS = 200, 20  # in training: fewer are too few to learn from
_USUAL = {"encoding": ("utf-8",), "separator": (",", "\t")}  # what need not be said of a file


def about_times(first: int, last: int, ticks: int, tied: float, in_file_order: bool) -> dict[str, Any]:
    """Describe the times of the events.

    Args:
        first: the earliest, in ticks.
        last: the latest.
        ticks: in a second.
        tied: see `share_of_ties`.
        in_file_order: tied events are in the order of the file.
    """
    order = "in the order of the file" if in_file_order else "in an order by chance"
    return {
        "first": _date(first // ticks),
        "last": _date(last // ticks),
        "tied": round(tied, 6),
        "order_of_ties": order,
    }


def _date(seconds: int) -> str:
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S")
    except OverflowError:
        return f"{seconds} seconds after 1970"


def about_targets(log: SplitLog) -> dict[str, dict[str, int]]:
    """Count events and users of each split."""
    splits = {"train": log.train, "validation": log.validation, "test": log.test}
    return {
        name: {"events": len(split.items), "users": int(np.count_nonzero(split.lengths))}
        for name, split in splits.items()
    }


def about_vectors(vectors: np.ndarray) -> dict[str, int]:
    """Count the items without a vector, and those whose vector another item has too. vectors: (N, F)."""
    there = not_zero(vectors)  # (N,)
    _, count = np.unique(row_hashes(vectors)[there], return_counts=True)
    return {"empty": int((~there).sum()), "duplicate": int(count[count > 1].sum())}


def about_source(present: np.ndarray, cold: np.ndarray) -> dict[str, int]:
    """Count the items without a vector, and the cold items and those of them that have one. present, cold: (N,) bool."""
    known = int((present & cold).sum())
    return {"missing": int((~present).sum()), "cold": int(cold.sum()), "cold_known": known}


def warnings(report: Mapping[str, Any], log: SplitLog) -> list[str]:
    """What must not be overlooked, one sentence each."""
    return list(_warnings(report, log))


def _warnings(report: Mapping[str, Any], log: SplitLog) -> Iterator[str]:
    targets, items, n_items = report["targets"], report["items"], len(log.items)
    of_split = report.get("split")
    left = ""
    if of_split and of_split["users"]:
        left = (
            f" ({of_split['users']:,} users were dropped: they have fewer than {of_split['min_train']} training items)"
        )
    for name in ("validation", "test"):
        if not targets[name]["events"]:
            yield f"the split leaves no {name} targets{left}, so there is nothing to rank in {name}: choose another --data.split."
    n_train, n_warm = targets["train"]["events"], len(np.unique(log.train.items))
    if n_train < _FEW_EVENTS or n_warm < _FEW_ITEMS:
        yield f"the training split has only {n_train:,} events of {n_warm:,} items: too few to learn from."
    if of_split and of_split["users"] > targets["train"]["users"]:
        yield f"the split drops more users than it keeps{left}."
    if report.get("times", {}).get("last", "2") < _date(_REAL_DATES):
        yield (
            f"the times go from {report['times']['first']} to {report['times']['last']}: they look like row numbers or another "
            "count, not like dates. A split by time then follows that count; LeaveOneOut needs only each user's own order."
        )
    if 0 < items["described"] < n_items / 2:
        yield f"only {items['described']:,} of {n_items:,} items have a text."
    if "text" in report and report["text"]["duplicate"] > n_items / 2:
        same = report["text"]["duplicate"]
        yield f"{same:,} of {n_items:,} items share their text vector with another, so it cannot tell them apart."


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report in words, a line at a time."""
    for name, about in report["files"].items():
        yield f"{name}: {_of_file(about)}"
    if "cleaning" in report:
        read = report["read"]
        steps = "".join(f", -{step['dropped']:,} by {step['step']}" for step in report["cleaning"] if step["dropped"])
        yield f"cleaning: {_events(read)}{steps or ', nothing dropped'}"
    if "split" in report:
        split = report["split"]
        dropped = f"-{split['events']:,} events of {split['users']:,} users with fewer than {split['min_train']} training items"
        yield f"split by {split['by']}: {dropped if split['users'] else 'no user dropped'}"
    kept, targets = report["kept"], report["targets"]
    parts = [f"{name} {one['events']:,} ({one['users']:,} users)" for name, one in targets.items()]
    yield f"kept: {_events(kept)}; {', '.join(parts)}"
    if "times" in report:
        times = report["times"]
        order = f"{times['tied']:.1%} of the events tied with another of the user ({times['order_of_ties']})"
        yield f"times: {times['first']} to {times['last']}, {order}"
    items = report["items"]
    yield f"items: {items['described']:,} of {kept['items']:,} have a text"
    if "text" in report:
        text = report["text"]
        yield f"text vectors: {text['empty']:,} empty, {text['duplicate']:,} the same as another's"
    for name, one in report.get("vectors", {}).items():
        yield (
            f"vectors {name}: {one['missing']:,} of {kept['items']:,} items have none (zero in their place); known for "
            f"{one['cold_known']:,} of {one['cold']:,} cold items"
        )


def _events(counts: Mapping[str, int]) -> str:
    return f"{counts['events']:,} events of {counts['users']:,} users and {counts['items']:,} items"


def _of_file(about: Mapping[str, Any]) -> str:
    """What there is to say about a file."""
    said = [f"{about['rows']:,} rows"] if "rows" in about else []
    said += [f"read as {about[name]!r}" for name, usual in _USUAL.items() if about.get(name, usual[0]) not in usual]
    for why, one in about.get("reasons", {}).items():
        said.append(f"{one['rows']:,} skipped: {why} ({one['example']})")
    for what, one in about.get("notes", {}).items():
        said.append(f"{one['rows']:,} {what} ({one['example']})" if one["example"] else what)
    if about.get("skipped") and "reasons" not in about:
        said.append(f"{about['skipped']:,} skipped")
    if "in_no_event" in about:
        said.append(f"{about['in_no_event']:,} ids in no event (such as {about['example']!r})")
    if "written_differently" in about:
        other = about["written_differently"]
        said.append(
            f"{other['items']:,} items of the events have no row here, but one that differs only in zeros in front or capital "
            f"letters (such as {other['here']!r} for {other['in_events']!r}): write the ids alike in both files"
        )
    return "; ".join(said)
