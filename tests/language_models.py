"""Tiny language models with tokenizers, saved as the hub saves them, for the tests of the decoder-only backbone."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Tokenizer

from setrec.backbones import DecoderBackbone

FAMILIES = ("qwen2", "qwen3", "llama")
WIDTH = 24


def save_model(path: Path, family: str, seed: int = 3) -> Path:
    """A tiny language model with its head and tokenizer, in half precision, saved as the hub saves them."""
    torch.manual_seed(seed)
    vocabulary = {character: i for i, character in enumerate(["<s>", *sorted(ByteLevel.alphabet())])}
    if family == "qwen2":  # this family needs its own tokenizer class
        names = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<s>")
        Qwen2Tokenizer(vocab=vocabulary, merges=[], **names).save_pretrained(path)
    else:
        tokenizer = Tokenizer(BPE(vocabulary, []))
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        if family == "llama":  # its texts begin with the token <s>
            tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(path)
    config = AutoConfig.for_model(
        family, vocab_size=257, hidden_size=WIDTH, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=8, bos_token_id=0, eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(path)
    return path


def built(backbone: DecoderBackbone) -> DecoderBackbone:
    backbone.build()
    return backbone.eval()


def history() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two histories of 4 and 2 items of 3 slots, three prefixes and one, 3 queries."""
    torch.manual_seed(5)
    real = torch.tensor([[True] * 4, [True, True, False, False]])
    prefix = torch.tensor([[0, 2, 4], [1, -1, -1]])
    return torch.randn(2, 4, 3, WIDTH), real, prefix, torch.randn(3, WIDTH)


def shaken(backbone: DecoderBackbone) -> DecoderBackbone:
    """The backbone with random adapters; they start at zero."""
    for name, parameter in backbone.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return backbone
