"""The texts of items, made by a template, and their encoding in blocks that survive a kill."""

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


def encode_blocks(texts: Sequence[str], encode: Encode, size: int, folder: Path | None) -> np.ndarray:
    """Encode texts in blocks: each distinct text once, the longest first. Finished blocks are files in `folder`.

    Args:
        texts: n texts. "" is not encoded and gets zeros. At least one is not empty.
        encode: turns a block of texts into (block, F) float32.
        size: texts in a block.
        folder: folder of the finished blocks. Those that are there are not encoded again. None: blocks are not kept.

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
