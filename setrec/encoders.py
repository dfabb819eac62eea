"""Language models as text encoders: item texts -> vectors (N, F), from any folder or any name on the Hugging Face hub.

Texts are encoded once each, the longest first (so that what doesn't fit in memory fails at once), in blocks that
survive a kill: every finished block is a file in the scratch folder, and the next run goes on behind it.
"""

import hashlib
import json
import shutil
from abc import abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from setrec.errors import ConfigError, DataError
from setrec.files.text_blocks import Encode, encode_blocks, render
from setrec.text import TextVectors

BLOCK = 8  # batches in a block: what a kill can cost


class LanguageModelText(TextVectors):
    """What both encoders share: which texts an item has, and the way through them. Arguments: see the subclasses."""

    shows_progress: ClassVar[bool] = True

    model: str
    revision: str | None
    max_tokens: int | None
    normalize: bool
    batch_size: int
    device: str
    dtype: Literal["auto", "float32", "bfloat16"]
    commit: str | None = None  # the hub's name of the version that was loaded
    kept: Encode | None = None  # see `keep`

    @property
    @abstractmethod
    def templates(self) -> list[str]:
        """The texts of an item as templates over its columns; each is encoded on its own."""

    @abstractmethod
    def load(self) -> Encode:
        """Load the model.

        Raises:
            ConfigError: a package, the folder or the hub is not there.
        """

    def keep(self) -> None:
        """Load the model now and keep it, for who encodes a few texts again and again."""
        self.kept = self.kept or self.load()

    def combine_fields(self, vectors: np.ndarray, filled: np.ndarray) -> np.ndarray:
        """Vectors of an item's texts, (N, fields, F), zero where not `filled` (N, fields), as one vector per item."""
        return vectors[:, 0]  # (N, F)

    def encode(
        self,
        ids: list[str],
        texts: list[str],
        raw: Path | None,
        items: pl.DataFrame | None = None,
        scratch: Path | None = None,
    ) -> np.ndarray:
        """See `TextVectors.encode`. An item without text gets the zero vector, as from TfidfSVD."""
        table = pl.DataFrame({"id": ids, "text": texts}) if items is None else items
        fields = [render(template, table) for template in self.templates]  # one list of N texts per field
        flat = [text for row in zip(*fields, strict=True) for text in row]  # N * fields
        if not any(flat):
            raise DataError(
                f"none of the {len(ids)} items has a text in {', '.join(self.templates)}; use --data.text null with "
                "--model.n_sem 0, or name other columns."
            )
        encode = self.kept or self.load()
        found = encode_blocks(flat, encode, self.batch_size * BLOCK, self._folder(scratch, flat))  # (N * fields, F)
        filled = np.array([bool(text) for text in flat]).reshape(len(ids), -1)  # (N, fields)
        vectors = self.combine_fields(found.reshape(*filled.shape, -1), filled)  # (N, F)
        if self.normalize:
            length = np.linalg.norm(vectors, axis=1, keepdims=True)  # (N, 1)
            vectors = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)  # (N, F)
        if not np.isfinite(vectors).all():
            row = int(np.isfinite(vectors).all(1).argmin())
            raise DataError(
                f"{self.model} gives NaN or infinity for item {ids[row]}; try --data.text.dtype float32, or another model."
            )
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        return vectors

    def describe(self) -> dict[str, str | int | float]:
        """The model, its version and what it read. A folder's version is the hashes of its files, beside this."""
        local = Path(self.model).is_dir()
        return {
            "source": type(self).__name__,
            "model": Path(self.model).resolve().name if local else self.model,
            "revision": self.commit or self.revision or ("a folder" if local else "unknown"),
            "template": " | ".join(self.templates),
            "max_tokens": self.max_tokens or "the model's own",
            "normalize": self.normalize,
            "dtype": str(self.found_dtype).removeprefix("torch."),
        }

    def sources(self, raw: Path | None) -> list[Path]:
        """The files of a model that is a folder."""
        folder = Path(self.model)
        return sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".bin", ".txt", ".model"))

    @property
    def found_device(self) -> torch.device:
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(automatic if self.device == "auto" else self.device)

    @property
    def found_dtype(self) -> torch.dtype:
        """bf16 on a GPU, else float32, unless said otherwise."""
        if self.dtype == "auto":
            return torch.bfloat16 if self.found_device.type == "cuda" else torch.float32
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    def _folder(self, scratch: Path | None, texts: list[str]) -> Path | None:
        """Where the blocks of exactly this work are kept: a hash of the encoder and the texts."""
        if scratch is None:
            return None
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.sources(None)]
        work = json.dumps([self.describe(), self.batch_size, files, texts])
        return scratch / hashlib.sha256(work.encode("utf8", "surrogatepass")).hexdigest()[:16]

    def _loaded(self, name: str, load: Callable[[bool], torch.nn.Module]) -> torch.nn.Module:
        """load(only_local), with one sentence for whatever keeps it from loading."""
        folder = Path(name).is_dir()
        only_local = folder or not hub_answers()
        try:
            model = load(only_local)
        except Exception as error:  # as many kinds as there are libraries below
            reason = " ".join(str(error).split("\n")[0].split())
            why = f"it cannot be loaded ({reason})" if folder else (
                "it is no folder here, not among the downloaded models, and the Hugging Face hub cannot be reached"
                if only_local
                else f"it is no folder here and the Hugging Face hub does not give it ({reason})"
            )  # fmt: skip
            raise ConfigError(
                f"text encoder {name!r}: {why}; name a folder with --data.text.model DIR, or use --data.text TfidfSVD, "
                "which needs no model."
            ) from error
        config = next((m.config for m in model.modules() if hasattr(m, "config")), None)
        self.commit = getattr(config, "_commit_hash", None)
        return model.eval()


