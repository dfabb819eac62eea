"""SETRec in one forward pass: read this file first.

    histories --> item tokens --> backbone --> K answers a prefix --> folded --> loss | scores of the catalogue
                  tokens.py       backbones/                          grounding.py  loss.py

The letters of the shape comments are defined in schemas.py.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from setrec.backbones import Backbone
from setrec.data.catalogue import Catalogue
from setrec.errors import ConfigError
from setrec.grounding import Folded, Index, UserRow, fold, user_row
from setrec.loss import catalogue_cross_entropy
from setrec.schemas import Batch, mask_of
from setrec.tokens import ItemTokens


class Answers(NamedTuple):
    """What one forward pass knows about the M real prefixes of a batch."""

    folded: Folded  # the answers at widths E and H
    tokens: Tensor  # (U, K, D) float, the tokens of the batch's distinct items


class LossSums(NamedTuple):
    """The loss of a batch as sums, so that any number of batches and processes can be averaged exactly."""

    slots: Tensor  # (K,) float32: cross-entropy of each slot, summed over the M prefixes; no gradient
    ranking: Tensor  # () the slots' mean summed over the M prefixes; with gradient
    reconstruction: Tensor  # () squared error of the history's text vectors, summed over the rows it stands for
    n_prefix: Tensor  # () float32, M
    n_reconstructed: Tensor  # () float32, history items over all prefixes


class SETRec(nn.Module):
    """The item tokenizers, the backbone and the learned queries.

    Args:
        catalogue: the items; its vectors become buffers that are not part of checkpoints (they are data).
        backbone: how histories are read; not yet built.
        n_cf: CF slots; takes the first n_cf CF matrices of the catalogue. 0: semantic only.
        n_sem: semantic slots. 0: CF only.
        bottleneck: H.
        trunk: hidden widths between F and H.
        missing_cf: what an item without a trained CF vector (a cold item) has there: `as_is`, whatever the file holds (the
            paper); `zero`, nothing, neither in histories nor in scores.

    Raises:
        ConfigError: slots asked for that the data has no vectors for.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        backbone: Backbone,
        n_cf: int,
        n_sem: int,
        bottleneck: int,
        trunk: list[int],
        missing_cf: Literal["as_is", "zero"],
    ) -> None:
        super().__init__()
        check_slots(catalogue, n_cf, n_sem)
        backbone.build()
        self.backbone = backbone
        self.n_cf, self.n_sem = n_cf, n_sem
        for c, (vectors, present) in enumerate(zip(catalogue.cf[:n_cf], catalogue.present[:n_cf], strict=True)):
            table = vectors if missing_cf == "as_is" else vectors * present[:, None]  # (N, E)
            self.register_buffer(f"cf_{c}", table.clone(), persistent=False)
        text = catalogue.text if n_sem and catalogue.text is not None else torch.zeros(catalogue.n_items, 0)
        self.text: Tensor
        self.register_buffer("text", text.clone(), persistent=False)  # (N, F)
        cf_widths = [table.shape[1] for table in self.cf]
        self.tokens = ItemTokens(cf_widths, self.text.shape[1], n_sem, backbone.width, bottleneck, trunk)
        self.queries = nn.Parameter(backbone.query_std * torch.randn(n_cf + n_sem, backbone.width))  # (K, D)

    def shard(self, mesh: DeviceMesh) -> None:
        """Split every weight over the processes of the mesh's data-parallel dimension (ModelParallelStrategy).

        Raises:
            ConfigError: tensor parallelism is asked for, or the backbone can't be split.
        """
        if mesh["tensor_parallel"].size() > 1:
            raise ConfigError(
                "Tensor parallelism is not supported: in the arguments of ModelParallelStrategy, set "
                "tensor_parallel_size to 1 and data_parallel_size to the number of processes."
            )
        self.backbone.shard(mesh["data_parallel"])
        fully_shard(self, mesh=mesh["data_parallel"], reshard_after_forward=False)  # what is left is small
        for method in ("losses", "index", "read"):  # they use weights outside of forward
            register_fsdp_forward_method(self, method)

    @property
    def cf(self) -> list[Tensor]:
        """The CF tables, n_cf of (N, E_c)."""
        return [self.get_buffer(f"cf_{c}") for c in range(self.n_cf)]

    def codes(self) -> Tensor | None:
        """The trunk codes of the whole catalogue (N, H), made once a step; None without semantic slots."""
        return self.tokens.encode(self.text) if self.n_sem else None  # (N, H)

    def forward(self, batch: Batch, codes: Tensor | None) -> Answers:
        """Histories in, folded answers out.

        Args:
            batch: see `Batch`.
            codes: (N, H) from `codes()`.
        """
        distinct = [table[batch.unique] for table in self.cf]  # n_cf of (U, E)
        tokens = self.tokens(distinct, codes[batch.unique] if codes is not None else None)  # (U, K, D)
        items = nn.functional.embedding(batch.position, tokens.flatten(1)).unflatten(-1, tokens.shape[1:])  # (B,L,K,D)
        real = mask_of(batch.history)  # (B, L)
        answers = self.backbone(items, real, batch.prefix, self.queries)  # (B, P, K, D)
        answers = answers.flatten(0, 1)[batch.valid]  # (M, K, D)
        return Answers(fold(answers, self.tokens), tokens)

    def losses(self, batch: Batch) -> LossSums:
        """Cross-entropy of each slot over the whole catalogue, and the reconstruction (paper, equations 7 to 9)."""
        codes = self.codes()  # (N, H)
        answers = self(batch, codes)
        target = batch.target.flatten()[batch.valid]  # (M,)
        n_prefix = target.new_tensor(len(target), dtype=torch.float32)

        sums, slots = [], []
        for table, folded in zip(self.cf, answers.folded.cf, strict=True):
            total, each = catalogue_cross_entropy(folded, table, target)
            sums.append(total)
            slots.append(each.sum())
        reconstruction = n_prefix.new_zeros(())
        n_reconstructed = n_prefix.new_ones(())
        if codes is not None and answers.folded.sem is not None:
            rows = answers.folded.sem.flatten(0, 1)  # (M * n_sem, H)
            total, each = catalogue_cross_entropy(rows, codes, target.repeat_interleave(self.n_sem))
            sums.append(total)
            slots += list(each.view(-1, self.n_sem).sum(dim=0))  # n_sem of ()
            error = self.tokens.reconstruct(answers.tokens) - self.text[batch.unique]  # (U, F)
            reconstruction = (error.square().mean(dim=1) * batch.weight).sum()
            n_reconstructed = batch.weight.sum()
        ranking = torch.stack(sums).sum() / (self.n_cf + self.n_sem)
        return LossSums(torch.stack(slots), ranking, reconstruction, n_prefix, n_reconstructed)

    def index(self) -> Index:
        """The catalogue ready to be scored; valid until a weight changes."""
        codes = self.codes()
        cf = torch.cat(self.cf, dim=1) if self.n_cf else self.text.new_zeros(self.text.shape[0], 0)  # (N, sum(E))
        return Index(cf, codes if codes is not None else cf.new_zeros(cf.shape[0], 0))

    def read(self, batch: Batch, index: Index) -> UserRow:
        """Histories in, the users' rows of the index out: what evaluation and serving need."""
        return user_row(self(batch, index.sem if self.n_sem else None).folded)


def check_slots(catalogue: Catalogue, n_cf: int, n_sem: int) -> None:
    """Raise ConfigError where the slots asked for have no vectors behind them."""
    if n_cf + n_sem < 1 or min(n_cf, n_sem) < 0:
        raise ConfigError(f"n_cf is {n_cf} and n_sem is {n_sem}: an item needs at least one slot of either kind.")
    if n_cf > len(catalogue.cf):
        raise ConfigError(
            f"n_cf is {n_cf}, but the data set {catalogue.name!r} holds {len(catalogue.cf)} CF matrices: "
            f"set --model.n_cf {len(catalogue.cf)} or name more in --data.cf."
        )
    if n_sem and catalogue.text is None:
        raise ConfigError(
            f"n_sem is {n_sem}, but the data set {catalogue.name!r} has no text vectors: "
            "set --model.n_sem 0 or name their source with --data.text."
        )
