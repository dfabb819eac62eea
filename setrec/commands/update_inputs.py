"""What an update takes in: new events, of a file or of the server's database, and new items."""

import copy
import tempfile
from pathlib import Path

import polars as pl

from setrec.cf import CFVectors
from setrec.commands.update_options import UpdateOptions
from setrec.data.catalogue import Catalogue
from setrec.data.grow import NewItems
from setrec.data.preparation import Preparation
from setrec.data.readers.base import EventLog, Reader
from setrec.data.readers.table import TableFiles
from setrec.errors import ConfigError, DataError
from setrec.files.tables import read_table
from setrec.files.times import TICKS
from setrec.inference.versions import NO_CHANGES, Changes, read_version, source_vectors_of, vectors_of, without_vectors
from setrec.recommend import Recommender


def read_events(options: UpdateOptions, own: Reader) -> EventLog:
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


def reader_of(options: UpdateOptions, own: Reader) -> TableFiles:
    """What knows the columns of the files. own: the reader of the data."""
    return options.reader or (own if isinstance(own, TableFiles) else TableFiles(user="user", item="item"))


def new_items(options: UpdateOptions, base: Path, log: EventLog, made: Preparation) -> tuple[Changes, NewItems]:
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