class SentenceTransformerText(LanguageModelText):
    """Sentence vectors of a model from sentence-transformers, such as the paper's sentence-t5-base.

    Needs the extra `text`: pip install 'setrec[text]'.

    Args:
        model: folder or name on the Hugging Face hub (paper: sentence-transformers/sentence-t5-base).
        revision: branch, tag or commit on the hub; null: the newest.
        template: what is encoded, over the item's columns, e.g. "{title}. {keywords}"; null: the column text.
        max_tokens: longer texts are cut there; null: the model's own limit.
        normalize: scale every vector to unit length. (Many models do so by themselves.)
        batch_size: texts encoded together.
        device: auto: the GPU where there is one.
        dtype: auto: bfloat16 on a GPU, else float32.
    """

    def __init__(
        self,
        model: str = "sentence-transformers/sentence-t5-base",
        revision: str | None = None,
        template: str | None = None,
        max_tokens: int | None = None,
        normalize: bool = False,
        batch_size: int = 64,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:
        self.model, self.revision, self.template = model, revision, template
        self.max_tokens, self.normalize = max_tokens, normalize
        self.batch_size, self.device, self.dtype = batch_size, device, dtype

    @property
    def templates(self) -> list[str]:
        return [self.template or "{text}"]

    def load(self) -> Encode:
        if find_spec("sentence_transformers") is None:
            raise ConfigError(
                "SentenceTransformerText needs the package sentence-transformers: run pip install 'setrec[text]', or use "
                "--data.text HiddenStatesText or TfidfSVD, which do without."
            )
        from sentence_transformers import SentenceTransformer

        def make(only_local: bool) -> SentenceTransformer:
            return SentenceTransformer(
                self.model,
                device=str(self.found_device),
                revision=self.revision,
                local_files_only=only_local,
                model_kwargs={"dtype": self.found_dtype},
            )

        model = self._loaded(self.model, make)
        assert isinstance(model, SentenceTransformer)
        if self.max_tokens is not None:
            model.max_seq_length = self.max_tokens

        def encode(texts: list[str]) -> np.ndarray:
            found = model.encode(
                texts, batch_size=self.batch_size, show_progress_bar=False, convert_to_tensor=True
            )  # (n, F)
            return found.float().cpu().numpy()

        return encode


class HiddenStatesText(LanguageModelText):
    """Mean-pooled last hidden states of any language model, field by field: the paper's way for Qwen.

    Every field of an item is a text of its own; its vector is the mean of the hidden states of its tokens. An encoder-
    decoder model (T5) is asked for its encoder's states.

    Args:
        model: folder or name on the Hugging Face hub (paper: Qwen2.5-1.5B).
        revision: branch, tag or commit on the hub; null: the newest.
        fields: columns of the item, or templates such as "{title}. {keywords}", each encoded on its own; null: the
            column text.
        combine: mean: the mean over the fields that the item has; concat: one after the other, zeros for a missing one.
        max_tokens: longer texts are cut there.
        normalize: scale every item's vector to unit length.
        batch_size: texts encoded together.
        device: auto: the GPU where there is one.
        dtype: auto: bfloat16 on a GPU, else float32.
    """

    def __init__(
        self,
        model: str = "Qwen/Qwen2.5-1.5B",
        revision: str | None = None,
        fields: list[str] | None = None,
        combine: Literal["mean", "concat"] = "mean",
        max_tokens: int = 256,
        normalize: bool = False,
        batch_size: int = 32,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:
        self.model, self.revision, self.fields = model, revision, fields
        self.combine: Literal["mean", "concat"] = combine
        self.max_tokens, self.normalize = max_tokens, normalize
        self.batch_size, self.device, self.dtype = batch_size, device, dtype

    @property
    def templates(self) -> list[str]:
        return [field if "{" in field else f"{{{field}}}" for field in self.fields or ["text"]]

    def describe(self) -> dict[str, str | int | float]:
        return super().describe() | {"combine": self.combine}

    def combine_fields(self, vectors: np.ndarray, filled: np.ndarray) -> np.ndarray:
        if self.combine == "concat":
            return vectors.reshape(len(vectors), -1)  # (N, fields * F)
        count = np.maximum(filled.sum(axis=1, keepdims=True), 1).astype(np.float32)  # (N, 1)
        return vectors.sum(axis=1) / count  # (N, F)

    def load(self) -> Encode:
        from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

        tokenizer: PreTrainedTokenizerBase | None = None

        def make(only_local: bool) -> torch.nn.Module:
            nonlocal tokenizer
            tokenizer = AutoTokenizer.from_pretrained(
                self.model, revision=self.revision, local_files_only=only_local, padding_side="right"
            )
            return AutoModel.from_pretrained(
                self.model, revision=self.revision, local_files_only=only_local, dtype=self.found_dtype
            )

        model = self._loaded(self.model, make)
        assert tokenizer is not None
        if tokenizer.pad_token is None:  # never looked at: the mask leaves it out
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        reader = model.get_encoder() if model.config.is_encoder_decoder else model  # type: ignore[operator, union-attr]
        reader = reader.to(self.found_device)

        @torch.inference_mode()
        def encode(texts: list[str]) -> np.ndarray:
            parts: list[Tensor] = []
            for start in range(0, len(texts), self.batch_size):
                batch = tokenizer(
                    texts[start : start + self.batch_size],
                    padding=True,
                    truncation=True,
                    max_length=self.max_tokens,
                    return_tensors="pt",
                ).to(self.found_device)
                states = reader(**batch).last_hidden_state.float()  # (n, T, F)
                real = batch["attention_mask"][..., None].float()  # (n, T, 1)
                parts.append((states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1))  # (n, F)
            return torch.cat(parts).cpu().numpy()  # (n, F)

        return encode


def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached: asked once, briefly, as its library tries for over a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # no name server, no route, a proxy that refuses: all the same here
        return False
    return True
