"""update: new events and items -> the next version of the data -> a refitted model -> published, unless it is worse.

`current.ckpt` is a link to the checkpoint that is served: `setrec serve --ckpt_path current.ckpt --watch 5`. Everything that an
update makes is in the folder of the new version of the data, and the link is replaced at the very end, in one step. So whenever
an update is killed, what was served before is served.
"""

import copy
import json
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

import setrec.encoders  # noqa: F401  # so that --encoder takes their names without a module
from setrec.cf import CFVectors
from setrec.commands import refit
from setrec.commands.fit import checkpoint_arguments, prepared
from setrec.commands.gate import Verdict, as_served, is_gate_user, judge, measure
from setrec.commands.one_sentence import of_run
from setrec.commands.words import call, command_of, with_value, without
from setrec.data.catalogue import Catalogue
from setrec.data.grow import Grown, Newest, NewItems, grow, stem_of, versions_of
from setrec.data.prepare import Preparation
from setrec.data.readers.base import EventLog, Reader
from setrec.data.readers.table import TableFiles
from setrec.data.store import locked, write
from setrec.errors import ConfigError, DataError
from setrec.files.checkpoint import SETREC, read_checkpoint
from setrec.files.hashes import file_hash, read_sealed, sealed
from setrec.files.tables import read_table
from setrec.files.times import TICKS
from setrec.files.whole import sync_folder, whole_file
from setrec.inference.restore import read_trained
from setrec.inference.versions import NO_CHANGES, Changes, read_version, source_vectors_of, vectors_of, without_vectors
from setrec.recommend import Recommender
from setrec.text import TextVectors
from setrec.trainer.ranking import data_of
from setrec.trainer.run_checkpoint import best_path

REPORT = "update.json"  # in the folder of a version whose update came to its end
REFUSED = 3  # exit status: the updated model is worse, and the one before stays
TOKEN = "SETREC_TOKEN"

DEFAULTS = [  # of the fit: the rate of refit, and a few epochs (docs/results.md); flags override them
    *("--model.lr", "5.0e-4", "--model.warmup_steps", "5", "--trainer.max_epochs", "3"),
    *("--trainer.num_sanity_val_steps", "0"),
]


