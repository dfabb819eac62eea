"""The texts of items, made by a template, and their encoding in blocks that survive a kill."""

import os
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from tqdm import tqdm

from setrec.errors import ConfigError
from setrec.files.mapped import new_table
from setrec.files.whole import whole_file

_ORDER = "texts.parquet"  # beside the blocks: what is to be encoded, for processes that help
Encode = Callable[[list[str]], np.ndarray]  # n texts -> (n, F) float32


def render(template: str, items: pl.DataFrame) -> list[str]:
    """Fill a template such as "{title}. {keywords}" for every item. "" where all its columns are empty.

    Args:
        template: text with the names of columns in braces.
        items: the table of items, N rows.

    Returns:
        N texts.

    Raises:
        ConfigError: the template names no column, or one that the table doesn't have.
    """
    try:
        parts = [(text, name) for text, name, _, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise ConfigError(f"text template {template!r}: {error}; write it as in '{{title}}. {{keywords}}'.") from None
    names = [name for _, name in parts if name is not None]
    unknown = [name for name in names if name not in items.columns]
    if unknown or not names:
        what = f"no column {unknown[0]!r}" if unknown else "no column named in it"
        raise ConfigError(f"text template {template!r}: {what}; the items have {', '.join(items.columns)}.")
    columns = {name: [_field_text(value) for value in items[name].to_list()] for name in names}
    rendered = []
    for row in range(len(items)):
        if any(columns[name][row] for name in names):
            rendered.append("".join(text + (columns[name][row] if name is not None else "") for text, name in parts))
        else:
            rendered.append("")
    return rendered


def _field_text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(filter(None, map(_field_text, value)))
    return "" if value is None else str(value).strip()


class Share(NamedTuple):
    """Which of the processes that encode together this one is, and how many there are."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls) -> "Share":
        """As torchrun or SLURM (srun) started this process; otherwise it is alone."""
        for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
            if rank in os.environ and world in os.environ:
                return cls(int(os.environ[rank]), int(os.environ[world]))
        return cls()


ALONE = Share()


def encode_blocks(
    texts: Sequence[str], encode: Encode, size: int, folder: Path | None, share: Share = ALONE
) -> np.ndarray:
    """Encode texts in blocks: each distinct text once, the longest first. Finished blocks are files in `folder`.

    Args:
        texts: n texts. "" is not encoded and gets zeros. At least one is not empty.
        encode: turns a block of texts into (block, F) float32.
        size: texts in a block.
        folder: folder of the finished blocks. Those that are there are not encoded again. None: blocks are not kept, and the
            result is in memory, not in a file there.
        share: this process's part of the blocks, if others call `help_encoding` with the same folder. It takes what they have not
            made when its own are done, the last blocks first, so it waits for nobody.

    Returns:
        (n, F) float32.
    """
    distinct = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
    starts = list(range(0, len(distinct), size))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if share.world > 1:
            with whole_file(folder / _ORDER) as hidden:
                pl.DataFrame({"text": distinct}).with_columns(size=pl.lit(size)).write_parquet(hidden)
    place = {text: row for row, text in enumerate(distinct)}
    places = np.array([place.get(text, -1) for text in texts])  # (n,) of each text in `distinct`
    by_place = np.argsort(places, kind="stable")  # (n,)
    found: np.ndarray | None = None
    own = starts[share.rank :: share.world]
    others = sorted(set(starts) - set(own), reverse=True)
    with tqdm(total=len(distinct), desc="item texts", unit="text", delay=2) as bar:
        for start in (*own, *others):
            part = distinct[start : start + size]
            file = folder / f"{start:09d}.npy" if folder is not None else None
            if file is not None and file.is_file():
                block = np.load(file, allow_pickle=False)  # (block, F)
                bar.initial += len(part)  # not counted in the rate
            else:
                block = _encoded(part, encode, file)
            if found is None:
                found = new_table((len(texts), block.shape[1]), "float32", folder)  # (n, F)
            first, end = np.searchsorted(places, [start, start + len(part)], sorter=by_place)
            rows = by_place[first:end]  # of the texts that are in this block
            found[rows] = block[places[rows] - start]
            bar.update(len(part))
    assert found is not None, "a text is not empty"
    return found  # (n, F)


def help_encoding(load: Callable[[], Encode], scratch: Path, share: Share) -> int:
    """Encode this process's share of what another one is encoding in a folder inside `scratch`. Returns how many blocks.

    Args:
        load: loads the encoder, once there is something to do.
        scratch: see `TextVectors.encode`. It may vanish at any moment, when everything is done.
        share: this process's part.
    """
    made = 0
    for order in sorted(scratch.glob(f"*/{_ORDER}")):
        try:
            table = pl.read_parquet(order)
            texts, size = table["text"].to_list(), int(table["size"][0])
            missing = [
                start
                for start in range(0, len(texts), size)[share.rank :: share.world]
                if not (order.parent / f"{start:09d}.npy").is_file()
            ]
            encode = load() if missing else None
            for start in missing:
                file = order.parent / f"{start:09d}.npy"
                if encode is not None and order.is_file() and not file.is_file():
                    _encoded(texts[start : start + size], encode, file)
                    made += 1
        except OSError:
            if order.is_file():
                raise
    return made


def _encoded(texts: list[str], encode: Encode, file: Path | None) -> np.ndarray:
    """Encode a block, (block, F) float32, and keep it."""
    block = np.asarray(encode(texts), np.float32)  # (block, F)
    if file is not None:
        with whole_file(file) as hidden, hidden.open("wb") as out:  # a path would get a second .npy
            np.save(out, block)
    return block
