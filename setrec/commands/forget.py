"""forget: erase users from prepared data and from the tables of runs."""

from pathlib import Path

from setrec.data.forget import forget_in_data, forget_in_runs, new_ids
from setrec.errors import ConfigError, DataError


def forget(users: list[str], data: list[Path], runs: list[Path] = []) -> int:  # noqa: B006  (never changed)
    """Erase users: their ids and events leave prepared data, and their ids leave the tables of runs. Models are not changed.

    Raw files, and copies of files elsewhere, are not touched: erase the users there too, before data is prepared again.

    Args:
        users: Ids of the users.
        data: Folders of prepared data; all versions of a data set hold its users.
        runs: Folders of runs, searched with all that is below them, for per_user.parquet, hits.parquet and predictions.

    Returns:
        The number of users that were found.

    Raises:
        ConfigError: nothing is given.
        DataError: a folder holds no prepared data, or cannot be written to; or none of the users is there.
    """
    if not users or not (data or runs):
        raise ConfigError("give --users, and the folders of prepared data with --data.")
    for folder in (*data, *runs):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder.")
    ids, found = new_ids(users), 0
    for folder in data:
        count = forget_in_data(folder, ids)
        print(f"{folder}: {count:,} of {len(ids):,} users erased")
        found = max(found, count)
    for folder in (*data, *runs):
        count = forget_in_runs(folder, ids)
        found = max(found, min(count, 1))
        if count:
            print(f"{folder}: {count:,} tables of runs rewritten")
    if not found:
        raise DataError("none of these users was found; ids are those of the raw data.")
    return found