@dataclass(frozen=True)
class Options:
    """The options of `update`. Those of `fit` (--model., --data., --trainer. and so on) are flags of the training.

    Args:
        current: The link to the checkpoint that is served; --publish makes it.
        events: File of new events: .parquet, JSON lines, or CSV with a header.
        database: In place of a file: URL of the database of `serve --database`; the events since the last update are taken.
        items: File of new items. With the columns that the data's own reader names for items, if it is TableFiles; otherwise as
            `add-items` takes it: id, title, text, and what the text encoder reads, or `vector`.
        reader: Names the columns of the files; null: the data's own reader, if it is TableFiles, otherwise the columns user, item
            and timestamp.
        encoder: Text encoder of new items, if the data got its text vectors from a file.
        share: Share of the new events, the newest, that both models are compared on.
        days: In place of the share: the events of so many days before the last one.
        replay: Share of the users without new events whose events are trained on again, so that they are not forgotten.
        tolerance: The updated model is worse if its mean NDCG@10 is lower by more than this share of the served one's, and that
            beyond chance: the 95% interval of the difference lies below 0. Then it is not published, and the exit status is 3.
        keep: Versions of the data that are kept with their models, the newest. What is served, and what was before it, stays.
        server: Address of a running server that is told to load the model: http://localhost:8000, with the token in SETREC_TOKEN.
            null: it watches the link (serve --watch).
        publish: Train nothing; let the link name this checkpoint, or the model of this version, such as shop.002.
        back: Train nothing; let the link name the model that was served before.
    """

    current: Path = Path("current.ckpt")
    events: Path | None = None
    database: str | None = None
    items: Path | None = None
    reader: TableFiles | None = None
    encoder: TextVectors | None = None
    share: float = 0.2
    days: float | None = None
    replay: float = 0.2
    tolerance: float = 0.02
    keep: int = 3
    server: str | None = None
    publish: str | None = None
    back: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: one is out of range, or nothing is asked for.
        """
        if not 0 < self.share <= 1 or not 0 <= self.replay <= 1 or self.tolerance < 0 or self.keep < 1:
            raise ConfigError(
                "--share must be above 0 and at most 1, --replay from 0 to 1, --tolerance 0 or more, --keep 1 or more."
            )
        if self.days is not None and not self.days > 0:
            raise ConfigError(f"--days is {self.days}; it must be above 0.")
        if sum((*(one is not None for one in (self.events, self.database, self.publish)), self.back)) != 1:
            raise ConfigError("give one of --events FILE, --database URL, --publish CHECKPOINT, --back.")
        for file in (self.events, self.items):
            if file is not None and not file.is_file():
                raise ConfigError(f"{file}: no such file.")


def update(**options: Any) -> Options:
    """Bring a served model up to date with new events and items; publish it unless it is worse.

    The new events and items become the next version of the prepared data (a new folder, such as shop.002; the old one stays). The
    model is trained on, from the served weights, on the new events and a share of the old ones. Then both models rank the whole
    catalogue for half of the users who have newest events; the other half chooses the epoch and the weights of the score. If the
    updated model is not worse (--tolerance), it is fitted to the newest events too, and the link --current names it.

    Args:
        options: see `Options`.
    """
    return Options(**options)


def from_words(words: Sequence[str]) -> dict[str, Any] | None:
    """Run `update`; returns its report; None after --publish and --back.

    Raises:
        SETRecError: see `make`; what is served stays.
        SystemExit: with status `REFUSED`, the updated model is worse.
    """
    own, flags = split_words(with_value(words, "--back"))
    options: Options = call(update, "update", own)
    with only_one(options.current):
        if options.back or options.publish is not None:
            where = before(options.current) if options.back else named(options)
            read_trained(where)  # says what is wrong with it
            point(options.current, where)
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


@contextmanager
def only_one(link: Path) -> Iterator[None]:
    """Hold the lock of a link.

    Raises:
        ConfigError: another update holds it.
    """
    lock = FileLock(link.parent / f".{link.name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"another update of {link} is running; wait for its end.") from None
    try:
        yield
    finally:
        lock.release()


# ------------------------------------------------------------------------------------------------------------- the link
def point(link: Path, checkpoint: Path) -> None:
    """Let a link name a checkpoint, in one step.

    Raises:
        ConfigError: a file that is no link has its name.
    """
    if link.exists() and not link.is_symlink():
        raise ConfigError(f"{link} is a file, not a link that update made; give another --current.")
    hidden = link.with_name(f".{link.name}.new")
    hidden.unlink(missing_ok=True)
    hidden.symlink_to(os.path.relpath(checkpoint.resolve(), link.parent.resolve()))
    os.replace(hidden, link)
    sync_folder(link.parent)


def served_by(link: Path) -> Path:
    """The checkpoint that a link names.

    Raises:
        ConfigError: there is none.
    """
    if not link.exists():
        raise ConfigError(
            f"{link} names no checkpoint; make it once: {command_of(['update', '--publish', 'CHECKPOINT'])}."
        )
    return link.resolve()


def folder_of(checkpoint: Path) -> Path:
    """The folder of the prepared data that a checkpoint names."""
    arguments = read_checkpoint(checkpoint).data
    return Path(str(arguments["root"]), str(arguments["name"]))


def report_of(version: Path) -> dict[str, Any] | None:
    """The report of a version whose update came to its end; None: it has none.

    Raises:
        DataError: it was changed.
    """
    try:
        return read_sealed(version / REPORT) if (version / REPORT).exists() else None
    except ValueError as error:
        raise DataError(f"{version / REPORT} cannot be read ({error}).") from None


def before(link: Path) -> Path:
    """The checkpoint that was served before.

    Raises:
        ConfigError: there is none, or it is gone.
    """
    served = served_by(link)
    report = report_of(folder_of(served)) or {}
    if report.get("checkpoint") != str(served) or not Path(report["before"]).exists():
        raise ConfigError(
            f"{link} names {served}, and nothing that was served before it is known; give --publish CHECKPOINT."
        )
    return Path(report["before"])


def named(options: Options) -> Path:
    """The checkpoint that --publish means.

    Raises:
        ConfigError: there is no such file or version.
    """
    what = str(options.publish)
    if Path(what).is_file():
        return Path(what).resolve()
    if options.current.exists():
        report = report_of(folder_of(options.current).parent / what) or {}
        if report.get("checkpoint"):
            return Path(report["checkpoint"])
    raise ConfigError(f"--publish {what}: no such checkpoint, and no such version of the data with a model.")


def tell(server: str | None) -> None:
    """Ask a server to load its checkpoint again.

    Raises:
        ConfigError: it cannot be reached, or refuses; the link names the new model all the same.
    """
    if server is None:
        return
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get(TOKEN, '')}"}
    request = urllib.request.Request(f"{server.rstrip('/')}/model/reload", b"{}", headers)
    try:
        with urllib.request.urlopen(request, timeout=600):
            pass
    except (OSError, ValueError) as error:
        said = error.read().decode(errors="replace")[:300] if isinstance(error, urllib.error.HTTPError) else ""
        raise ConfigError(
            f"the model is published, but {server} did not load it ({error}{said and ': '}{said})."
        ) from None


# ----------------------------------------------------------------------------------------------------------- the update
def make(options: Options, flags: Sequence[str]) -> dict[str, Any]:
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
    report = about(options, began, inputs, base, served, grown, verdict) | {"database": last}
    if verdict.worse:
        report |= {"cpu_minutes": minutes(spent)}
    else:
        final = refitted(trained, new, flags)
        gone = [own for own in changes.removed if own in set(Catalogue.load(new).ids)]
        if gone:  # a version beside the new checkpoint leaves them out again
            recommender = Recommender.load(final)
            recommender.remove_items(gone)
            recommender.save()
        report |= {"checkpoint": str(final), "cpu_minutes": minutes(spent)}
        point(options.current, final)
    report = sealed(report)
    with whole_file(new / REPORT) as hidden:
        hidden.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print("\n".join(lines(report, new)))
    clear_old(options, new)
    if not verdict.worse:
        tell(options.server)
    return report


def clear_unfinished(folder: Path) -> list[Path]:
    """Remove what killed updates left, and return the finished versions. The one that is served is finished."""
    finished = []
    for version in versions_of(folder).values():
        if report_of(version) is not None or version.resolve() == folder.resolve():
            finished.append(version)
        else:
            shutil.rmtree(version)
    return finished


def clear_old(options: Options, new: Path) -> None:
    """Remove the versions before the newest ones, but not what is served or was before it."""
    served = served_by(options.current)
    needed = {folder_of(served).resolve()}
    last = (report_of(folder_of(served)) or {}).get("before")
    if last and Path(last).exists():
        needed.add(folder_of(Path(last)).resolve())
    for version in list(versions_of(new).values())[: -options.keep]:
        if version.resolve() not in needed:
            shutil.rmtree(version)


def read_events(options: Options, own: Reader) -> EventLog:
    """Read the new events."""
    reader = copy.copy(reader_of(options, own))
    reader.events, reader.items = str(options.events), None
    return reader.read(None)


def stored(url: str, after: int) -> tuple[EventLog, int]:
    """The events of a database that came after the one with a number, and the number of the last.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        from setrec.shop.events import EventStore  # here: the extra may be missing
    except ModuleNotFoundError as error:
        raise ConfigError(f"--database needs {error.name}: pip install 'setrec[shop]'.") from None
    store = EventStore(url)
    try:
        last = store.last()
        table = store.table(after, last)
    finally:
        store.close()
    return EventLog(table, pl.DataFrame(), TICKS), last


