"""From item texts to text vectors (N, F), which the semantic tokens are made from. Language models are in encoders.py."""

import sys
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from setrec.errors import ConfigError, DataError
from setrec.files.mapped import blocks, new_table, not_zero, row_hashes
from setrec.files.ragged import Ragged
from setrec.files.raw import raw_file, raw_sources
from setrec.files.text_blocks import Share
from setrec.files.vectorfile import read_vectors
from setrec.vectors import ItemVectors, Made
from setrec.words import without_labels, words_of

_LABELS = "labels"  # the names of fields, in what TfidfSVD learned


class TextVectors(ItemVectors):
    """A way to get a vector for every item's text. A subclass keeps its arguments in attributes of the same names."""

    @abstractmethod
    def encode(
        self,
        ids: list[str],
        texts: list[str],
        raw: Path | None,
        items: pl.DataFrame | None = None,
        scratch: Path | None = None,
    ) -> np.ndarray:
        """Make the vectors of all items.

        Args:
            ids: the items' own ids, N of them.
            texts: their texts in the same order; "" where there is none.
            raw: the folder of raw files; None: there is none.
            items: the table of items in the same order, for an encoder that reads other columns than `text`.
            scratch: see `ItemVectors.make`.

        Returns:
            (N, F) float32, or float16 from a file; every number finite.

        Raises:
            DataError: there is no usable text, or a file does not fit the items.
        """

    def make(self, items: pl.DataFrame, train: Ragged, raw: Path | None, scratch: Path | None = None) -> Made:
        """See `ItemVectors.make`. A zero row counts as missing."""
        vectors = self.encode(items["id"].to_list(), items["text"].to_list(), raw, items, scratch)  # (N, F)
        return Made(vectors, not_zero(vectors), self.learned())

    def learned(self) -> dict[str, np.ndarray]:
        """Return what the last `encode` learned from the texts and `encode_more` needs. It is stored with the vectors."""
        return {}

    @property
    def encodes_more(self) -> bool:
        """See `ItemVectors.encodes_more`."""
        return True

    def help(self, scratch: Path, share: Share) -> None:
        """Do a part of the encoding that another process is at. A quick encoder needs no help.

        Args:
            scratch: the folder that the other process gave to `encode`.
            share: this process's part.
        """
        return None

    def encode_more(self, items: pl.DataFrame, learned: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `ItemVectors.encode_more`."""
        return self.encode(items["id"].to_list(), items["text"].to_list(), None, items)  # (items, F)


class FieldText(TextVectors):
    """Any text encoder, restricted to one column of the items, such as the title, the brand or the category.

    Args:
        field: the column, which takes the place of the column `text`.
        encoder: what makes its vectors.
    """

    def __init__(self, field: str, encoder: TextVectors) -> None:
        self.field, self.encoder = field, encoder

    def encode(
        self,
        ids: list[str],
        texts: list[str],
        raw: Path | None,
        items: pl.DataFrame | None = None,
        scratch: Path | None = None,
    ) -> np.ndarray:
        """See `TextVectors.encode`."""
        table = self._table(pl.DataFrame({"id": ids, "text": texts}) if items is None else items)
        return self.encoder.encode(ids, table["text"].to_list(), raw, table, scratch)  # (N, F)

    def learned(self) -> dict[str, np.ndarray]:
        """See `TextVectors.learned`."""
        return self.encoder.learned()

    def preload(self) -> None:
        """See `ItemVectors.preload`."""
        self.encoder.preload()

    @property
    def encodes_more(self) -> bool:
        """See `ItemVectors.encodes_more`."""
        return self.encoder.encodes_more

    def encode_more(self, items: pl.DataFrame, learned: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `ItemVectors.encode_more`."""
        return self.encoder.encode_more(self._table(items), learned)  # (items, F)

    def describe(self) -> dict[str, str | int | float]:
        """See `ItemVectors.describe`."""
        return self.encoder.describe() | {"field": self.field}

    def sources(self, raw: Path | None) -> list[Path]:
        """See `ItemVectors.sources`."""
        return self.encoder.sources(raw)

    def _table(self, items: pl.DataFrame) -> pl.DataFrame:
        """The table of items with the column in the place of `text`.

        Raises:
            DataError: there is no such column.
        """
        if self.field not in items.columns:
            raise DataError(f"the items have no column {self.field!r} to encode; they have {', '.join(items.columns)}.")
        return items.with_columns(text=pl.col(self.field).cast(pl.String).fill_null(""))


class TextFile(TextVectors):
    """Reads vectors from a file, such as the release's toys.emb-t5-tdcb.npy.

    Args:
        file: name inside the raw folder, or a path: .npy, .safetensors or .pkl with one row per item in id order. If a
            .safetensors file has the metadata entry ids_sha256, the hash of the ids it was made for, it is checked.
    """

    def __init__(self, file: str) -> None:
        self.file = file

    def encode(
        self,
        ids: list[str],
        texts: list[str],
        raw: Path | None,
        items: pl.DataFrame | None = None,
        scratch: Path | None = None,
    ) -> np.ndarray:
        """See `TextVectors.encode`. Says how many rows are equal: the rows of a damaged file often are."""
        vectors = read_vectors(raw_file(self.file, raw), ids, scratch)  # (N, F)
        _, first, which, count = np.unique(
            row_hashes(vectors), return_index=True, return_inverse=True, return_counts=True
        )
        if len(first) < len(ids):
            row = int((count[which] > 1).argmax())
            twin = int(np.flatnonzero(which == which[row])[1])
            print(
                f"{Path(self.file).name}: {len(ids) - len(first):,} of {len(ids):,} rows equal an earlier row, e.g. item "
                f"{ids[twin]} has the vector of item {ids[row]}",
                file=sys.stderr,
            )
        return vectors

    def describe(self) -> dict[str, str | int | float]:
        """See `ItemVectors.describe`."""
        return {"source": "TextFile", "file": Path(self.file).name}

    @property
    def encodes_more(self) -> bool:
        """See `ItemVectors.encodes_more`."""
        return False

    def encode_more(self, items: pl.DataFrame, learned: Mapping[str, np.ndarray]) -> np.ndarray:
        """A file has no vectors for new items.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"the text vectors of this data come from the file {Path(self.file).name}, which has none for new items: give "
            "each item's vector in a column `vector`, or name the encoder that made the file with --encoder."
        )

    def sources(self, raw: Path | None) -> list[Path]:
        """See `ItemVectors.sources`."""
        return raw_sources(self.file, raw)


class TfidfSVD(TextVectors):
    """TF-IDF of the words, reduced by a truncated SVD. It needs no download and no GPU. Vectors have unit length.

    In scripts without blanks between words (Chinese, Japanese, Thai, ...) letters and pairs of letters take the place of words. The
    names of the fields in "title: ...; brand: ..." are no words.

    Not in the paper, which uses a language model's hidden states. An item without text (or with only rare words) gets the zero
    vector.

    Args:
        width: F, numbers per vector; fewer if there are fewer items or words.
        min_df: only words that occur in at least this many items count; 1: all words.
        seed: of the randomised SVD, and of the choice of items.
        sample: items that the words and the SVD are learned from, chosen at random where there are more. The others are projected.
    """

    def __init__(self, width: int = 128, min_df: int = 2, seed: int = 2023, sample: int = 1_000_000) -> None:
        if sample < 2:
            raise ConfigError(f"TfidfSVD.sample must be 2 or more, got {sample}")
        self.width, self.min_df, self.seed, self.sample = width, min_df, seed, sample
        self._learned: dict[str, np.ndarray] = {}
        self._sampled: dict[str, int] = {}  # of the last `encode`: what decided its vectors beside the items

    def encode(
        self,
        ids: list[str],
        texts: list[str],
        raw: Path | None,
        items: pl.DataFrame | None = None,
        scratch: Path | None = None,
    ) -> np.ndarray:
        """See `TextVectors.encode`."""
        from sklearn.decomposition import TruncatedSVD  # here: scikit-learn takes a second to import
        from sklearn.feature_extraction.text import TfidfVectorizer

        labels, all_texts = _labels(items), texts
        self._sampled = {"sample": self.sample} if len(texts) > self.sample else {}
        if self._sampled:
            some = np.random.default_rng(self.seed).choice(len(texts), self.sample, replace=False)  # (n,)
            texts = [texts[i] for i in np.sort(some).tolist()]
        words = TfidfVectorizer(analyzer=words_of, min_df=self.min_df, sublinear_tf=True, dtype=np.float32)
        try:
            counts = words.fit_transform(without_labels(texts, labels))  # (n, words)
            if counts.shape[1] < 2:
                raise ValueError("one word is not enough")
        except ValueError as error:  # what scikit-learn raises for an empty vocabulary
            raise DataError(
                f"no words to make text vectors from in {len(texts)} items ({error}): {sum(map(bool, texts))} have a text, and a "
                f"word counts if {self.min_df} items have it (--data.text.min_df); use --data.text null with --model.n_sem 0, or "
                "a file of vectors with --data.text TextFile."
            ) from None
        width = min(self.width, min(counts.shape))
        svd = TruncatedSVD(width, n_iter=7, random_state=self.seed)
        vectors = svd.fit_transform(counts)  # (n, F)
        self._learned = {
            "words": np.frombuffer(
                "\n".join(words.get_feature_names_out()).encode(), np.uint8
            ),  # no word has a line break
            "idf": np.ascontiguousarray(words.idf_, np.float32),  # (words,)
            "components": np.ascontiguousarray(svd.components_, np.float32),  # (F, words)
            _LABELS: np.frombuffer("\n".join(labels).encode(), np.uint8),
        }
        if not self._sampled:
            return _unit(vectors)  # (N, F)
        table = new_table((len(all_texts), width), "float32", scratch)  # (N, F)
        for rows in blocks(*table.shape):
            table[rows] = self.encode_more(pl.DataFrame({"text": all_texts[rows]}), self._learned)  # (block, F)
        return table

    def learned(self) -> dict[str, np.ndarray]:
        """Return the words, the idf of each, and the projection."""
        return self._learned

    def encode_more(self, items: pl.DataFrame, learned: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `ItemVectors.encode_more`."""
        if not learned:
            raise DataError(
                "the data was prepared before the words of TfidfSVD were kept with it: prepare it again (delete its folder; "
                "checkpoints stay valid), or give each item's vector in a column `vector`."
            )
        from sklearn.feature_extraction.text import TfidfVectorizer  # here: see `encode`

        texts = items["text"].to_list()
        vocabulary = learned["words"].tobytes().decode().split("\n")
        options = {}  # version 0.2.0 took labels for words, and had only words with blanks between
        if _LABELS in learned:
            texts = without_labels(texts, learned[_LABELS].tobytes().decode().split("\n"))
            options["analyzer"] = words_of
        words = TfidfVectorizer(vocabulary=vocabulary, sublinear_tf=True, dtype=np.float32, **options)
        words.idf_ = learned["idf"]
        counts = words.transform(texts)  # (items, words)
        return _unit(counts @ learned["components"].T)  # (items, F)

    def describe(self) -> dict[str, str | int | float]:
        """See `ItemVectors.describe`."""
        return {"source": "TfidfSVD", "min_df": self.min_df, "seed": self.seed, **self._sampled}


def _labels(items: pl.DataFrame | None) -> list[str]:
    """The names that fields may have in a text: those of the table's columns."""
    return sorted({"title", "text", *(items.columns if items is not None else [])} - {"id"})


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to unit length, float32. Zero rows stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)  # (N, 1)
    scaled: np.ndarray = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-6)  # (N, F)
    return scaled.astype(np.float32)
