"""SASRec: a small causal transformer over item ids. Its item vectors are the CF vectors of SETRec.

Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018. Differs from it: a learned start token is the query
output of the empty history; every prefix is trained in one pass with the cross-entropy over the whole catalogue (the paper's
BCE with sampled negatives is an option); LayerNorm stands before each layer; positions count from the start of the history.

Options make its stronger forms: sampled softmax, gSASRec's loss (Petrov and Macdonald, RecSys 2023), and the gated layers of LiGR
(arXiv 2502.03417), which make it eSASRec (arXiv 2508.06450).

Negatives are drawn uniformly, for every prefix n items other than its target, or n items for the whole batch, of which a prefix
leaves out its target. The sampled softmax takes their scores as they are. With `log_q` they get -log q, where q is how often an
item is expected among them, and the target gets nothing: the sum of the softmax is then an unbiased estimate of the sum over the
catalogue. Without it the negatives weigh less than the catalogue does, by the same factor for all.
"""

import math
import shlex
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from setrec.data.batches import TrainRows
from setrec.errors import ConfigError
from setrec.files.vectorfile import write_vectors
from setrec.hparams import save_plain_hyperparameters
from setrec.layers.loss import catalogue_cross_entropy
from setrec.schemas import Batch, EvalSplit
from setrec.trainer.ranking import RankingModule
from setrec.trainer.resume import check_rates
from setrec.trainer.run_checkpoint import best_path
from setrec.trainer.run_folder import folder_of

EXPORT = "item_vectors.safetensors"  # in the run's folder; --data.cf reads it


class Block(nn.Module):
    """Causal self-attention, then a feed-forward layer, each with LayerNorm before and a residual around it."""

    def __init__(self, width: int, n_heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.attention_norm, self.inner_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner: nn.Module = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, E); place t sees places 0..t. Padding is at the end, so no real place sees it."""
        x = x + self.attend(x)  # (B, T, E)
        x = x + self.inner(self.inner_norm(x))  # (B, T, E)
        return x

    def attend(self, x: Tensor) -> Tensor:
        """The attention layer without what goes around it: (B, T, E) -> (B, T, E)."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, heads, E / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, E / heads)
        dropout = self.dropout if self.training else 0.0
        seen = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        seen = self.out(seen.transpose(1, 2).flatten(2))  # (B, T, E)
        return nn.functional.dropout(seen, self.dropout, self.training)  # (B, T, E)


class GatedBlock(Block):
    """The block of LiGR: each layer is added through a gate, the sigmoid of a linear layer of what goes in; SwiGLU inside."""

    def __init__(self, width: int, n_heads: int, inner: int, dropout: float) -> None:
        super().__init__(width, n_heads, inner, dropout)
        self.inner = SwiGLU(width, inner, dropout)
        self.attention_gate, self.inner_gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """See `Block.forward`."""
        x = x + self.attention_gate(x).sigmoid() * self.attend(x)  # (B, T, E)
        x = x + self.inner_gate(x).sigmoid() * self.inner(self.inner_norm(x))  # (B, T, E)
        return x


class SwiGLU(nn.Module):
    """A feed-forward layer with a gate of its own: W3 (silu(W1 x) * W2 x)."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down, self.dropout = nn.Linear(inner, width, bias=False), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, E) -> (B, T, E)."""
        inner = self.dropout(nn.functional.silu(self.gate(x)) * self.up(x))  # (B, T, inner)
        outputs: Tensor = self.dropout(self.down(inner))  # (B, T, E)
        return outputs


Layers = Literal["plain", "ligr"]
Loss = Literal["ce", "sampled", "bce", "gbce"]