def reader_of(options: Options, own: Reader) -> TableFiles:
    """What knows the columns of the files. own: the reader of the data."""
    return options.reader or (own if isinstance(own, TableFiles) else TableFiles(user="user", item="item"))


def new_items(options: Options, base: Path, log: EventLog, made: Preparation) -> tuple[Changes, NewItems]:
    """The items that `base` lacks: of the file, and of the served catalogue (`add-items`, POST /items).

    Returns:
        The changes of the served catalogue, with the items of the file; and the items that are new to `base`.
    """
    ids = Catalogue.load(base).ids
    known = set(ids)
    reader = reader_of(options, made.reader)
    if options.items is None:
        table = pl.DataFrame(schema={"id": pl.String})
    elif reader.items is not None:
        table = reader.read_items(options.items, ids)
    else:
        table = read_table(options.items)
    known_otherwise = [one for one in made.vectors.values() if not isinstance(one, CFVectors)]
    if made.text is None and not known_otherwise:  # nothing but its id and its events is known of an item
        bought = log.events.select(id=pl.col("item").cast(pl.String)).unique().sort("id")
        table = pl.concat([table, bought], how="diagonal_relaxed").unique("id", maintain_order=True)
        missing = [pl.lit("").alias(name) for name in ("title", "text") if name not in table.columns]
        return NO_CHANGES, NewItems(table.with_columns(missing).filter(~pl.col("id").is_in(ids)), None)
    recommender = Recommender.load(options.current)  # its journal is beside the link
    if "id" not in table.columns:
        raise DataError(f"{options.items} has no column 'id' (it has {', '.join(table.columns)}).")
    table = table.with_columns(pl.col("id").cast(pl.String))
    table = table.filter([own not in known and own not in recommender for own in table["id"].to_list()])
    if len(table):
        recommender.add_items(table, options.encoder)
    changes = NO_CHANGES
    info = recommender.info()
    if info["added"] or info["removed"]:
        with tempfile.TemporaryDirectory() as place:
            changes = read_version(recommender.save(Path(place) / "items")).changes
    if changes.added is None:
        return changes, NewItems(pl.DataFrame(schema=dict.fromkeys(("id", "title", "text"), pl.String)), None)
    added = changes.added.filter(~pl.col("id").is_in(ids))
    vectors = vectors_of(added) if len(added) and made.text is not None else None
    widths = {name: one.table.shape[1] for name, one in Catalogue.load(base).vectors.items()}
    more = {name: source_vectors_of(added, name, width) for name, width in widths.items()}
    return changes, NewItems(without_vectors(added), vectors, more)


