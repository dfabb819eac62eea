"""Item tokens: every item as an order-agnostic set of K vectors, collaborative slots first, semantic slots after.

Paper, section 3.1: a CF slot is a projection of a frozen CF vector; the semantic slots come from one autoencoder over the
item's text vector. The catalogue is never expanded to (N, K, D): a training step reads it as trunk codes (N, H).
"""

import itertools

import torch
from torch import Tensor, nn


def relu_mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers of these widths, with ReLU after every layer: (any, widths[0]) -> (any, widths[-1])."""
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class ItemTokens(nn.Module):
    """The tokenizers of SETRec.

    CF slot c:        z_c(v) = W_c e_c(v) + b_c          e_c(v) frozen, (E_c,)
    semantic trunk:   a(v) = MLP(f(v))                   F -> 512 -> 256 -> H, ReLU after every layer
    semantic slot k:  z_k(v) = U_k a(v) + u_k
    reconstruction:   f'(v) = MLP'(z_1(v) ... z_n(v))    n_sem * D -> H -> 256 -> 512 -> F

    Args:
        cf_widths: E of every CF slot; empty for a model with semantic slots only.
        text_width: F; ignored when n_sem is 0.
        n_sem: Number of semantic slots; 0 for a model with CF slots only.
        width: D, the backbone's width.
        bottleneck: H (paper: 128).
        trunk: Widths of the layers between F and H (paper: 512, 256).
    """

    def __init__(
        self, cf_widths: list[int], text_width: int, n_sem: int, width: int, bottleneck: int, trunk: list[int]
    ) -> None:
        super().__init__()
        self.cf = nn.ModuleList(nn.Linear(e, width) for e in cf_widths)
        self.n_cf = len(cf_widths)
        self.n_sem = n_sem
        if n_sem:
            self.trunk = relu_mlp([text_width, *trunk, bottleneck])
            self.heads = nn.ModuleList(nn.Linear(bottleneck, width) for _ in range(n_sem))
            mirror = [n_sem * width, bottleneck, *reversed(trunk)]
            self.decoder = nn.Sequential(*relu_mlp(mirror), nn.Linear(mirror[-1], text_width))

    def encode(self, text: Tensor) -> Tensor:
        """The trunk codes a(v) of text vectors: (any, F) -> (any, H)."""
        codes: Tensor = self.trunk(text.to(_dtype(self.trunk)))  # (any, H)
        return codes

    def forward(self, cf: list[Tensor], codes: Tensor | None) -> Tensor:
        """The tokens of some items.

        Args:
            cf: The items' CF vectors, n_cf of (U, E_c) float.
            codes: (U, H) float from `encode`; None without semantic slots.

        Returns:
            (U, K, D) float.
        """
        slots = [project(e.to(_dtype(project))) for project, e in zip(self.cf, cf, strict=True)]  # n_cf of (U, D)
        if codes is not None:
            slots += [head(codes) for head in self.heads]  # n_sem of (U, D)
        return torch.stack(slots, dim=1)  # (U, K, D)

    def reconstruct(self, tokens: Tensor) -> Tensor:
        """The text vectors, (U, F), decoded from the semantic slots of `tokens`, (U, K, D)."""
        text: Tensor = self.decoder(tokens[:, self.n_cf :].flatten(1))  # (U, F)
        return text


def _dtype(layers: nn.Module) -> torch.dtype:
    """The precision of the layers' weights; vectors may be stored as float16."""
    return next(layers.parameters()).dtype
