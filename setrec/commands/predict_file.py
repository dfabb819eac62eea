"""predict --histories: recommendations for the users of a file, computed by one process or several."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from tqdm import tqdm

from setrec.errors import ConfigError, DataError
from setrec.files.ids import as_ids
from setrec.files.spreadsheet import quoted
from setrec.files.tables import read_table
from setrec.files.whole import scratch_folder, whole_file
from setrec.inference.answers import Recommendation, index_sentence
from setrec.inference.history_file import HistoryFile, read_history_file
from setrec.inference.options import RecommendOptions
from setrec.recommend import Recommender


@dataclass(frozen=True)
class PredictFileOptions(RecommendOptions):
    """The options of `setrec predict --histories`.

    Args:
        candidates: File with a column `id`: recommend only these items (in stock, in a region); null: the whole catalogue.
        output: File to write: .parquet, .csv or .jsonl. Columns user_id, rank (from 1), item_id, score, title; with explain also
            parts, nearest_text, nearest_cf.
        user: Column with the user's id.
        item: Column with the item's id.
        time: Column with the time, if there is one.
        history: Column with the whole history.
        kind: Column with the kind of the event (view, buy), where a row is an event: events of kinds that the model does not read
            are left out, and exclude_seen leaves out items of target kinds only. null: every event is read.
        processes: Number of processes that share the work; the output does not depend on it.
        device: Where the model computes: cpu, cuda (each process takes the next GPU), cuda:1.
        index: Search approximately by faiss: PQ (for large catalogues), or any it builds, such as IVF4096,Flat; null: exactly.
        data: Folder of the prepared data, if it is not where the checkpoint says.

    Raises:
        ConfigError: an option is out of range.
    """

    candidates: str | None = None
    output: str = "predictions.parquet"
    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    history: str = "history"
    kind: str | None = None
    processes: int = 1
    device: str = "cpu"
    index: str | None = None
    data: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.processes < 1:
            raise ConfigError(f"--processes is {self.processes}; it must be 1 or more.")
        if Path(self.output).suffix not in (".parquet", ".csv", ".jsonl"):
            raise ConfigError(f"--output {self.output}: the name must end in .parquet, .csv or .jsonl.")

    def for_recommender(self) -> RecommendOptions:
        """The part of the options that the Recommender takes, with the candidates read from their file."""
        given = {field.name: getattr(self, field.name) for field in fields(RecommendOptions)}
        return RecommendOptions(**given | {"candidates": read_candidates(self.candidates)})


class Task(NamedTuple):
    """What every process needs to know."""

    ckpt_path: str
    file: HistoryFile
    options: PredictFileOptions
    for_recommender: RecommendOptions
    parts: Path  # the folder for the results of all processes


def predict_file(ckpt_path: str, histories: str, **options: Any) -> None:
    """Recommend items to the users of a file. The users need not be in the training data.

    Args:
        ckpt_path: A checkpoint that fit wrote, a version of its catalogue, or a published folder.
        histories: File of histories: .parquet, JSON lines, or CSV with a header. Either one row a user, with a list in the column
            `history`; or one row an event, with user and item, and a time if rows are not in order.
        options: see `PredictFileOptions`.

    Raises:
        DataError: a row of the file is wrong; the message names the row.
        ConfigError: the checkpoint or an option is wrong.
    """
    chosen = PredictFileOptions(**options)
    final = Path(chosen.output)
    file = read_history_file(histories, chosen.user, chosen.item, chosen.time, chosen.history, chosen.kind)
    for_recommender = chosen.for_recommender()
    try:
        with scratch_folder(final) as folder:
            unknown, skipped = run_processes(Task(ckpt_path, file, chosen, for_recommender, folder))
            _join(folder, final, file.users)
    except OSError as error:
        raise DataError(f"{final} cannot be written ({error}).") from None
    for what, ids in (("histories", unknown), ("candidates", skipped)):
        if ids:
            shown = ", ".join(sorted(ids)[:5]) + (", ..." if len(ids) > 5 else "")
            print(f"{len(ids):,} ids of the {what} are not in the catalogue and were skipped: {shown}")
    print(f"predictions: {final} ({len(file.users):,} users)")


def read_candidates(path: str | None) -> list[str] | None:
    """Read the ids of candidates from a file.

    Raises:
        DataError: the file cannot be read, has no column `id`, or a row has no id.
    """
    if path is None:
        return None
    table = read_table(path)
    if "id" not in table.columns:
        raise DataError(f"{path} has no column 'id' (it has {', '.join(table.columns)}).")
    ids = as_ids(table["id"])
    if not len(ids):
        raise DataError(f"{path} holds no candidates.")
    if ids.null_count():
        raise DataError(
            f"{path}, row {(ids.is_null().arg_max() or 0) + 1}: no id; give every row one, or leave it out."
        )
    return ids.to_list()


def run_processes(task: Task) -> tuple[set[str], set[str]]:
    """Do the task, in this process or in several new ones; returns the unknown ids of the histories and of the candidates."""
    n = task.options.processes
    if n == 1:
        return predict_share(task, 0)
    with ProcessPoolExecutor(n, mp_context=get_context("spawn")) as pool:
        unknown, skipped = zip(*pool.map(predict_share, [task] * n, range(n)), strict=True)
    return set().union(*unknown), set().union(*skipped)


def predict_share(task: Task, rank: int) -> tuple[set[str], set[str]]:
    """Do the share of one process, every n-th batch of users, and write it to files.

    Returns:
        The unknown ids of its users' histories, and those of the candidates.

    Raises:
        DataError: no id of the histories, or none of the candidates, is in the catalogue.
    """
    n, device = task.options.processes, task.options.device
    if n > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // n))
        if device == "cuda":
            device = f"cuda:{rank % torch.cuda.device_count()}"
    recommender = Recommender.load(task.ckpt_path, device, task.options.data, task.options.index)
    if rank == 0 and recommender.index_recall is not None:
        print(index_sentence(task.options.index, recommender.index_recall))
    check_known("the histories", chain.from_iterable(task.file.histories), recommender)
    candidates = task.for_recommender.candidates
    check_known("the candidates", candidates or (), recommender)
    skipped = {own for own in candidates or () if own not in recommender}
    unknown: set[str] = set()
    total = len(task.file.users) if n == 1 else None  # a share is a number of batches, which differ in size
    with tqdm(total=total, desc=f"users of process {rank}", unit="user", delay=2, disable=rank > 0) as bar:
        file = task.file
        batches = recommender.stream(file.histories, task.for_recommender, share=(rank, n), kinds=file.kinds)
        for number, (places, answers) in enumerate(batches):
            unknown.update(*(answer.unknown for answer in answers))
            frame = rows(places, answers, task.options.explain)
            if len(frame):
                frame.write_parquet(task.parts / f"{rank:04d}-{number:08d}.parquet")
            bar.update(len(places))
    return unknown, skipped


def check_known(what: str, ids: Iterable[str], recommender: Recommender) -> None:
    """Check that the catalogue has at least one of the ids, if there are any.

    Raises:
        DataError: it has none of them.
    """
    example = None
    for own in ids:
        if own in recommender:
            return
        example = example or own
    if example is not None:
        raise DataError(
            f"no id of {what} is in the catalogue (such as {example!r}): write them as in the data of the training, and name "
            "the column that holds them."
        )


def rows(places: Sequence[int], answers: Sequence[Recommendation], explain: bool) -> pl.DataFrame:
    """Make a table of answers: user (its place in the file), rank, item_id, score, title; with `explain` also the reasons."""
    flat = [
        (place, rank, item)
        for place, answer in zip(places, answers, strict=True)
        for rank, item in enumerate(answer.items, 1)
    ]
    columns: dict[str, Any] = {
        "user": pl.Series([place for place, _, _ in flat], dtype=pl.Int64),
        "rank": pl.Series([rank for _, rank, _ in flat], dtype=pl.Int32),
        "item_id": pl.Series([item.id for _, _, item in flat], dtype=pl.String),
        "score": pl.Series([item.score for _, _, item in flat], dtype=pl.Float32),
        "title": pl.Series([item.title for _, _, item in flat], dtype=pl.String),
    }
    if explain:
        whys = [item.why for _, _, item in flat if item.why is not None]
        columns["parts"] = pl.Series([why.parts for why in whys])
        for name in ("nearest_text", "nearest_cf"):
            ids = [[own for own, _ in getattr(why, name)] for why in whys]
            columns[name] = pl.Series(ids, dtype=pl.List(pl.String))
    return pl.DataFrame(columns)


def _join(parts: Path, final: Path, users: list[str]) -> None:
    """Join the files of all batches into one, users in the order of the input."""
    files = sorted(parts.glob("*.parquet"))
    names = pl.LazyFrame(
        {"user": pl.Series(range(len(users)), dtype=pl.Int64), "user_id": pl.Series(users, dtype=pl.String)}
    )
    empty = rows([], [], explain=False).lazy()
    found = pl.scan_parquet(files) if files else empty
    table = found.join(names, "user", how="left").sort("user", "rank")
    table = table.select("user_id", pl.exclude("user", "user_id"))
    with whole_file(final) as hidden:
        if final.suffix == ".parquet":
            table.sink_parquet(hidden)
        elif final.suffix == ".jsonl":
            table.sink_ndjson(hidden)
        else:
            schema = table.collect_schema()
            nested = [pl.col(name).struct.json_encode() for name in schema if isinstance(schema[name], pl.Struct)]
            nested += [pl.col(name).list.join(" ") for name in schema if isinstance(schema[name], pl.List)]
            table = table.with_columns(nested)
            texts = [quoted(name) for name, kind in table.collect_schema().items() if kind == pl.String]
            table.with_columns(texts).sink_csv(hidden)
