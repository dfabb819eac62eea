"""The vectors of items that are added to a trained model: given with them, or made by the encoders of the training."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from safetensors.numpy import load_file

from setrec.cf import CFVectors
from setrec.errors import DataError
from setrec.hparams import to_plain
from setrec.inference.new_items import VECTOR, ItemEncoder, check_lengths, ready_vectors, vector_column
from setrec.inference.restore import Trained, instance_of
from setrec.text import TextVectors
from setrec.vectors import ItemVectors

log = logging.getLogger(__name__)


class NewVectors(NamedTuple):
    """The vectors of new items."""

    text: np.ndarray | None  # (items, F) float32; None: the model has no text
    encoder: dict[str, Any] | None  # the encoder that was given for them, in plain types
    more: Mapping[str, tuple[np.ndarray, np.ndarray]]  # of further sources: (items, W) float32, (items,) bool


class ItemEncoders:
    """The encoders of a trained model, loaded when first needed and kept.

    Args:
        trained: the model.
    """

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        self._text: ItemEncoder | None = None
        self._sources: dict[str, ItemEncoder] = {}

    def sources_of_new_items(self, chosen: Mapping[str, Any]) -> list[str]:
        """Those of the further sources `chosen` that can know an item that nobody has bought."""
        makers = self._trained.vectors
        return [name for name in chosen if not isinstance(instance_of(makers[name], ItemVectors), CFVectors)]

    def __call__(self, table: pl.DataFrame, given: TextVectors | None, settings: dict[str, Any] | None) -> NewVectors:
        """The vectors of new items.

        Args:
            table: the items, see `check_items`.
            given: the text encoder to use.
            settings: in place of that, the one that was given for this version of the catalogue; None: that of the training.

        Raises:
            DataError: a vector is wrong, an encoder makes others than in training, or there is none.
            ConfigError: an encoder cannot be loaded.
        """
        text, ids = self._trained.catalogue.text, table["id"].to_list()
        vectors, named = None, None
        if text is not None and VECTOR in table.columns:
            vectors = ready_vectors(table, text.shape[1])  # (items, F)
        elif text is not None:
            encoder = self._text_encoder(given, settings)
            vectors = encoder(table)  # (items, F)
            self._text = encoder  # it works: kept for the next items
            named = to_plain(given) if given is not None else None
        if text is not None and vectors is not None:
            check_lengths(ids, vectors, text)
        sources = self._trained.catalogue.vectors
        unread = {c for c, dtype in table.schema.items() if c.startswith(vector_column("")) and dtype.is_nested()}
        for column in sorted(unread - {vector_column(name) for name in sources}):
            log.warning("%d new items bring %s, which this model has no source for: it is not read.", len(ids), column)
        return NewVectors(vectors, named, {name: self._source(name, table) for name in sources})

    def _text_encoder(self, given: TextVectors | None, settings: dict[str, Any] | None) -> ItemEncoder:
        trained = self._trained
        if self._text is not None and (given is None or to_plain(given) == to_plain(self._text.text)):
            return self._text
        settings = settings or trained.text
        assert trained.catalogue.text is not None
        text = given if given is not None else instance_of(settings, TextVectors) if settings is not None else None
        if text is None:
            raise DataError("the data names no text encoder: give each item's vector in a column `vector`.")
        learned = load_file(trained.encoder) if trained.encoder is not None else {}
        return ItemEncoder(text, learned, trained.catalogue.text, trained.items)

    def _source(self, name: str, table: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of new items in a further source, (items, W) float32, and which have one, (items,) bool."""
        trained, known, column = self._trained, self._trained.catalogue.vectors[name], vector_column(name)
        if name not in self._sources:
            made_by = instance_of(trained.vectors[name], ItemVectors)
            self._sources[name] = ItemEncoder(made_by, trained.learned_of(name), known.table, trained.items)
        encoder = self._sources[name]
        vectors = np.zeros((len(table), known.table.shape[1]), np.float32)  # (items, W)
        given = np.zeros(len(table), bool)  # (items,)
        if column in table.columns:
            given = table[column].is_not_null().to_numpy()  # (items,)
            vectors = ready_vectors(table, vectors.shape[1], column, needed=False)  # (items, W)
            vectors = encoder.text.scaled(vectors, encoder.learned)
        if encoder.text.encodes_more and not given.all():
            vectors[~given] = encoder(table.filter(~given))
        check_lengths(table["id"].to_list(), vectors, known.table)
        return vectors, (vectors != 0).any(axis=1)