def train(
    options: Options, known: dict[str, Any], new: Path, served: Path, flags: Sequence[str]
) -> tuple[Verdict, Path]:
    """Train on, and compare with what is served. Returns the checkpoint too.

    Raises:
        DataError: no user of a half has newest events.
    """
    data = known["data"] | {"name": new.name, "fit_on": "train", "replay": options.replay}
    start = ["--config", json.dumps(known | {"data": data}), "--model.start_from", str(served)]
    with redirect_stdout(sys.stderr):
        cli = prepared([*start, "--trainer.default_root_dir", str(new), *DEFAULTS, *flags])
        module, loaded = cli.model, cli.datamodule
        loaded.setup()
        histories = loaded.histories
        gate = is_gate_user(histories.ids)  # (users,)
        halves = [replace(histories, validation=histories.validation.only(half)) for half in (~gate, gate)]
        if not all(len(half.validation.items) for half in halves):
            users = int((histories.validation.lengths > 0).sum())
            raise DataError(
                f"{users} users have newest events, too few to choose and compare: give more events, or a larger --share."
            )
        loaded.histories = halves[0]
        with of_run():
            cli.trainer.fit(module, datamodule=loaded)
        checkpoint = Path(best_path(cli.trainer))
        loaded.histories = halves[1]
        updated = type(module).load_from_checkpoint(checkpoint, datamodule=loaded)
        updated.prepare_scoring("validation")
        trained = read_trained(served)
        old = as_served(trained, loaded.catalogue)
        scores: list[Callable[[Any], Any]] = [lambda b: next(old.scorer.scores(b, [old.weights])), updated.score]
        tables = [measure(score, loaded.val_dataloader()[0], loaded.catalogue.warm) for score in scores]
    return judge(tables[0], tables[1], options.tolerance), checkpoint


def refitted(checkpoint: Path, new: Path, flags: Sequence[str]) -> Path:
    """Fit the model to the newest events too, which have done their work; the last checkpoint of that."""
    more = without(split_trainer(flags), "--trainer.max_epochs")
    with redirect_stdout(sys.stderr):
        done = refit.from_words(["--ckpt_path", str(checkpoint), "--trainer.default_root_dir", str(new), *more])
    return Path(done.checkpoint.outcome).resolve()


def split_trainer(flags: Sequence[str]) -> list[str]:
    """The flags of the Trainer alone: the refit has its own rate and epochs."""
    kept, on = [], False
    for word in flags:
        on = word.startswith("--trainer.") if word.startswith("--") else on
        kept += [word] if on else []
    return kept


def minutes(since: float) -> float:
    """CPU minutes of this process since `since`, of `time.process_time`."""
    return round((time.process_time() - since) / 60, 3)


def about(
    options: Options, began: datetime, inputs: dict[str, str], base: Path, served: Path, grown: Grown, verdict: Verdict
) -> dict[str, Any]:
    """What the report says before the model is published."""
    return {
        "format": 1, "began": began.isoformat(timespec="seconds"), "inputs": inputs, "base": str(base), "before": str(served),
        "added": grown.counts, "dropped": grown.dropped, "tolerance": options.tolerance, "replay": options.replay,
        "comparison": verdict._asdict(), "published": not verdict.worse,
    }  # fmt: skip


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
        f"published: {report['checkpoint']}"
        if report["published"]
        else f"NOT published, it is worse; served is {report['before']}"
    )
