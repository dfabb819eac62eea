"""Item tokens: every item as an order-agnostic set of K vectors: collaborative slots, semantic slots, slots of further sources.

Paper, section 3.1: a CF slot is a projection of a frozen CF vector; the semantic slots come from one autoencoder over the
item's text vector. Both are sources of tokens, and there may be any number. A source's code is what its slots are projected from:
the vector itself, or what the autoencoder makes of it. The catalogue is never expanded to (N, K, D): a training step reads it as
codes (N, C).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


def relu_mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers of these widths, with ReLU after every layer: (any, widths[0]) -> (any, widths[-1])."""
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def source_part(name: str) -> str:
    """The part of the score that a source of --data.vectors adds to."""
    return f"source:{name}"


class Source(NamedTuple):
    """What some slots of an item are made from."""

    name: str  # cf_0, cf_1, ..., text, or a name of --data.vectors
    part: str  # of the score, that its slots add to, see scoring/weights.py
    width: int  # W, of its vectors
    slots: int
    autoencoder: bool  # its code is learned by an autoencoder; False: its code is the vector itself


class Tokenizer(NamedTuple):
    """The layers of a source."""

    trunk: nn.Sequential | None  # vector -> code; None: the code is the vector
    heads: Sequence[nn.Module]  # code -> slot
    decoder: nn.Sequential | None  # slots -> vector


class ItemTokens(nn.Module):
    """The tokenizers of SETRec.

    slot k of a source:   z_k(v) = U_k a(v) + u_k          a(v) the code, (C,)
    linear:               a(v) = e(v)                      e(v) the frozen vector, (W,)
    autoencoder:          a(v) = MLP(e(v))                 W -> 512 -> 256 -> H, ReLU after every layer
                          e'(v) = MLP'(z_1(v) ... z_n(v))  n * D -> H -> 256 -> 512 -> W

    Args:
        sources: In the order of their slots.
        width: D, the backbone's width.
        bottleneck: H (paper: 128).
        trunk: Widths of the layers between W and H (paper: 512, 256).
    """

    def __init__(self, sources: Sequence[Source], width: int, bottleneck: int, trunk: list[int]) -> None:
        super().__init__()
        self.sources = list(sources)
        self.cf, self.more = nn.ModuleList(), nn.ModuleDict()
        self.tokenizers: list[
            Tokenizer
        ] = []  # of the sources; the modules are registered under the names of checkpoints
        for source in self.sources:
            made = _tokenizer(source, width, bottleneck, trunk)
            self.tokenizers.append(made)
            if source.part == "cf":
                self.cf.extend(made.heads)
                continue
            here: nn.Module = self
            if source.part != "semantic":
                here = self.more[source.name] = nn.Module()
            layers = {"trunk": made.trunk, "heads": nn.ModuleList(made.heads), "decoder": made.decoder}
            for name, layer in layers.items():
                if layer is not None:
                    here.add_module(name, layer)

    def encode(self, which: int, vectors: Tensor) -> Tensor:
        """The codes of a source's vectors: (any, W) -> (any, C)."""
        trunk = self.tokenizers[which].trunk
        if trunk is None:
            return vectors
        codes: Tensor = trunk(vectors.to(_dtype(trunk)))  # (any, H)
        return codes

    def forward(self, codes: Sequence[Tensor]) -> Tensor:
        """The tokens of some items.

        Args:
            codes: The items' codes, (U, C) float of every source, from `encode`.

        Returns:
            (U, K, D) float.
        """
        slots = []  # K of (U, D)
        for tokenizer, code in zip(self.tokenizers, codes, strict=True):
            frozen = tokenizer.trunk is None
            slots += [head(code.to(_dtype(head)) if frozen else code) for head in tokenizer.heads]
        return torch.stack(slots, dim=1)  # (U, K, D)

    def reconstruct(self, which: int, tokens: Tensor) -> Tensor:
        """The vectors of a source with an autoencoder, (U, W), decoded from its slots of `tokens`, (U, K, D)."""
        decoder = self.tokenizers[which].decoder
        assert decoder is not None, "a linear source has no decoder"
        start = sum(source.slots for source in self.sources[:which])
        vectors: Tensor = decoder(tokens[:, start : start + self.sources[which].slots].flatten(1))  # (U, W)
        return vectors


def _tokenizer(source: Source, width: int, bottleneck: int, trunk: list[int]) -> Tokenizer:
    """New layers of a source."""
    if not source.autoencoder:
        return Tokenizer(None, [nn.Linear(source.width, width) for _ in range(source.slots)], None)
    encoder = relu_mlp([source.width, *trunk, bottleneck])
    heads = [nn.Linear(bottleneck, width) for _ in range(source.slots)]
    mirror = [source.slots * width, bottleneck, *reversed(trunk)]
    return Tokenizer(encoder, heads, nn.Sequential(*relu_mlp(mirror), nn.Linear(mirror[-1], source.width)))


def _dtype(layers: nn.Module) -> torch.dtype:
    """The precision of the layers' weights; vectors may be stored as float16."""
    return next(layers.parameters()).dtype
