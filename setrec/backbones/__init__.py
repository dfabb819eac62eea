"""Backbones: read item tokens, answer K query vectors for every prefix."""

from setrec.backbones.base import Backbone
from setrec.backbones.t5 import T5Backbone

__all__ = ["Backbone", "T5Backbone"]
