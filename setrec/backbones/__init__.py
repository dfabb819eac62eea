"""Backbones: they read item tokens and compute K query outputs for every prefix.

A name is imported when it is first used, because transformers takes seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

from setrec.class_names import CLASSES

if TYPE_CHECKING:
    from setrec.backbones.base import Backbone
    from setrec.backbones.decoder import DecoderBackbone
    from setrec.backbones.lora import LoRA
    from setrec.backbones.t5 import T5Backbone

__all__ = ["Backbone", "DecoderBackbone", "LoRA", "T5Backbone"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    module = CLASSES.get(f"setrec.backbones.{name}") or ("setrec.backbones.base" if name == "Backbone" else None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
