"""update: new events and items -> the next version of the data -> a refitted model -> published, unless it is worse.

`current.ckpt` is a link to the checkpoint that is served: `setrec serve --ckpt_path current.ckpt --watch 5`. Everything that an
update makes is in the folder of the new version of the data, and the link is replaced at the very end, in one step. So whenever
an update is killed, what was served before is served.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from setrec.commands.fit import checkpoint_arguments
from setrec.commands.update_inputs import new_items, read_events, stored
from setrec.commands.update_link import only_one, point, served_by, tell
from setrec.commands.update_options import UpdateOptions
from setrec.commands.update_report import (
    PENDING,
    about,
    before,
    finish,
    folder_of,
    lines,
    named,
    relative,
    report_of,
    way_back,
    write_report,
)
from setrec.commands.update_training import refitted, train
from setrec.commands.words import call, with_value
from setrec.data.catalogue import Catalogue
from setrec.data.grow import Newest, grow, stem_of, versions_of
from setrec.data.store import locked, write
from setrec.errors import ConfigError
from setrec.files.checkpoint import SETREC, read_checkpoint
from setrec.files.hashes import file_hash
from setrec.inference.restore import read_trained
from setrec.inference.versions import next_path
from setrec.recommend import Recommender
from setrec.trainer.ranking import data_of

REFUSED = 3  # exit status: the updated model is worse, and the one before stays


def update(**options: Any) -> UpdateOptions:
    """Bring a served model up to date with new events and items; publish it unless it is worse.

    The new events and items become the next version of the prepared data (a new folder, such as shop.002; the old one stays). The
    model is trained on, from the served weights, on the new events and a share of the old ones. Then both models rank the whole
    catalogue for half of the users who have newest events; the other half chooses the epoch and the weights of the score. If the
    updated model is not worse (--tolerance), it is fitted to the newest events too, and the link --current names it.

    Args:
        options: see `UpdateOptions`.
    """
    return UpdateOptions(**options)


def from_words(words: Sequence[str]) -> dict[str, Any] | None:
    """Run `update`; returns its report; None after --publish and --back.

    Raises:
        SETRecError: see `make`; what is served stays.
        SystemExit: with status `REFUSED`, the updated model is worse.
    """
    own, flags = split_words(with_value(words, "--back"))
    options: UpdateOptions = call(update, "update", own)
    with only_one(options.current):
        if options.current.exists():
            finish(options.current.resolve())  # where a kill came before it
        if options.back or options.publish is not None:
            where = way_back(options.current) if options.back else named(options)
            read_trained(where)  # says what is wrong with it
            publish(options.current, where)
            print(f"{options.current} names {where}")
            tell(options.server)
            return None
        report = make(options, flags)
    if not report["published"]:
        sys.exit(REFUSED)
    return report


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are options of `update`, and those that are flags of `fit`."""
    own: list[str] = []
    flags: list[str] = []
    to = own
    for word in words:
        if word.startswith("--"):
            to = (
                flags
                if word.startswith(("--model.", "--data.", "--trainer.", "--checkpoint.", "--early_stopping."))
                else own
            )
        to.append(word)
    return own, flags


# ----------------------------------------------------------------------------------------------------------- the update
def publish(link: Path, checkpoint: Path) -> None:
    """Let a link name a checkpoint, with one journal for both."""
    said = point(link, checkpoint)
    finish(checkpoint)
    if said:
        print(said)


def make(options: UpdateOptions, flags: Sequence[str]) -> dict[str, Any]:
    """Make the next version, train on, compare, and publish or not. Returns the report, which is in the version's folder too.

    Raises:
        SETRecError: an input is wrong, or nothing is new. What is served stays.
    """
    began, spent = datetime.now(UTC), time.process_time()
    served = served_by(options.current)
    checkpoint = read_checkpoint(served)
    if checkpoint.model_class != SETREC:
        raise ConfigError(f"{served} holds a {checkpoint.model_class}, and update takes SETRec checkpoints only.")
    known = checkpoint_arguments(served)
    folder = Path(known["data"]["root"]) / known["data"]["name"]
    finished = clear_unfinished(folder)
    inputs = {str(file): file_hash(file) for file in (options.events, options.items) if file is not None}
    for version in finished if options.events is not None else ():
        if inputs[str(options.events)] in (report_of(version) or {}).get("inputs", {}).values():
            raise ConfigError(f"the events of {options.events} are in {version} already; give a file of new events.")
    base = finished[-1] if finished else folder
    name = f"{stem_of(folder)}.{max([1, *versions_of(folder)]) + 1:03d}"
    new = folder.parent / name

    made = data_of(checkpoint).preparation
    taken = max((report["database"] for one in finished if (report := report_of(one)) is not None), default=0)
    log, last = (
        (read_events(options, made.reader), taken) if options.database is None else stored(options.database, taken)
    )
    changes, items = new_items(options, base, log, made)
    limits, fingerprint = Newest(options.share, options.days), checkpoint.catalogue["fingerprint"]
    grown = grow(base, name, log, items, made.cf, made.cleaning, limits, fingerprint, made.vectors)
    with locked(new):
        write(new, grown.prepared, grown.about)

    verdict, trained = train(options, known, new, served, flags)
    report = about(options, began, inputs, base, new, served, grown, verdict) | {"database": last}
    if verdict.worse:
        report = write_report(new, report | {"cpu_minutes": minutes(spent)})
    else:
        final = refitted(trained, new, flags)
        gone = [own for own in changes.removed if own in set(Catalogue.load(new).ids)]
        if gone:  # a version beside the new checkpoint leaves them out again; the journal of the link has them already
            recommender = Recommender.load(final)
            recommender.remove_items(gone)
            recommender.save(next_path(final))
        report |= {"checkpoint": relative(final, new), "cpu_minutes": minutes(spent)}
        report = write_report(new, report, PENDING)
        publish(options.current, final)
    print("\n".join(lines(report, new)))
    clear_old(options, new)
    if not verdict.worse:
        tell(options.server)
    return report


def minutes(since: float) -> float:
    """CPU minutes of this process since `since`, of `time.process_time`."""
    return round((time.process_time() - since) / 60, 3)


def clear_unfinished(folder: Path) -> list[Path]:
    """Remove what killed updates left, and return the finished versions. The one that is served is finished."""
    finished = []
    for version in versions_of(folder).values():
        if report_of(version) is not None or version.resolve() == folder.resolve():
            finished.append(version)
        else:
            shutil.rmtree(version)
    return finished


def clear_old(options: UpdateOptions, new: Path) -> None:
    """Remove the versions before the newest ones, but not what is served or was before it."""
    served = served_by(options.current)
    needed = {folder_of(served).resolve()}
    last = before(served)
    if last is not None:
        needed.add(folder_of(last).resolve())
    for version in list(versions_of(new).values())[: -options.keep]:
        if version.resolve() not in needed:
            shutil.rmtree(version)
