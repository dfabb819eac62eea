"""Backbones: read item tokens, answer K query vectors for every prefix."""

from setrec.backbones.base import Backbone
from setrec.backbones.decoder import DecoderBackbone
from setrec.backbones.lora import LoRA
from setrec.backbones.t5 import T5Backbone

__all__ = ["Backbone", "DecoderBackbone", "LoRA", "T5Backbone"]
