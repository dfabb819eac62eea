"""Backbones: they read item tokens and compute K query outputs for every prefix.

A name is imported when it is first used, because transformers takes seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from setrec.backbones.base import Backbone
    from setrec.backbones.decoder import DecoderBackbone
    from setrec.backbones.lora import LoRA
    from setrec.backbones.t5 import T5Backbone

__all__ = ["Backbone", "DecoderBackbone", "LoRA", "T5Backbone"]

_MODULES = {
    "Backbone": "setrec.backbones.base",
    "DecoderBackbone": "setrec.backbones.decoder",
    "LoRA": "setrec.backbones.lora",
    "T5Backbone": "setrec.backbones.t5",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
