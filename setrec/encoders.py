"""Language models as text encoders: from item texts to vectors (N, F), with any model from a folder or the Hugging Face hub.

Each distinct text is encoded once, the longest first, so that a batch that doesn't fit in memory fails at once. The work survives
a kill: every finished block is a file in the scratch folder, and the next run continues after it.
"""

import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from setrec.errors import ConfigError, DataError
from setrec.files.hashes import ids_hash
from setrec.files.mapped import blocks, new_table
from setrec.files.text_blocks import Encode, Share, encode_blocks, help_encoding, render
from setrec.text import TextVectors

BLOCK = 8  # batches in a block: the most work that a kill can cost


class LanguageModelText(TextVectors):
    """What both encoders share: the texts of an item, and the encoding in blocks. Arguments: see the subclasses."""

    shows_progress: ClassVar[bool] = True

    model: str
    revision: str | None
    max_tokens: int | None
    normalize: bool
    batch_size: int
    device: str
    dtype: Literal["auto", "float32", "bfloat16"]
    commit: str | None = None  # the hub's name for the version that was loaded
    preloaded: Encode | None = None  # see `preload`

    @property
    @abstractmethod
    def templates(self) -> list[str]:
        """One template for each text of an item. Each text is encoded on its own."""

    @abstractmethod
    def load(self) -> Encode:
        """Load the model. Returns the function that encodes texts.

        Raises:
            ConfigError: a package or the folder is missing, or the hub cannot be reached.
        """

    def preload(self) -> None:
        """See `TextVectors.preload`."""
        self.preloaded = self.preloaded or self.load()

    def help(self, scratch: Path, share: Share) -> None:
        """See `TextVectors.help`."""

        def load() -> Encode:
            self.preload()
            assert self.preloaded is not None, "it was loaded"
            return self.preloaded

        help_encoding(load, scratch, share)

    def combine_fields(self, vectors: np.ndarray, filled: np.ndarray) -> np.ndarray:
        """Combine the vectors of an item's texts into one vector per item.

        Args:
            vectors: (N, fields, F) float32, 0 where there is no text.
            filled: (N, fields) bool, where there is a text.

        Returns:
            (N, F) float32.
        """
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
        fields = [render(template, table) for template in self.templates]  # for each field, N texts
        flat = [text for row in zip(*fields, strict=True) for text in row]  # N * fields
        if not any(flat):
            raise DataError(
                f"none of the {len(ids)} items has a text in {', '.join(self.templates)}; use --data.text null with "
                "--model.n_sem 0, or name other columns."
            )
        encode = self.preloaded or self.load()
        found = encode_blocks(
            flat, encode, self.batch_size * BLOCK, self._blocks_folder(scratch, flat), Share.of_environment()
        )  # (N * fields, F)
        filled = np.array([bool(text) for text in flat]).reshape(len(ids), -1)  # (N, fields)
        found = found.reshape(*filled.shape, -1)  # (N, fields, F)
        vectors = found[:, 0] if filled.shape[1] == 1 else None  # (N, F): changed in place
        for rows in blocks(len(ids), filled.shape[1] * found.shape[2]):
            some = self.combine_fields(found[rows], filled[rows])  # (block, F)
            if self.normalize:
                length = np.linalg.norm(some, axis=1, keepdims=True)  # (block, 1)
                some = np.divide(some, length, out=np.zeros_like(some), where=length > 0)  # (block, F)
            if not np.isfinite(some).all():
                row = rows.start + int(np.isfinite(some).all(1).argmin())
                raise DataError(
                    f"{self.model} gives NaN or infinity for item {ids[row]}; try --data.text.dtype float32, or another model."
                )
            if vectors is None:
                vectors = new_table((len(ids), some.shape[1]), "float32", scratch)  # (N, F)
            vectors[rows] = some
        assert vectors is not None, "there are items"
        return vectors

    def describe(self) -> dict[str, str | int | float]:
        """Return the model, its version and what it read. For a folder, the manifest also holds the hashes of its files."""
        local = Path(self.model).is_dir()
        return {
            "source": type(self).__name__,
            "model": Path(self.model).resolve().name if local else self.model,
            "revision": self.commit or self.revision or ("a folder" if local else "unknown"),
            "template": " | ".join(self.templates),
            "max_tokens": self.max_tokens or "the model's own",
            "normalize": self.normalize,
            "dtype": str(self.torch_dtype).removeprefix("torch."),
        }

    def sources(self, raw: Path | None) -> list[Path]:
        """List the files of a model that is a folder."""
        folder = Path(self.model)
        return sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".bin", ".txt", ".model"))

    @property
    def torch_device(self) -> torch.device:
        """The device to compute on; auto: a GPU if there is one."""
        if self.device == "auto" and torch.cuda.is_available():  # processes that encode together take one each
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        return torch.device("cpu" if self.device == "auto" else self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of the model's weights; auto: bfloat16 on a GPU, else float32."""
        if self.dtype == "auto":
            return torch.bfloat16 if self.torch_device.type == "cuda" else torch.float32
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    def _blocks_folder(self, scratch: Path | None, texts: list[str]) -> Path | None:
        """The folder of the blocks of exactly this encoder and these texts: its name is their hash."""
        if scratch is None:
            return None
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.sources(None)]
        work = json.dumps([self.describe(), self.batch_size, files])
        return scratch / hashlib.sha256(f"{work}{ids_hash(texts)}".encode()).hexdigest()[:16]

    def _load_model(self, name: str, load: Callable[[bool], torch.nn.Module]) -> torch.nn.Module:
        """Call load(only_local), and turn whatever fails into one sentence."""
        folder = Path(name).is_dir()
        only_local = folder or not hub_is_reachable()
        try:
            model = load(only_local)
        except Exception as error:  # every library raises its own types
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
    """Vectors of a model from sentence-transformers, such as the paper's sentence-t5-base.

    Needs the extra `text`: pip install 'setrec[text]'.

    Args:
        model: folder or name on the Hugging Face hub (paper: sentence-transformers/sentence-t5-base).
        revision: branch, tag or commit on the hub; null: the newest.
        template: the text to encode, with columns of the item in braces, e.g. "{title}. {keywords}"; null: the column text.
        max_tokens: longer texts are cut to this length; null: the model's own limit.
        normalize: scale every vector to unit length. (Many models do that anyway.)
        batch_size: texts encoded together.
        device: auto: a GPU if there is one.
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
        """See `LanguageModelText.templates`."""
        return [self.template or "{text}"]

    def load(self) -> Encode:
        """See `LanguageModelText.load`."""
        if find_spec("sentence_transformers") is None:
            raise ConfigError(
                "SentenceTransformerText needs the package sentence-transformers: run pip install 'setrec[text]', or use "
                "--data.text HiddenStatesText or TfidfSVD, which do without."
            )
        if int(version("sentence-transformers").split(".")[0]) < 6:
            raise ConfigError(
                f"sentence-transformers {version('sentence-transformers')} runs code that a model's modules.json names: run "
                "pip install 'sentence-transformers>=6'."
            )
        from sentence_transformers import SentenceTransformer

        def make(only_local: bool) -> SentenceTransformer:
            return SentenceTransformer(
                self.model,
                device=str(self.torch_device),
                revision=self.revision,
                local_files_only=only_local,
                trust_remote_code=False,
                model_kwargs={"dtype": self.torch_dtype},
            )

        model = self._load_model(self.model, make)
        assert isinstance(model, SentenceTransformer)
        if self.max_tokens is not None:
            model.max_seq_length = self.max_tokens

        def encode(texts: list[str]) -> np.ndarray:
            found = model.encode(
                texts, batch_size=self.batch_size, show_progress_bar=False, convert_to_tensor=True
            )  # (n, F)
            return np.asarray(found.float().cpu())  # (n, F)

        return encode


class HiddenStatesText(LanguageModelText):
    """Mean of the last hidden states of any language model, field by field, as the paper does with Qwen.

    Every field of an item is a text of its own. Its vector is the mean of the hidden states of its tokens. Of an encoder-decoder
    model (T5), the encoder is used.

    Args:
        model: folder or name on the Hugging Face hub (paper: Qwen2.5-1.5B).
        revision: branch, tag or commit on the hub; null: the newest.
        fields: columns of the item, or templates such as "{title}. {keywords}", each encoded on its own; null: the column text.
        combine: mean: the mean over the fields that the item has; concat: all fields in a row, zeros for a missing one.
        max_tokens: longer texts are cut to this length.
        normalize: scale every item's vector to unit length.
        batch_size: texts encoded together.
        device: auto: a GPU if there is one.
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
        """See `LanguageModelText.templates`."""
        return [field if "{" in field else f"{{{field}}}" for field in self.fields or ["text"]]

    def describe(self) -> dict[str, str | int | float]:
        """See `LanguageModelText.describe`."""
        return super().describe() | {"combine": self.combine}

    def combine_fields(self, vectors: np.ndarray, filled: np.ndarray) -> np.ndarray:
        """See `LanguageModelText.combine_fields`. With concat the width is fields * F."""
        if self.combine == "concat":
            return vectors.reshape(len(vectors), -1)  # (N, fields * F)
        count = np.maximum(filled.sum(axis=1, keepdims=True), 1).astype(np.float32)  # (N, 1)
        mean: np.ndarray = vectors.sum(axis=1) / count  # (N, F)
        return mean

    def load(self) -> Encode:
        """See `LanguageModelText.load`."""
        from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

        tokenizer: PreTrainedTokenizerBase | None = None

        def make(only_local: bool) -> torch.nn.Module:
            nonlocal tokenizer
            tokenizer = AutoTokenizer.from_pretrained(
                self.model,
                revision=self.revision,
                local_files_only=only_local,
                padding_side="right",
                trust_remote_code=False,
            )
            model: torch.nn.Module = AutoModel.from_pretrained(
                self.model,
                revision=self.revision,
                local_files_only=only_local,
                dtype=self.torch_dtype,
                trust_remote_code=False,
            )
            return model

        model = self._load_model(self.model, make)
        assert tokenizer is not None
        if tokenizer.pad_token is None:  # any token will do: the mask hides it
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        reader = model.get_encoder() if model.config.is_encoder_decoder else model  # type: ignore[operator, union-attr]
        reader = reader.to(self.torch_device)

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
                ).to(self.torch_device)
                states = reader(**batch).last_hidden_state.float()  # (n, T, F)
                real = batch["attention_mask"][..., None].float()  # (n, T, 1)
                parts.append((states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1))  # (n, F)
            return torch.cat(parts).cpu().numpy()  # (n, F)

        return encode


def hub_is_reachable() -> bool:
    """Whether the Hugging Face hub can be reached. One short request, because its own library tries for over a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # imported there, in no __all__

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # no name server, no route, a proxy that refuses
        return False
    return True
