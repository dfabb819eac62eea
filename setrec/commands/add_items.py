"""add-items: write a new version of a trained model's catalogue."""

from pathlib import Path

import setrec.encoders  # noqa: F401  # so that --encoder takes their names without a module
from setrec.commands.words import command_of
from setrec.errors import ConfigError
from setrec.files.tables import read_table
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
    """Add items to a model's catalogue, or remove items, for every command and running server. Nothing is trained.

    Args:
        ckpt_path: A checkpoint that fit wrote or a published folder, with all changes so far; or a version, to which output is
            needed unless it is the current one.
        items: File of new items: .parquet, JSON lines, or CSV with a header. Columns id, title, text (default: the title), and what
            the encoder's template names; or the text vector itself in `vector`.
        remove: Ids of items to remove.
        output: Folder of its own to write; null: beside the checkpoint, with the next number, and into the journal of the
            checkpoint, from which running servers read it.
        encoder: Text encoder that made the vectors of the training, if the data got them from a file.
        device: Where the model computes: cpu, cuda.
        data: Folder of the prepared data, if it is not where the checkpoint says.

    Returns:
        The folder of the new version.

    Raises:
        DataError: an item is wrong; the message says which. Nothing is written.
        ConfigError: neither items nor remove is given, or the checkpoint is wrong.
    """
    if items is None and not remove:
        raise ConfigError("give --items FILE, or --remove with a list of ids, or both.")
    recommender = Recommender.load(ckpt_path, device, data, encoder=encoder)
    if remove:
        recommender.remove_items(remove)
    added = recommender.add_items(read_table(items), encoder) if items is not None else []
    folder = recommender.save(output)
    info = recommender.info()
    print(f"{len(added):,} items added, {len(remove or []):,} removed; the catalogue has {info['n_items']:,} items now")
    print(f"version: {folder}")
    print(f"next: {command_of(['predict', '--ckpt_path', str(folder), '--histories', 'FILE'])}")
    return folder
