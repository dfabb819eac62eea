"""predict --histories: recommendations for the users of a file, by any number of processes, each user once."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import polars as pl
import torch
from tqdm import tqdm

from setrec.errors import ConfigError, DataError
from setrec.files.tables import read_table
from setrec.files.whole import whole_file
from setrec.inference.answers import Recommendation
from setrec.inference.history_file import HistoryFile, read_history_file
from setrec.recommend import Recommender


class Wanted(NamedTuple):
    """What every process needs to know."""

    ckpt_path: str
    data: str | None
    file: HistoryFile
    k: int
    explain: bool
    exclude_seen: bool
    candidates: list[str] | None
    beta: float | None
    unknown: Literal["skip", "refuse"]
    device: str
    processes: int
    parts: Path


def predict_file(
    ckpt_path: str,
    histories: str,
    output: str = "predictions.parquet",
    k: int = 10,
    explain: bool = False,
    exclude_seen: bool = True,
    candidates: str | None = None,
    beta: float | None = None,
    unknown: Literal["skip", "refuse"] = "skip",
    user: str = "user_id",
    item: str = "item_id",
    time: str = "timestamp",
    history: str = "history",
    processes: int = 1,
    device: str = "cpu",
    data: str | None = None,
) -> None:
    """Recommend to the users of a file, whether the model knows them or not.

    Args:
        ckpt_path: A checkpoint of fit, a version of its catalogue, or a published folder.
        histories: File of histories: .parquet, JSON lines, or CSV with a header. One row a user with a column `history` (a
            list), or one row an event with user and item, and a time where rows are not in order.
        output: File to write: .parquet, .csv or .jsonl. Columns user_id, rank (from 1), item_id, score, title.
        k: Items for each user.
        explain: Add why: what each slot contributes (parts), and the history items closest by text and by CF vectors.
        exclude_seen: Leave the history's own items out.
        candidates: File with a column `id`: recommend only these items (in stock, in a region); null: all.
        beta: Weight of the semantic slots, 0 to 1; null: as chosen on validation.
        unknown: Items of a history that the catalogue doesn't have: skip them and say so, or refuse the file.
        user: Column of the user's id.
        item: Column of the item's id.
        time: Column of the time, where there is one.
        history: Column of the whole history.
        processes: Processes that share the work; the output is the same whatever their number.
        device: Where the model computes: cpu, cuda (one GPU for each process, in turn), cuda:1.
        data: Folder of the prepared data, where it is not where the checkpoint says.

    Raises:
        DataError: the file has a row that makes no sense; the message says which.
        ConfigError: the checkpoint or an option is wrong.
    """
    if processes < 1:
        raise ConfigError(f"--processes is {processes}; it must be 1 or more.")
    final = Path(output)
    if final.suffix not in (".parquet", ".csv", ".jsonl"):
        raise ConfigError(f"--output {output}: the name must end in .parquet, .csv or .jsonl.")
    file = read_history_file(histories, user, item, time, history)
    allowed = _candidates(candidates)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent, ignore_cleanup_errors=True) as folder:
            parts = Path(folder)
            strange = _shared(
                Wanted(
                    ckpt_path, data, file, k, explain, exclude_seen, allowed, beta, unknown, device, processes, parts
                )
            )
            _join(parts, final, file.users)
    except OSError as error:
        raise DataError(f"{final} cannot be written ({error}).") from None
    if strange:
        shown = ", ".join(sorted(strange)[:5]) + (", ..." if len(strange) > 5 else "")
        print(f"{len(strange):,} ids of the histories are not in the catalogue and were skipped: {shown}")
    print(f"predictions: {final} ({len(file.users):,} users)")


def _candidates(path: str | None) -> list[str] | None:
    if path is None:
        return None
    table = read_table(path)
    if "id" not in table.columns:
        raise DataError(f"{path} has no column 'id' (it has {', '.join(table.columns)}).")
    return table["id"].cast(pl.String).to_list()


def _shared(wanted: Wanted) -> set[str]:
    """Do the work, here or in processes of its own; returns the unknown ids."""
    if wanted.processes == 1:
        return work(wanted, 0)
    with ProcessPoolExecutor(wanted.processes, mp_context=get_context("spawn")) as pool:
        return set().union(*pool.map(work, [wanted] * wanted.processes, range(wanted.processes)))


def work(wanted: Wanted, rank: int) -> set[str]:
    """One process's share, every processes-th block of users, as a file; returns the unknown ids among them."""
    device = wanted.device
    if wanted.processes > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // wanted.processes))
        if device == "cuda":
            device = f"cuda:{rank % torch.cuda.device_count()}"
    recommender = Recommender.load(wanted.ckpt_path, device, wanted.data)
    blocks = recommender.stream(
        wanted.file.histories,
        wanted.k,
        wanted.exclude_seen,
        wanted.candidates,
        wanted.explain,
        wanted.beta,
        wanted.unknown,
        share=(rank, wanted.processes),
    )
    strange: set[str] = set()
    everyone = len(wanted.file.users) if wanted.processes == 1 else None  # shares are whole blocks, not equal
    with tqdm(total=everyone, desc=f"users of process {rank}", unit="user", delay=2, disable=rank > 0) as bar:
        for number, (places, answers) in enumerate(blocks):
            strange.update(*(answer.unknown for answer in answers))
            frame = rows(places, answers, wanted.explain)
            if len(frame):
                frame.write_parquet(wanted.parts / f"{rank:04d}-{number:08d}.parquet")
            bar.update(len(places))
    return strange


def rows(places: Sequence[int], answers: Sequence[Recommendation], explain: bool) -> pl.DataFrame:
    """Answers as rows: user (its place in the file), rank, item_id, score, title; with `explain` parts and nearest items."""
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
            near = [[own for own, _ in getattr(why, name)] for why in whys]
            columns[name] = pl.Series(near, dtype=pl.List(pl.String))
    return pl.DataFrame(columns)


def _join(parts: Path, final: Path, users: list[str]) -> None:
    """All blocks -> one file, users in the file's order."""
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
            table.with_columns(nested).sink_csv(hidden)
