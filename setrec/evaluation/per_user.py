"""Two files beside results.json: the metrics of every user, and which targets were found.

    per_user.parquet   one row for each user, method, filter and group in which the user has a target
    hits.parquet       one row for each target, method and filter: whether it is among the first 5, 10, 20 of all items

`report` computes confidence intervals, paired tests and breakdowns from them. Both are written part by part, so that memory
holds one method at a time.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from setrec.data.catalogue import Catalogue, Histories
from setrec.errors import SETRecError
from setrec.evaluation.comparison import MethodFigures
from setrec.files.whole import whole_file
from setrec.schemas import GROUPS

DECILES = 10  # groups of warm items by popularity


def write_per_user(path: Path, figures: dict[bool, dict[str, MethodFigures]], histories: Histories, split: str) -> Path:
    """Write the metrics of every user, with the users' own ids.

    Columns: user_id, method ("model" or a baseline), filter_seen, group (all, warm, cold), history (all items the user had),
    targets (distinct ones in the group), then one column a metric: recall@5 ... mrr@20, float64. The mean of a metric over the
    rows of a method, filter and group is the figure in results.json.

    Args:
        path: The file to write.
        figures: filter_seen -> method -> figures, see `Comparison.compute`.
        histories: The users.
        split: The split that was evaluated.

    Raises:
        SETRecError: the file can't be written.
    """
    length = histories.train.lengths  # (users,)
    if split == "test":
        length = length + histories.validation.lengths  # (users,)
    ids = pl.Series(histories.ids, dtype=pl.String)

    def parts() -> Iterator[pl.DataFrame]:
        for filtered, methods in figures.items():
            for name, (table, _, _) in methods.items():
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


def write_hits(
    path: Path, figures: dict[bool, dict[str, MethodFigures]], histories: Histories, catalogue: Catalogue
) -> Path:
    """Write which targets were found in the ranking of all items, with the users' and items' own ids.

    Columns: user_id, item_id, count (of the item in training), decile (see `deciles`), method, filter_seen, then hit@5 ...,
    float32: 1 where the list of that length holds the target; for popularity, which ties many items, the probability.

    Args:
        path: The file to write.
        figures: See `write_per_user`.
        histories: The users.
        catalogue: The items.

    Raises:
        SETRecError: the file can't be written.
    """
    users, items = pl.Series(histories.ids, dtype=pl.String), pl.Series(catalogue.ids, dtype=pl.String)
    count = catalogue.count.numpy()  # (N,)
    decile = deciles(count)  # (N,)

    def parts() -> Iterator[pl.DataFrame]:
        for filtered, methods in figures.items():
            for name, (_, table, _) in methods.items():
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
    """Popularity decile of every item: from 1, the tenth of the warm items that occur least, to 10; 0 for a cold item.

    Items with the same count have the same decile, that of their middle place; so a decile may be empty.

    Args:
        count: (N,) occurrences in training.

    Returns:
        (N,) int64.
    """
    warm = np.sort(count[count > 0])  # (n,)
    before = np.searchsorted(warm, count, side="left")  # (N,)
    after = np.searchsorted(warm, count, side="right")  # (N,)
    middle = (before + after) / 2  # (N,): 0.5 for the first place, n - 0.5 for the last
    return np.where(count > 0, np.floor(middle / max(len(warm), 1) * DECILES).astype(np.int64) + 1, 0)


def write_parts(path: Path, parts: Iterator[pl.DataFrame]) -> Path:
    """Write frames with the same columns as one parquet file: to a temporary file, then renamed.

    Raises:
        SETRecError: the file can't be written; an older file with that name is kept.
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


def per_user_paths(results: Path) -> tuple[Path, Path]:
    """The files beside a results file: results.json -> per_user.parquet, hits.parquet; a prefix of the name is kept."""
    prefix = results.name.removesuffix("results.json")
    return results.with_name(f"{prefix}per_user.parquet"), results.with_name(f"{prefix}hits.parquet")
