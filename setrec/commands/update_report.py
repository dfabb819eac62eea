"""The report of an update: what it did, which checkpoint it made, and which was served before.

`data/shop.002/update.json` makes a version of the data a finished one. Its paths are relative to its folder, so that a shop can be
moved and copied. The report of a model that is published is on the disk, under another name, before the link names the model, and
gets its name afterwards. So a kill in between leaves either an unfinished version or a served one whose report `finish` finds.
"""

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from setrec.commands.gate import Verdict
from setrec.commands.update_link import served_by
from setrec.commands.update_options import UpdateOptions
from setrec.data.catalogue import MANIFEST
from setrec.data.grow import Grown
from setrec.errors import ConfigError, DataError
from setrec.files.checkpoint import read_checkpoint
from setrec.files.hashes import read_sealed, sealed
from setrec.files.whole import sync_folder, whole_file

REPORT = "update.json"  # in the folder of a version whose update came to its end
PENDING = "update.pending.json"  # the same, until the link names the model


def folder_of(checkpoint: Path) -> Path:
    """The folder of the prepared data that a checkpoint names."""
    arguments = read_checkpoint(checkpoint).data
    return Path(str(arguments["root"]), str(arguments["name"]))


def report_of(version: Path, name: str = REPORT) -> dict[str, Any] | None:
    """The report of a version whose update came to its end; None: it has none.

    Raises:
        DataError: it was changed.
    """
    try:
        return read_sealed(version / name) if (version / name).exists() else None
    except ValueError as error:
        raise DataError(f"{version / name} cannot be read ({error}).") from None


def path_of(version: Path, report: dict[str, Any], name: str) -> Path | None:
    """The checkpoint that a report names under `checkpoint` or `before`, whether it is there or not; None: it names none."""
    return Path(os.path.realpath(version / report[name])) if name in report else None


def origin_of(checkpoint: Path, name: str = REPORT) -> tuple[Path, dict[str, Any]] | None:
    """The version of the data whose update made a checkpoint, and its report; None: no update made it."""
    above = [folder for folder in checkpoint.parents if (folder / MANIFEST).is_file()]
    for folder in (*above, folder_of(checkpoint)):  # its data may lie elsewhere, with --trainer.default_root_dir
        report = report_of(folder, name)
        if report is not None and path_of(folder, report, "checkpoint") == checkpoint:
            return folder, report
    return None


def before(checkpoint: Path) -> Path | None:
    """The checkpoint that was served before a checkpoint of an update; None: none is known, or it is gone."""
    found = origin_of(checkpoint)
    path = None if found is None else path_of(*found, "before")
    return path if path is not None and path.exists() else None


def way_back(link: Path) -> Path:
    """The checkpoint that --back means.

    Raises:
        ConfigError: there is none, or it is gone.
    """
    served = served_by(link)
    path = before(served)
    if path is None:
        raise ConfigError(
            f"{link} names {served}, and nothing that was served before it is known; give --publish CHECKPOINT."
        )
    return path


def named(options: UpdateOptions) -> Path:
    """The checkpoint that --publish means.

    Raises:
        ConfigError: there is no such file or version.
    """
    what = str(options.publish)
    if Path(what).is_file():
        return Path(what).resolve()
    if options.current.exists():
        version = folder_of(options.current).parent / what
        path = path_of(version, report_of(version) or {}, "checkpoint")
        if path is not None:
            return path
    raise ConfigError(f"--publish {what}: no such checkpoint, and no such version of the data with a model.")


def write_report(version: Path, report: dict[str, Any], name: str = REPORT) -> dict[str, Any]:
    """Write a report into the folder of its version, and return it with its hash."""
    report = sealed(report)
    with whole_file(version / name) as hidden:
        hidden.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def finish(checkpoint: Path) -> None:
    """Give the report of a checkpoint its name, now that the link names the checkpoint."""
    found = origin_of(checkpoint, PENDING)
    if found is not None:
        os.replace(found[0] / PENDING, found[0] / REPORT)
        sync_folder(found[0])


def about(
    options: UpdateOptions, began: datetime, inputs: dict[str, str], base: Path, new: Path, served: Path, grown: Grown,
    verdict: Verdict,
) -> dict[str, Any]:  # fmt: skip
    """What the report says before the model is published."""
    return {
        "format": 1, "began": began.isoformat(timespec="seconds"), "inputs": inputs, "base": str(base),
        "before": relative(served, new), "added": grown.counts, "dropped": grown.dropped, "tolerance": options.tolerance,
        "replay": options.replay, "comparison": verdict._asdict(), "published": not verdict.worse,
    }  # fmt: skip


def relative(path: Path, folder: Path) -> str:
    """A path as a report holds it."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))


def lines(report: dict[str, Any], new: Path) -> Iterator[str]:
    """The report for people."""
    added, figures = report["added"], report["comparison"]
    yield f"version: {new}, from {report['base']}"
    yield f"added: {added['events']:,} events, {added['users']:,} users, {added['items']:,} items"
    for why, count in report["dropped"].items():
        yield f"dropped: {count:,} events: {why}"
    yield f"newest {added['newest']:,} events, {figures['users']:,} users    Recall@10   NDCG@10"
    for label in ("served", "updated"):
        yield f"  {label:36}{figures[label]['recall@10']:9.4f} {figures[label]['ndcg@10']:9.4f}"
    yield f"  difference of NDCG@10: {figures['difference']:+.4f}, 95% interval {figures['low']:+.4f} to {figures['high']:+.4f}"
    yield f"CPU minutes: {report['cpu_minutes']:.2f}"
    yield (
        f"published: {path_of(new, report, 'checkpoint')}"
        if report["published"]
        else f"NOT published, it is worse; served is {path_of(new, report, 'before')}"
    )
