"""What a table of means leaves out: the figures of every user, and the fate of every target, beside results.json.

    per_user.parquet   one row for each user, method, filter and group in which the user has a target
    hits.parquet       one row for each target, method and filter: was it among the first 5, 10, 20 of all items?

They are what confidence intervals, paired tests and breakdowns are made from (`python main.py report`). Both are written
part by part, so that memory holds one method at a time.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from setrec.data.catalogue import Catalogue, Histories
from setrec.errors import SETRecError
from setrec.evaluation.comparison import Figures
from setrec.files.whole import whole_file
from setrec.schemas import GROUPS

DECILES = 10


def write_per_user(path: Path, figures: dict[bool, dict[str, Figures]], histories: Histories, split: str) -> Path:
    """Write the figures of every user in the users' own ids.

    Columns: user_id, method ("model" or a baseline), filter_seen, group (all, warm, cold), history (items the user had,
    all of them), targets (distinct ones in the group), then a column a figure: recall@5 ... mrr@20, float64. Their mean over
    the rows of a method, filter and group is the figure in results.json.

    Args:
        path: The file.
        figures: Under filter_seen and method, see `Comparison.compute`.
        histories: The users.
        split: "test" or "validation", what was answered.

    Raises:
        SETRecError: the disk refuses.
    """
    length = histories.train.lengths  # (users,)
    if split == "test":
        length = length + histories.validation.lengths  # (users,)
    ids = pl.Series(histories.ids, dtype=pl.String)

    def parts() -> Iterator[pl.DataFrame]:
        for filtered, methods in figures.items():
            for name, (table, _) in methods.items():
                for g, group in enumerate(GROUPS):
                    user = table.user[table.targets[:, g].numpy() > 0]  # (n',)
                    about = {
                        "user_id": ids[user],
                        "method": pl.repeat(name, len(user), eager=True, dtype=pl.String),
                        "filter_seen": pl.repeat(filtered, len(user), eager=True, dtype=pl.Boolean),
                        "group": pl.repeat(group, len(user), eager=True, dtype=pl.String),
                        "history": pl.Series(length[user], dtype=pl.Int32),
                        "targets": pl.Series(table.targets[table.targets[:, g] > 0, g].numpy(), dtype=pl.Int32),
                    }
                    values = {metric: table.per_user(metric, group)[1].numpy() for metric in table.metrics()}
                    yield pl.DataFrame(about | values)

    return write_parts(path, parts())


def write_hits(path: Path, figures: dict[bool, dict[str, Figures]], histories: Histories, catalogue: Catalogue) -> Path:
    """Write the fate of every target in the ranking of all items, in own ids.

    Columns: user_id, item_id, count (of the item in training), decile (see `deciles`), method, filter_seen, then hit@5 ...,
    float32: 1 where the list of that length holds the target; for popularity, whose ties are many, the probability.

    Args: see `write_per_user`.

    Raises:
        SETRecError: the disk refuses.
    """
    users, items = pl.Series(histories.ids, dtype=pl.String), pl.Series(catalogue.ids, dtype=pl.String)
    count = catalogue.count.numpy()  # (N,)
    decile = deciles(count)  # (N,)

    def parts() -> Iterator[pl.DataFrame]:
        for filtered, methods in figures.items():
            for name, (_, table) in methods.items():
                about = {
                    "user_id": users[table.user],
                    "item_id": items[table.item],
                    "count": pl.Series(count[table.item], dtype=pl.Int32),
                    "decile": pl.Series(decile[table.item], dtype=pl.Int8),
                    "method": pl.repeat(name, len(table.user), eager=True, dtype=pl.String),
                    "filter_seen": pl.repeat(filtered, len(table.user), eager=True, dtype=pl.Boolean),
                }
                yield pl.DataFrame(about | {f"hit@{k}": table.hits[:, c] for c, k in enumerate(table.cutoffs)})

    return write_parts(path, parts())


def deciles(count: np.ndarray) -> np.ndarray:
    """Popularity decile of every item: 1, the least bought tenth of the warm items, to 10; 0 for a cold item.

    Items of equal count share the decile of their middle place, so that no order by id decides; a decile may be empty.

    Args:
        count: (N,) occurrences in training.

    Returns:
        (N,) int64.
    """
    warm = np.sort(count[count > 0])  # (n,)
    before = np.searchsorted(warm, count, side="left")  # (N,)
    middle = (
        before + np.searchsorted(warm, count, side="right")
    ) / 2  # (N,): 0.5 for the first place, n - 0.5 for the last
    return np.where(count > 0, np.floor(middle / max(len(warm), 1) * DECILES).astype(np.int64) + 1, 0)


def write_parts(path: Path, parts: Iterator[pl.DataFrame]) -> Path:
    """Write frames of one form as one parquet file, whole or not at all.

    Raises:
        SETRecError: the disk refuses; nothing is left, and an older file under that name stays.
    """
    try:
        with whole_file(path) as hidden, ExitStack() as stack:
            writer = None
            for part in parts:
                rows = part.to_arrow()
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(hidden, rows.schema, compression="zstd"))
                writer.write_table(rows)
    except OSError as error:
        raise SETRecError(
            f"{path} can't be written ({error.strerror or error}): free some space or choose another folder."
        ) from None
    return path


def beside_results(results: Path) -> tuple[Path, Path]:
    """Where the figures of users and targets lie: results.json -> per_user.parquet, hits.parquet; a prefix is kept."""
    prefix = results.name.removesuffix("results.json")
    return results.with_name(f"{prefix}per_user.parquet"), results.with_name(f"{prefix}hits.parquet")
