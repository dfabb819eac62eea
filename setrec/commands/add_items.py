"""add-items: a new version of a trained model's catalogue, from the command line."""

from collections.abc import Sequence
from pathlib import Path

from setrec.commands.words import call
from setrec.errors import ConfigError
from setrec.files.tables import read_table
from setrec.inference.versions import VERSION, newest
from setrec.recommend import Recommender
from setrec.text import TextVectors


def add_items(
    ckpt_path: str,
    items: str | None = None,
    remove: list[str] | None = None,
    output: str | None = None,
    encoder: TextVectors | None = None,
    device: str = "cpu",
    data: str | None = None,
) -> Path:
    """Write a new version of a model's catalogue, with more or fewer items; nothing is trained.

    Args:
        ckpt_path: A checkpoint of fit, or a published folder: goes on from the newest version beside it; or a version.
        items: Table of new items: .parquet, JSON lines, or CSV with a header. Columns id, title, text (default: the title),
            what the encoder's template names, or the ready text vector in `vector`.
        remove: Ids of items to take out.
        output: Folder to make; null: beside the checkpoint, with the next number.
        encoder: What made the text vectors of the training, where the data has them from a file.
        device: Where the model computes.
        data: Folder of the prepared data, where it is not where the checkpoint says.

    Raises:
        DataError: an item is wrong; the message says which. Nothing is written.
        ConfigError: there is nothing to do, or the checkpoint is wrong.
    """
    if items is None and not remove:
        raise ConfigError("give --items FILE, or --remove with a list of ids, or both.")
    path = Path(ckpt_path)
    start = path if (path / VERSION).is_file() or not path.exists() else newest(path)
    recommender = Recommender.load(start, device, data)
    if remove:
        recommender.remove_items(remove)
    added = recommender.add_items(read_table(items), encoder) if items is not None else []
    folder = recommender.save(output)
    info = recommender.info()
    print(f"{len(added):,} items added, {len(remove or []):,} removed; the catalogue has {info['n_items']:,} items now")
    print(f"version: {folder}")
    print(f"next: setrec predict --ckpt_path {folder} --histories FILE")
    return folder


def from_words(words: Sequence[str]) -> None:
    """Run `add-items`."""
    call(add_items, "add-items", words)