class SASRec(nn.Module):
    """Histories -> query outputs, (M, E), scored against the item vectors, (N, E). Arguments: see `SASRecModule`."""

    def __init__(
        self,
        n_items: int,
        max_history: int,
        width: int,
        n_blocks: int,
        n_heads: int,
        inner: int,
        dropout: float,
        layers: Layers = "plain",
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, width)
        self.start = nn.Parameter(
            torch.empty(width)
        )  # (E,), before the first item: the empty history has an output too
        self.position = nn.Parameter(torch.empty(max_history + 1, width))
        block = GatedBlock if layers == "ligr" else Block
        self.blocks = nn.ModuleList(block(width, n_heads, inner, dropout) for _ in range(n_blocks))
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        for weight in (self.items.weight, self.start, self.position):
            nn.init.normal_(weight, std=0.02)

    def forward(self, batch: Batch) -> Tensor:
        """The query outputs of the batch's M real prefixes, (M, E): that of prefix t is read at its t-th item."""
        items = self.items(batch.history.clamp(min=0))  # (B, L, E)
        start = self.start.expand(len(items), 1, -1)  # (B, 1, E)
        x = torch.cat([start, items], dim=1)  # (B, L + 1, E)
        x = self.dropout(x + self.position[: x.shape[1]])  # (B, L + 1, E)
        for block in self.blocks:
            x = block(x)  # (B, L + 1, E)
        n_prefix = batch.prefix.shape[1]
        row = batch.valid // n_prefix  # (M,)
        outputs: Tensor = self.norm(x[row, batch.prefix.flatten()[batch.valid]])  # (M, E)
        return outputs


