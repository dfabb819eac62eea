"""SETRec in one forward pass: read this file first.

    histories --> item tokens --> backbone --> K answers a prefix --> folded --> loss | scores of the catalogue
                  tokens.py       backbones/                          grounding.py  loss.py

The letters of the shape comments are defined in schemas.py.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from setrec.backbones.base import Backbone
from setrec.data.catalogue import Catalogue
from setrec.errors import ConfigError
from setrec.layers.grounding import Folded, Index, UserRow, fold, user_row
from setrec.layers.loss import catalogue_cross_entropy
from setrec.layers.memory import Memory
from setrec.layers.negatives import Compared, Negatives
from setrec.layers.tokens import ItemTokens
from setrec.schemas import Batch, mask_of

CODE_BLOCK = 1 << 16  # items encoded at a time for an index: the trunk's hidden layers are wider than what goes in


class Columns(NamedTuple):
    """The catalogue's side of the loss: C items, the whole catalogue or what is compared of it."""

    cf: list[Tensor]  # n_cf of (C, E) float
    codes: Tensor | None  # (C, H) float
    text: Tensor | None  # (C, F) float: raw text vectors, where the model has a memory of them
    target: Tensor  # (M,) int64: every prefix's right column
    log_share: Tensor | None  # (C,) float, see `Compared`


class Answers(NamedTuple):
    """What one forward pass knows about the M real prefixes of a batch."""

    folded: Folded  # the answers at widths E and H
    tokens: Tensor  # (U, K, D) float, the tokens of the batch's distinct items


class LossSums(NamedTuple):
    """The loss of a batch as sums, so that any number of batches and processes can be averaged exactly."""

    slots: Tensor  # (K,) float32: cross-entropy of each slot, summed over the M prefixes; no gradient; NaN if not asked
    ranking: Tensor  # () cross-entropy that is trained, summed over the M prefixes; with gradient
    reconstruction: Tensor  # () squared error of the history's text vectors, summed over the rows it stands for
    n_prefix: Tensor  # () float32, M
    n_reconstructed: Tensor  # () float32, history items over all prefixes


@dataclass(frozen=True)
class Recipe:
    """What the method is made of. The defaults are the paper's.

    Args:
        n_sem: Semantic slots an item; 0: collaborative only (paper: 4 for T5, 6 for Qwen).
        n_cf: Collaborative slots an item, one for each CF matrix of the data; 0: semantic only (paper: 1).
        bottleneck: Width H of the semantic autoencoder's bottleneck (paper: 128).
        trunk: Widths between the text vector and the bottleneck (paper: 512, 256).
        missing_cf: CF vector of items absent from training: as_is, whatever the file holds (paper); zero, none.
        objective: What the cross-entropy is over: slots, each slot alone, averaged (paper); score, the sum of all slots,
            which is what items are ranked by.
        negatives: Items in the softmax of the loss: all (paper); warm, without the cold ones, which can never be a target.
        sampled: Items drawn for the softmax of every batch, besides its targets, with the logQ correction; null: the whole
            catalogue (paper). For catalogues too large for that, see docs/scaling.md.
        sampling: How they are drawn: uniform, or popularity, by the count in training to the power 0.75.
        cf_dropout: Probability of hiding the CF vectors of a history item in training, so that the semantic slots learn to
            stand alone, as they must for cold items (paper: 0).
        cf_score_dropout: Probability of ranking a prefix's target by the semantic slots alone in training, so that they can
            rank what has no CF vector (paper: 0). Needs objective score.
        memory: Add the history's own CF and text vectors, with learned weights that fade with age, to the query outputs
            (paper: false). Needs objective score.
        neighbours: Add item graphs to the score: neighbours of the last items by co-occurrence and by text, and how often items
            occurred lately, with weights chosen on validation; cold items by text alone (paper: false). See
            setrec/scoring/weights.py.
    """

    n_sem: int = 4
    n_cf: int = 1
    bottleneck: int = 128
    trunk: tuple[int, ...] = (512, 256)
    missing_cf: Literal["as_is", "zero"] = "as_is"
    objective: Literal["slots", "score"] = "slots"
    negatives: Literal["all", "warm"] = "all"
    sampled: int | None = None
    sampling: Literal["uniform", "popularity"] = "uniform"
    cf_dropout: float = 0.0
    cf_score_dropout: float = 0.0
    memory: bool = False
    neighbours: bool = False


