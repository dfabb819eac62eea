"""How a data set is prepared: the reader, the makers of vectors, the cleaning and the split."""

import json
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Any, Literal, NamedTuple

from setrec.cf import CFVectors, CooccurrenceSVD, Counter
from setrec.data.clean import Cleaning
from setrec.data.engines import Engine, PolarsEngine
from setrec.data.readers.base import Reader
from setrec.data.split import Split
from setrec.files.text_blocks import Share
from setrec.hparams import to_plain
from setrec.text import TextVectors
from setrec.vectors import ItemVectors

VectorType = Literal["float32", "float16"]


class Preparation(NamedTuple):
    """Everything that decides what the prepared data looks like, except the raw files."""

    reader: Reader
    text: TextVectors | None
    cf: list[CFVectors]
    cleaning: Cleaning
    split: Split
    paper_ids: bool
    vector_dtype: VectorType = "float32"
    vectors: Mapping[str, ItemVectors] = {}  # further sources, by name
    engine: Engine = PolarsEngine()  # changes nothing about the data

    def counting(self, count: Counter) -> "Preparation":
        """The same, with another way to count co-occurrence."""
        makers = [copy(maker) for maker in self.cf]
        for maker in makers:
            if isinstance(maker, CooccurrenceSVD):
                maker.count = count
        return self._replace(cf=makers)

    def options(self) -> dict[str, Any]:
        """Return the preparation in plain types, without the options that this reader does not use and its downloads."""
        used: dict[str, object] = {"reader": self.reader, "text": self.text, "cf": self.cf}
        if not self.reader.gives_splits:
            used |= {"cleaning": self.cleaning, "split": self.split, "paper_ids": self.paper_ids}
        options: dict[str, Any] = json.loads(json.dumps(to_plain(used)))  # as it comes back from the manifest
        options["reader"]["init_args"].pop("download", None)
        if self.vector_dtype != "float32":  # as version 0.2.0, which had no other, wrote it
            options["vector_dtype"] = self.vector_dtype
        if self.vectors:
            options["vectors"] = json.loads(json.dumps(to_plain(self.vectors)))
        return options

    def helper(self, scratch: Path) -> Callable[[], None] | None:
        """What one of several processes does while another prepares: encode its share of the texts; None: it is alone."""
        share, text = Share.of_environment(), self.text
        return None if text is None or share.world == 1 else lambda: text.help(scratch, share)

    def sources(self, raw: Path | None) -> dict[str, Path]:
        """Return every file that would be read, under its name in the manifest."""
        makers: list[Reader | ItemVectors] = [
            self.reader,
            *self.cf,
            *([self.text] if self.text is not None else []),
            *self.vectors.values(),
        ]
        files = {path for maker in makers for path in maker.sources(raw)}
        inside = {path for path in files if raw is not None and path.is_relative_to(raw)}
        named = {str(path.relative_to(raw)) if path in inside and raw else str(path.resolve()): path for path in files}
        return dict(sorted(named.items()))