class SASRecModule(RankingModule):
    """Trains SASRec, evaluates it like SETRec, and writes its item vectors into the run's folder.

    Args:
        width: E, the width of an item vector (the release's SASRec: 64).
        n_blocks: Transformer blocks (SASRec paper: 2).
        n_heads: Attention heads (SASRec paper: 1).
        inner: Width inside a block's feed-forward layer (SASRec paper: the same as width).
        dropout: After the embeddings, in attention and after each layer (SASRec paper: 0.2 on dense, 0.5 on sparse data).
        layers: plain, as in SASRec; ligr, with gated residuals and SwiGLU (eSASRec paper).
        loss: ce, softmax cross-entropy over the whole catalogue; sampled, over the target and sampled items (eSASRec paper);
            bce, binary cross-entropy with sampled items (SASRec paper); gbce, the same with the target's probability to a power
            below 1 (gSASRec paper).
        negatives: Items drawn uniformly, for all losses but ce (SASRec paper: 1; gSASRec and eSASRec: 256).
        shared_negatives: Draw them once for all prefixes of a batch, which is faster, and not for each (the papers).
        log_q: For sampled: correct the scores of the drawn items by -log of how often they are expected (eSASRec paper: false).
        gbce_t: For gbce: from 0, which is bce, to 1, where scores are as calibrated as those of ce (gSASRec paper: 0.75).
        temperature: Scores are cosines divided by this; null: plain inner products (SASRec paper).
        lr: Learning rate of AdamW after the warm-up, constant (SASRec paper: 1e-3).
        weight_decay: Weight decay of AdamW.
        warmup_steps: Optimiser steps over which the learning rate rises from 0.
        filter_seen: Leave the items of the user's own history out of the ranking in validation, test and predict. Test
            reports the figures with and without them.
        top_k: Items that predict lists for each user.
    """

    label = "SASRec"

    def __init__(
        self,
        width: int = 64,
        n_blocks: int = 2,
        n_heads: int = 2,
        inner: int = 256,
        dropout: float = 0.5,
        layers: Layers = "plain",
        loss: Loss = "ce",
        negatives: int = 1,
        shared_negatives: bool = False,
        log_q: bool = False,
        gbce_t: float = 0.75,
        temperature: float | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 100,
        filter_seen: bool = True,
        top_k: int = 10,
    ) -> None:
        super().__init__(filter_seen, top_k)
        check_rates(lr, weight_decay)
        arguments = {
            "width": width, "n_blocks": n_blocks, "n_heads": n_heads, "inner": inner, "dropout": dropout, "layers": layers,
            "loss": loss, "negatives": negatives, "shared_negatives": shared_negatives, "log_q": log_q, "gbce_t": gbce_t,
            "temperature": temperature, "lr": lr, "weight_decay": weight_decay, "warmup_steps": warmup_steps,
            "filter_seen": filter_seen, "top_k": top_k,
        }  # fmt: skip
        save_plain_hyperparameters(self, arguments)
        if width % n_heads:
            raise ConfigError(f"width is {width} and n_heads is {n_heads}: the width must be a multiple of the heads.")
        if loss != "ce" and negatives < 1:
            raise ConfigError(f"negatives is {negatives}; {loss} needs at least 1.")
        if not 0 <= gbce_t <= 1:
            raise ConfigError(f"gbce_t is {gbce_t}; give a number from 0 to 1.")
        if temperature is not None and temperature <= 0:
            raise ConfigError(f"temperature is {temperature}; give a number above 0, or null for inner products.")
        self.width, self.n_blocks, self.n_heads = width, n_blocks, n_heads
        self.inner, self.dropout = inner, dropout
        self.layers: Layers = layers
        self.loss: Loss = loss
        self.negatives, self.shared_negatives, self.log_q = negatives, shared_negatives, log_q
        self.gbce_t, self.temperature = gbce_t, temperature
        self.label = "eSASRec" if layers == "ligr" else "SASRec"
        self.lr, self.weight_decay, self.warmup_steps = lr, weight_decay, warmup_steps
        self.model: SASRec | None = None
        self.register_load_state_dict_pre_hook(_remove_old_weights)  # type: ignore[no-untyped-call]

    def configure_model(self) -> None:
        """Make the layers, once the number of items is known.

        Raises:
            ConfigError: they were made for other data.
        """
        self.check_catalogue()
        if self.model is None:
            sizes = (self.width, self.n_blocks, self.n_heads, self.inner, self.dropout, self.layers)
            self.model = SASRec(self.data.catalogue.n_items, self.data.max_history, *sizes)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a linear warm-up, then a constant learning rate."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        rise = max(self.warmup_steps, 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / rise))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # --------------------------------------------------------------------------------------------------------- training
    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The loss of a batch, averaged over the prefixes of all processes."""
        queries, table = self.with_temperature(self.query_outputs(batch), self.vectors)  # (M, E), (N, E)
        target = batch.target[..., 0].flatten()[batch.valid]  # (M,)
        if self.loss == "ce":
            total, _ = catalogue_cross_entropy(queries, table, target)
        elif self.loss == "sampled":
            total = self.sampled_softmax(queries, table, target)
        else:
            total = self.binary_cross_entropy(queries, table, target)
        n_prefix = torch.tensor([float(len(target))], device=self.device)  # (1,)
        loss = total / self.mean_over_processes(n_prefix).squeeze(0)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(target))
        return loss

    def drawn_scores(self, queries: Tensor, table: Tensor, target: Tensor) -> Tensor:
        """Scores of `negatives` uniformly drawn items, (M, negatives); -inf where one drawn for the batch is the target.

        Args:
            queries: (M, E) float.
            table: (N, E) float.
            target: (M,) int64.
        """
        if self.shared_negatives:
            drawn = torch.randint(len(table), (self.negatives,), device=target.device)  # (negatives,)
            return (queries @ table[drawn].T).masked_fill(drawn == target[:, None], -torch.inf)  # (M, negatives)
        drawn = torch.randint(len(table) - 1, (len(target), self.negatives), device=target.device)  # (M, negatives)
        other = drawn + (drawn >= target[:, None])  # (M, negatives): every item but the target
        if len(table) < self.negatives * table.shape[1]:  # all scores take less room and time than the drawn vectors
            return (queries @ table.T).gather(1, other)  # (M, negatives)
        return torch.einsum("me,mne->mn", queries, table[other])  # (M, negatives)

    def sampled_softmax(self, queries: Tensor, table: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of the target against itself and the drawn items, summed over prefixes, (). Arguments as above."""
        positive = (queries * table[target]).sum(dim=-1, keepdim=True)  # (M, 1)
        negative = self.drawn_scores(queries, table, target)  # (M, negatives)
        if self.log_q:
            items = len(table) if self.shared_negatives else len(table) - 1
            negative = negative - math.log(self.negatives / items)  # (M, negatives)
        return (torch.cat([positive, negative], dim=1).logsumexp(dim=1) - positive.squeeze(1)).sum()  # ()

    def binary_cross_entropy(self, queries: Tensor, table: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy of the target against the drawn items, summed over prefixes, (). Arguments as above.

        bce: log p(target) + mean of log(1 - p(drawn)); gbce: (beta log p(target) + sum of log(1 - p(drawn))) / (negatives + 1),
        with beta = a (t (1 - 1 / a) + 1 / a) and a = negatives / (N - 1).
        """
        softplus = nn.functional.softplus
        positive = softplus(-(queries * table[target]).sum(dim=-1)).sum()  # ()
        negative = softplus(self.drawn_scores(queries, table, target)).sum()  # (): softplus(-inf) = 0
        if self.loss == "bce":
            return positive + negative / self.negatives
        share = self.negatives / (len(table) - 1)
        beta = self.gbce_t * (share - 1) + 1
        return (beta * positive + negative) / (self.negatives + 1)

    # ---------------------------------------------------------------------------------------------------------- scoring
    @property
    def vectors(self) -> Tensor:
        """The item vectors, (N, E)."""
        assert self.model is not None
        return self.model.items.weight

    def query_outputs(self, batch: Batch) -> Tensor:
        """The query outputs of the M real prefixes, (M, E)."""
        assert self.model is not None
        outputs: Tensor = self.model(batch)  # (M, E)
        return outputs

    def with_temperature(self, queries: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Query outputs and item vectors, (M, E) and (N, E): their inner product is the score under `temperature`."""
        if self.temperature is None:
            return queries, table
        normalize = nn.functional.normalize
        return normalize(queries, dim=-1) / self.temperature, normalize(table, dim=-1)

    def prepare_scoring(self, split: EvalSplit) -> None:
        """Nothing to prepare: the item vectors are the index."""

    def score(self, batch: Batch) -> Tensor:
        """See `RankingModule.score`."""
        queries, table = self.with_temperature(self.query_outputs(batch), self.vectors)  # (B, E), (N, E)
        return queries.float() @ table.float().T  # (B, N)

    # ----------------------------------------------------------------------------------------------------------- export
    def on_fit_end(self) -> None:
        """Write the item vectors of the best checkpoint, or of the last weights where there is none."""
        best = best_path(self.trainer)
        vectors = self.vectors.detach()  # (N, E)
        if best and Path(best).is_file():
            weights = torch.load(best, weights_only=True, map_location="cpu", mmap=True)["state_dict"]
            vectors = weights["model.items.weight"]
        self.export_to_run(vectors)

    def on_test_end(self) -> None:
        """Write the item vectors of the checkpoint that was tested into the run's folder."""
        self.export_to_run(self.vectors.detach())

    def export_to_run(self, vectors: Tensor) -> None:
        """Write item vectors, (N, E), into the run's folder, if it has one."""
        folder = folder_of(self.trainer)
        if folder is not None:
            self.export(folder / EXPORT, vectors)

    @rank_zero_only
    def export(self, path: Path, vectors: Tensor) -> None:
        """Write item vectors to a file that names their items and their training split.

        Args:
            path: A .safetensors file: vectors (N, E) float32, present (N,) bool.
            vectors: (N, E) float, as trained; with a temperature they are written at unit length.

        Raises:
            DataError: the file can't be written.
        """
        if self.temperature is not None:
            vectors = nn.functional.normalize(vectors, dim=-1)  # (N, E)
        data = self.data
        wanted = data.histories.beside("wanted", "validation")
        rows = TrainRows(data.histories.train, data.max_history, wanted=wanted)
        trained = np.zeros(data.catalogue.n_items, bool)  # (N,)
        trained[trained_items(rows)] = True
        about = {"model": self.label, "dataset": data.catalogue.name, "loss": self.loss}
        write_vectors(path, vectors.float().cpu().numpy(), trained, data.catalogue.ids, data.histories.train, about)
        print(f"item vectors: {path} (for SETRec: {shlex.join(['--data.cf=[CFFile]', f'--data.cf.file={path}'])})")


def trained_items(rows: TrainRows) -> np.ndarray:
    """The items in the windows that training reads, targets included, (any,) int32, each once.

    The oldest items of a history longer than the window are not among them.
    """
    length = rows.history + 1  # (rows,): the longest prefix and its target
    begin = np.repeat(
        rows.begin - np.cumsum(length) + length, length
    )  # (any,): a row's first place, less the items before
    return np.unique(rows.train.items[begin + np.arange(length.sum())])


def _remove_old_weights(module: SASRecModule, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Ignore the weights of SETRec's score, which version 0.1.0 wrote into SASRec's checkpoints too."""
    for name in ("beta", "neighbours_weight", "recency_weight", "cold_text_weight", "cold_weight"):
        state.pop(prefix + name, None)