class SETRec(nn.Module):
    """The item tokenizers, the backbone and the learned queries.

    Args:
        catalogue: the items; its vectors become buffers that are not part of checkpoints (they are data).
        backbone: how histories are read; built here unless it is.
        recipe: what the method is made of.
        targets: (N,) bool, the items that can be a target in training; None: the warm ones.

    Raises:
        ConfigError: slots asked for that the data has no vectors for.
    """

    def __init__(self, catalogue: Catalogue, backbone: Backbone, recipe: Recipe, targets: Tensor | None = None) -> None:
        super().__init__()
        check_slots(catalogue, recipe.n_cf, recipe.n_sem)
        if recipe.memory and recipe.objective == "slots":
            raise ConfigError("--model.memory true needs --model.objective score: a memory is no slot of its own.")
        if recipe.cf_score_dropout and recipe.objective == "slots":
            raise ConfigError("--model.cf_score_dropout needs --model.objective score: slots have losses of their own.")
        if recipe.sampled is not None and recipe.sampled < 1:
            raise ConfigError(f"sampled is {recipe.sampled}: draw at least 1 item, or null for the whole catalogue.")
        if not backbone.built:
            backbone.build()
        self.backbone = backbone
        self.recipe = recipe
        self.n_cf, self.n_sem = recipe.n_cf, recipe.n_sem
        matrices = zip(catalogue.cf[: self.n_cf], catalogue.present[: self.n_cf], strict=True)
        for c, (vectors, present) in enumerate(matrices):
            table = vectors if recipe.missing_cf == "as_is" else vectors * present[:, None]  # (N, E)
            self.register_buffer(f"cf_{c}", table, persistent=False)
        text = catalogue.text if self.n_sem and catalogue.text is not None else torch.zeros(catalogue.n_items, 0)
        self.text: Tensor
        self.register_buffer("text", text, persistent=False)  # (N, F)
        targets = catalogue.warm if targets is None else targets  # (N,)
        self.negatives = Negatives(targets, catalogue.count, recipe.negatives, recipe.sampled, recipe.sampling)
        cf_widths = [table.shape[1] for table in self.cf]
        self.tokens = ItemTokens(
            cf_widths, self.text.shape[1], self.n_sem, backbone.width, recipe.bottleneck, list(recipe.trunk)
        )
        self.queries = nn.Parameter(backbone.query_std * torch.randn(self.n_cf + self.n_sem, backbone.width))  # (K, D)
        if recipe.memory:
            self.cf_memory = nn.ModuleList(Memory(max_age=50, scale=1.0) for _ in cf_widths)
            self.text_memory = Memory(max_age=50, scale=3.0) if self.n_sem else None

    @property
    def cf(self) -> list[Tensor]:
        """The CF tables, n_cf of (N, E_c)."""
        return [self.get_buffer(f"cf_{c}") for c in range(self.n_cf)]

    def codes(self) -> Tensor | None:
        """The trunk codes of the whole catalogue (N, H), made once a step; None without semantic slots."""
        if not self.n_sem:
            return None
        if torch.is_grad_enabled():
            return self.tokens.encode(self.text)  # (N, H)
        return torch.cat([self.tokens.encode(block) for block in self.text.split(CODE_BLOCK)])  # (N, H)

    def forward(self, batch: Batch, codes: Tensor | None, distinct: Tensor | None = None) -> Answers:
        """Histories in, folded answers out.

        Args:
            batch: see `Batch`.
            codes: (N, H) from `codes()`.
            distinct: (U, H), those of the batch's distinct items alone, in place of `codes`.
        """
        folded, tokens = self.answer(batch, codes, distinct)
        return Answers(self.remember(folded, batch), tokens)

    def answer(self, batch: Batch, codes: Tensor | None, distinct: Tensor | None = None) -> tuple[Folded, Tensor]:
        """What the backbone answers, folded, and the tokens (U, K, D) that it read; before any memory is added."""
        if distinct is None and codes is not None:
            distinct = codes[batch.unique]  # (U, H)
        cf = [table[batch.unique] for table in self.cf]  # n_cf of (U, E)
        if self.training and self.recipe.cf_dropout:
            keep = torch.rand(len(batch.unique), 1, device=batch.unique.device) >= self.recipe.cf_dropout  # (U, 1)
            cf = [vectors * keep for vectors in cf]  # n_cf of (U, E)
        tokens = self.tokens(cf, distinct)  # (U, K, D)
        items = nn.functional.embedding(batch.position, tokens.flatten(1)).unflatten(-1, tokens.shape[1:])  # (B,L,K,D)
        real = mask_of(batch.history)  # (B, L)
        answers = self.backbone(items, real, batch.prefix, self.queries)  # (B, P, K, D)
        answers = answers.flatten(0, 1)[batch.valid]  # (M, K, D)
        return fold(answers, self.tokens), tokens

    def remember(self, folded: Folded, batch: Batch) -> Folded:
        """Add the memories of the history to the folded answers, where the recipe has them."""
        if not self.recipe.memory:
            return folded
        memories = zip(folded.cf, self.cf_memory, self.cf, strict=True)
        cf = [answer + memory(batch, table) for answer, memory, table in memories]  # n_cf of (M, E)
        return Folded(cf, folded.sem, self.text_memory(batch, self.text) if self.text_memory else None)

    def losses(self, batch: Batch, each_slot: bool = True) -> LossSums:
        """Cross-entropy over the catalogue, and the reconstruction of the history (paper, equations 7 to 9).

        Args:
            batch: see `Batch`.
            each_slot: with objective `score`, take every slot's own loss too, for the log; it costs a little.
        """
        target = batch.target.flatten()[batch.valid]  # (M,)
        distinct, columns = self.encode(batch, self.negatives(target))  # (U, H)
        answers = self.forward(batch, None, distinct)
        n_prefix = target.new_tensor(len(target), dtype=torch.float32)
        if self.recipe.objective == "slots":
            ranking, slots = self.slot_losses(answers.folded, columns)
        else:
            ranking = self.score_loss(answers.folded, columns)
            slots = torch.full((self.n_cf + self.n_sem,), torch.nan)  # (K,)
            if each_slot:
                with torch.no_grad():
                    slots = self.slot_losses(answers.folded, columns)[1]  # (K,)
        reconstruction, n_reconstructed = n_prefix.new_zeros(()), n_prefix.new_zeros(())
        if distinct is not None:
            error = self.tokens.reconstruct(answers.tokens) - self.text[batch.unique]  # (U, F)
            reconstruction = (error.square().mean(dim=1) * batch.weight).sum()
            n_reconstructed = batch.weight.sum()
        return LossSums(slots, ranking, reconstruction, n_prefix, n_reconstructed)

    def encode(self, batch: Batch, compared: Compared) -> tuple[Tensor | None, Columns]:
        """The trunk codes of the batch's distinct items, (U, H), and the columns of the loss, both from one pass.

        With a sample of the catalogue only its items and the batch's go through the trunk.
        """
        items = compared.items
        distinct, columns = None, None
        if self.n_sem and self.recipe.sampled is not None and items is not None:
            both = self.tokens.encode(self.text[torch.cat([batch.unique, items])])  # (U + C, H)
            distinct, columns = both.split([len(batch.unique), len(items)])  # (U, H), (C, H)
        elif self.n_sem:
            codes = self.tokens.encode(self.text)  # (N, H)
            distinct = codes[batch.unique]  # (U, H)
            columns = codes if items is None else codes[items]  # (C, H)
        cf = self.cf if items is None else [table[items] for table in self.cf]  # n_cf of (C, E)
        text = None
        if self.recipe.memory and self.n_sem:
            text = self.text if items is None else self.text[items]  # (C, F)
        return distinct, Columns(cf, columns, text, compared.target, compared.log_share)

    def slot_losses(self, folded: Folded, columns: Columns) -> tuple[Tensor, Tensor]:
        """The paper's loss: every slot alone against the catalogue.

        Returns the slots' mean summed over the prefixes, (), and each slot's sum, (K,).
        """
        sums, slots = [], []
        for table, answer in zip(columns.cf, folded.cf, strict=True):
            total, each = catalogue_cross_entropy(answer, table, columns.target, log_share=columns.log_share)
            sums.append(total)
            slots.append(each.sum())
        if columns.codes is not None and folded.sem is not None:
            rows = folded.sem.flatten(0, 1)  # (M * n_sem, H)
            repeated = columns.target.repeat_interleave(self.n_sem)  # (M * n_sem,)
            total, each = catalogue_cross_entropy(rows, columns.codes, repeated, log_share=columns.log_share)
            sums.append(total)
            slots += list(each.view(-1, self.n_sem).sum(dim=0))  # n_sem of ()
        return torch.stack(sums).sum() / (self.n_cf + self.n_sem), torch.stack(slots)

    def score_loss(self, folded: Folded, columns: Columns) -> Tensor:
        """One softmax over the slots' sum, the score that is ranked by at beta = 1/2, summed over the prefixes, ()."""
        user = user_row(folded)
        cf = user.cf
        if self.training and self.recipe.cf_score_dropout:  # as for a cold item, the semantic slots must carry it alone
            cf = cf * (torch.rand(len(cf), 1, device=cf.device) >= self.recipe.cf_score_dropout)  # (M, sum(E))
        rows = torch.cat([cf, user.sem], dim=1)  # (M, sum(E) + H or + H + F)
        tables = [*columns.cf, *(t for t in (columns.codes, columns.text) if t is not None)]
        table = torch.cat([t.to(rows.dtype) for t in tables], dim=1)  # (C, sum(E) + H or + H + F)
        first = user.cf.shape[1]
        trained = slice(
            first, first + (0 if columns.codes is None else columns.codes.shape[1])
        )  # the others are frozen
        return catalogue_cross_entropy(rows, table, columns.target, trained=trained, log_share=columns.log_share)[0]

    def index(self) -> Index:
        """The catalogue ready to be scored; valid until a weight changes."""
        return self.index_of(self.codes())

    def index_of(self, codes: Tensor | None) -> Index:
        """The index from trunk codes (N, H) that are there already."""
        cf = torch.cat(self.cf, dim=1) if self.n_cf else self.text.new_zeros(self.text.shape[0], 0)  # (N, sum(E))
        if codes is None:
            return Index(cf, cf.new_zeros(cf.shape[0], 0), cf.new_zeros(cf.shape[0], 0))
        raw = self.text if self.recipe.memory else cf.new_zeros(cf.shape[0], 0)  # (N, F) or (N, 0)
        sem = torch.cat([codes, raw.to(codes.dtype)], dim=1)  # (N, H or H + F)
        return Index(cf, sem, codes)

    def read(self, batch: Batch, index: Index) -> UserRow:
        """Histories in, the users' rows of the index out: what evaluation and serving need."""
        return user_row(self.forward(batch, index.codes if self.n_sem else None).folded)

    def parts(self, batch: Batch, index: Index, items: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What each slot and each memory adds to the two scores of some items, before beta weighs them.

        Args:
            batch: see `Batch`; one prefix a user.
            index: from `index()`.
            items: (B, k) int64 item ids.

        Returns the parts of the CF score and those of the semantic score, name -> (B, k) float.
        """
        folded, _ = self.answer(batch, index.codes if self.n_sem else None)
        cf, sem = {}, {}
        for c, (answer, table) in enumerate(zip(folded.cf, self.cf, strict=True)):
            cf[f"cf_{c}"] = torch.einsum("be,bke->bk", answer, table[items])  # (B, k)
            if self.recipe.memory:
                remembered = self.cf_memory[c](batch, table)  # (B, E)
                cf[f"memory_cf_{c}"] = torch.einsum("be,bke->bk", remembered, table[items])  # (B, k)
        if folded.sem is not None:
            width = index.codes.shape[1]  # H
            codes, raw = index.sem[items].tensor_split([width], dim=2)  # (B, k, H), (B, k, 0 or F)
            slots = torch.einsum("bsh,bkh->sbk", folded.sem, codes)  # (n_sem, B, k)
            sem = {f"sem_{k}": part for k, part in enumerate(slots)}
            if self.recipe.memory and self.text_memory is not None:
                remembered = self.text_memory(batch, self.text)  # (B, F)
                sem["memory_text"] = torch.einsum("bf,bkf->bk", remembered, raw)  # (B, k)
        return cf, sem


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
