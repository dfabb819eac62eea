"""Which text an item has, and encoding many texts in blocks that survive a kill."""

import string
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from setrec.errors import ConfigError
from setrec.files.whole import whole_file

Encode = Callable[[list[str]], np.ndarray]  # n texts -> (n, F) float32


def render(template: str, items: pl.DataFrame) -> list[str]:
    """A template such as "{title}. {keywords}" for every item; "" where all its columns are empty.

    Raises:
        ConfigError: it names a column that the table of items doesn't have, or none.
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
    columns = {name: [_plain(value) for value in items[name].to_list()] for name in names}
    rendered = []
    for row in range(len(items)):
        if any(columns[name][row] for name in names):
            rendered.append("".join(text + (columns[name][row] if name is not None else "") for text, name in parts))
        else:
            rendered.append("")
    return rendered


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(filter(None, map(_plain, value)))
    return "" if value is None else str(value).strip()


def encode_blocks(texts: Sequence[str], encode: Encode, size: int, folder: Path | None) -> np.ndarray:
    """Encode texts, each distinct one once, longest first, in blocks that are kept in `folder` until all are done.

    Args:
        texts: n of them; "" is not encoded and gets zeros. At least one is not empty.
        encode: a block of texts -> (block, F).
        size: texts in a block.
        folder: where finished blocks are; those that are there already are not done again. None: nowhere.

    Returns:
        (n, F) float32.
    """
    distinct = sorted({text for text in texts if text}, key=lambda text: (-len(text), text))
    blocks = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(distinct), desc="item texts", unit="text", delay=2) as bar:
        for start in range(0, len(distinct), size):
            part = distinct[start : start + size]
            file = folder / f"{start:09d}.npy" if folder is not None else None
            if file is not None and file.is_file():
                block = np.load(file, allow_pickle=False)  # (block, F)
                bar.initial += len(part)  # not counted in the rate
            else:
                block = np.asarray(encode(part), np.float32)  # (block, F)
                if file is not None:
                    with whole_file(file) as hidden, hidden.open("wb") as out:  # a path would get a second .npy
                        np.save(out, block)
            blocks.append(block)
            bar.update(len(part))
    table = np.concatenate([*blocks, np.zeros((1, blocks[0].shape[1]), np.float32)])  # (distinct + 1, F)
    place = {text: row for row, text in enumerate(distinct)}
    return table[[place.get(text, -1) for text in texts]]  # (n, F)
