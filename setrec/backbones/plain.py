"""Attention in transformers' own plain code, for exporters: they follow one way through the code, for all sizes of a batch."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

SETTING = "_attn_implementation"  # of the configurations of transformers


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Let the layers of transformers in a model compute attention by their plain code meanwhile. The results agree."""
    found = [getattr(module, "config", None) for module in model.modules()]
    configs = list({id(config): config for config in found if hasattr(config, SETTING)}.values())
    before = [getattr(config, SETTING) for config in configs]
    try:
        for config in configs:
            setattr(config, SETTING, "eager")
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            setattr(config, SETTING, name)
