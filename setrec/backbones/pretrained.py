"""Loads a decoder-only language model and its tokenizer from a folder, a GGUF file or the model hub."""

from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from setrec.errors import ConfigError


class ModelSource(NamedTuple):
    """Where a pretrained model is found."""

    name: str  # a local folder, or a name on the model hub
    gguf_file: str | None  # a GGUF file in it; its weights are unpacked
    revision: str | None  # branch, tag or commit on the hub; None: the newest


def load_decoder(
    source: ModelSource,
    dtype: Literal["float32", "bfloat16"],
    attention: Literal["sdpa", "eager"],
    quantize: Literal[4, 8] | None,
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Load tokenizer and model, in eval mode.

    Args:
        source: Where they are found.
        dtype: Precision of the weights.
        attention: transformers' name of the attention implementation.
        quantize: Bits that each weight is held in; None: as `dtype` says.

    Raises:
        ConfigError: the model or a package is not found, the model is no decoder-only one, or weights are missing.
    """
    if source.gguf_file and find_spec("gguf") is None:
        raise ConfigError('A GGUF file needs the package gguf, which is not installed: pip install "setrec[gguf]".')
    where: dict[str, Any] = {"trust_remote_code": False, "revision": source.revision or "main"}
    if source.gguf_file:
        where["gguf_file"] = source.gguf_file
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, **where)
        base, found = AutoModel.from_pretrained(
            source.name,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            output_loading_info=True,
            **_quantization(quantize, dtype),
            **where,
        )
    except (OSError, ValueError, ImportError) as error:
        file = f", file {source.gguf_file!r}" if source.gguf_file else ""
        raise ConfigError(
            f"The pretrained language model {source.name!r}{file} is neither a folder here nor reachable on "
            f"the model hub ({str(error).splitlines()[0]}): give its folder with --model.backbone.pretrained, "
            "or, for random weights instead, --model.backbone.pretrained null."
        ) from error
    if base.config.is_encoder_decoder or not hasattr(base, "layers"):
        raise ConfigError(f"{source.name!r} is a {type(base).__name__}, not a decoder-only language model.")
    if found["missing_keys"]:
        raise ConfigError(
            f"{source.name!r} lacks {len(found['missing_keys'])} weights of a {type(base).__name__}, "
            f"{sorted(found['missing_keys'])[0]} first: the folder is incomplete or holds another architecture."
        )
    base.config.use_cache = False
    return tokenizer, base


def _quantization(quantize: Literal[4, 8] | None, dtype: str) -> dict[str, Any]:
    """Arguments of from_pretrained for a model in 4 or 8 bits; {} without."""
    if not quantize:
        return {}
    if not torch.cuda.is_available():
        raise ConfigError(f"quantize {quantize} needs a GPU: set --model.backbone.quantize null.")
    if find_spec("bitsandbytes") is None:
        raise ConfigError('quantize needs the package bitsandbytes: pip install "setrec[quantize]".')
    config = BitsAndBytesConfig(
        load_in_4bit=quantize == 4,
        load_in_8bit=quantize == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}
