"""SETRec in one forward pass: read this file first. It is written in the order of the data.

    histories -> item tokens -> backbone -> K query outputs a prefix -> projected -> loss | scores of the catalogue
                 tokens.py      backbones/                              grounding.py  loss.py

The letters of the shape comments are defined in schemas.py.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from setrec.backbones.base import Backbone
from setrec.data.catalogue import Catalogue
from setrec.errors import ConfigError
from setrec.layers.grounding import Index, ProjectedQueries, UserVector, project_queries, user_vector
from setrec.layers.loss import catalogue_cross_entropy
from setrec.layers.memory import Memory
from setrec.layers.negatives import Negatives, SoftmaxItems
from setrec.layers.tokens import ItemTokens
from setrec.schemas import Batch, mask_of

CODE_BLOCK = 1 << 16  # items encoded at a time for an index, since the trunk's hidden layers need much memory


class ForwardOutput(NamedTuple):
    """What one forward pass computes for the M real prefixes of a batch."""

    projected: ProjectedQueries  # the query outputs at widths E and H
    tokens: Tensor  # (U, K, D) float, the tokens of the batch's distinct items


class SoftmaxTables(NamedTuple):
    """The item side of the loss: C items, the whole catalogue or a part of it; see `SoftmaxItems`."""

    cf: list[Tensor]  # n_cf of (C, E) float
    codes: Tensor | None  # (C, H) float
    text: Tensor | None  # (C, F) float: raw text vectors, where the model has a memory of them
    target: Tensor  # (M,) int64: the row of every prefix's target
    log_q: Tensor | None  # (C,) float, subtracted from the logits


class LossSums(NamedTuple):
    """The loss of a batch as sums, so that any number of batches and processes can be averaged exactly."""

    slots: (
        Tensor  # (K,) float32: cross-entropy of each slot, summed over the M prefixes; no gradient; NaN if not computed
    )
    ranking: Tensor  # () float32: the cross-entropy that is trained, summed over the M prefixes; with gradient
    reconstruction: Tensor  # () float32: squared error of the history items' text vectors, summed over all prefixes
    n_prefix: Tensor  # () float32: M
    n_reconstructed: Tensor  # () float32: history items, summed over all prefixes


@dataclass(frozen=True)
class Recipe:
    """The options of the method. The defaults are the paper's.

    Args:
        n_sem: Semantic slots of an item; 0: collaborative slots only (paper: 4 for T5, 6 for Qwen).
        n_cf: Collaborative slots of an item, one for each CF matrix of the data; 0: semantic slots only (paper: 1).
        bottleneck: Width H of the semantic autoencoder's bottleneck (paper: 128).
        trunk: Widths of the layers between the text vector and the bottleneck (paper: 512, 256).
        missing_cf: CF vector of items absent from training: as_is, the vector in the file (paper); zero, a zero vector.
        objective: What the cross-entropy is taken of: slots, each slot alone, then the mean (paper); score, the sum of all
            slots, by which items are ranked.
        negatives: Items in the softmax of the loss: all (paper); warm, only items that can be a target.
        sampled: Items drawn for the softmax of every batch, besides its targets, with the logQ correction; null: the whole
            catalogue (paper). For very large catalogues, see docs/scaling.md.
        sampling: How these items are drawn: uniform; popularity, in proportion to the count in training to the power 0.75.
        cf_dropout: Probability of hiding the CF vectors of a history item in training, so that the model learns to read items
            without a CF vector (paper: 0).
        cf_score_dropout: Probability of scoring a prefix by the semantic slots alone in training, so that they learn to rank
            cold items (paper: 0). Needs objective score.
        memory: Add a weighted sum of the history's own CF and text vectors to the query outputs; the weights are learned and
            depend on age (paper: false). Needs objective score.
        neighbours: Add item graphs to the score: neighbours of the last items by co-occurrence and by text, what comes next,
            and how often items occurred lately, with weights chosen on validation; cold items by text alone (paper: false). See
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
        catalogue: The items; their vectors become buffers, which are not part of checkpoints.
        backbone: Reads the histories; its layers are built here if they are not yet.
        recipe: The options of the method.
        targets: (N,) bool, the items that can be a target in training; None: the warm ones.

    Raises:
        ConfigError: options that don't go together, or slots that the data has no vectors for.
    """

    def __init__(self, catalogue: Catalogue, backbone: Backbone, recipe: Recipe, targets: Tensor | None = None) -> None:
        super().__init__()
        check_recipe(recipe, catalogue)
        if not backbone.built:
            backbone.build()
        self.backbone = backbone
        self.recipe = recipe
        self.n_cf, self.n_sem = recipe.n_cf, recipe.n_sem
        matrices = zip(catalogue.cf[: self.n_cf], catalogue.present[: self.n_cf], strict=True)
        for c, (vectors, present) in enumerate(matrices):
            blocks = zip(vectors.split(CODE_BLOCK), present.split(CODE_BLOCK), strict=True)
            if recipe.missing_cf == "zero" and any(rows[~there].any() for rows, there in blocks):
                vectors = vectors * present[:, None]  # (N, E); else not copied: it may be a memory-mapped file
            self.register_buffer(f"cf_{c}", vectors, persistent=False)
        text = catalogue.text if self.n_sem and catalogue.text is not None else torch.zeros(catalogue.n_items, 0)
        self.text: Tensor
        self.register_buffer("text", text, persistent=False)  # (N, F)
        self.negatives = self.negatives_for(catalogue, targets)
        cf_widths = [table.shape[1] for table in self.cf]
        self.tokens = ItemTokens(
            cf_widths, self.text.shape[1], self.n_sem, backbone.width, recipe.bottleneck, list(recipe.trunk)
        )
        self.queries = nn.Parameter(backbone.query_std * torch.randn(self.n_cf + self.n_sem, backbone.width))  # (K, D)
        if recipe.memory:
            self.cf_memory = nn.ModuleList(Memory(max_age=50, scale=1.0) for _ in cf_widths)
            self.text_memory = Memory(max_age=50, scale=3.0) if self.n_sem else None

    def negatives_for(self, catalogue: Catalogue, targets: Tensor | None) -> Negatives:
        """What chooses the items of the softmax. targets: see `SETRec`."""
        recipe = self.recipe
        targets = catalogue.warm if targets is None else targets  # (N,)
        return Negatives(targets, catalogue.count, recipe.negatives, recipe.sampled, recipe.sampling)

    @property
    def cf(self) -> list[Tensor]:
        """The CF tables, n_cf of (N, E_c)."""
        return [self.get_buffer(f"cf_{c}") for c in range(self.n_cf)]

    def codes(self) -> Tensor | None:
        """The trunk codes of the whole catalogue, (N, H); None without semantic slots."""
        if not self.n_sem:
            return None
        if torch.is_grad_enabled():
            return self.tokens.encode(self.text)  # (N, H)
        return torch.cat([self.tokens.encode(block) for block in self.text.split(CODE_BLOCK)])  # (N, H)

    # --------------------------------------------------------------------------------- histories -> projected queries
    def encode_histories(self, batch: Batch, codes: Tensor | None, distinct: Tensor | None = None) -> ForwardOutput:
        """Item tokens, backbone, projection; without memories. Arguments: see `forward`."""
        if distinct is None and codes is not None:
            distinct = codes[batch.unique]  # (U, H)
        cf = [table[batch.unique] for table in self.cf]  # n_cf of (U, E)
        if self.training and self.recipe.cf_dropout:
            keep = torch.rand(len(batch.unique), 1, device=batch.unique.device) >= self.recipe.cf_dropout  # (U, 1)
            cf = [vectors * keep for vectors in cf]  # n_cf of (U, E)
        tokens = self.tokens(cf, distinct)  # (U, K, D)
        items = nn.functional.embedding(batch.position, tokens.flatten(1)).unflatten(-1, tokens.shape[1:])  # (B,L,K,D)
        real = mask_of(batch.history)  # (B, L)
        outputs = self.backbone(items, real, batch.prefix, self.queries)  # (B, P, K, D)
        outputs = outputs.flatten(0, 1)[batch.valid]  # (M, K, D)
        return ForwardOutput(project_queries(outputs, self.tokens), tokens)

    def add_memory(self, projected: ProjectedQueries, batch: Batch) -> ProjectedQueries:
        """Add the memories of the history to the projected queries, where the recipe has them."""
        if not self.recipe.memory:
            return projected
        memories = zip(projected.cf, self.cf_memory, self.cf, strict=True)
        cf = [query + memory(batch, table) for query, memory, table in memories]  # n_cf of (M, E)
        text = self.text_memory(batch, self.text) if self.text_memory else None  # (M, F)
        return ProjectedQueries(cf, projected.sem, text)

    def forward(self, batch: Batch, codes: Tensor | None, distinct: Tensor | None = None) -> ForwardOutput:
        """Read the histories of a batch.

        Args:
            batch: See `Batch`.
            codes: (N, H) from `codes()`; None without semantic slots.
            distinct: (U, H), the codes of the batch's distinct items, in place of `codes`.
        """
        output = self.encode_histories(batch, codes, distinct)
        return output._replace(projected=self.add_memory(output.projected, batch))

    # ------------------------------------------------------------------------------------- projected queries -> loss
    def losses(self, batch: Batch, each_slot: bool = True) -> LossSums:
        """The cross-entropy over the items, and the reconstruction of the history (paper, equations 7 to 9).

        Args:
            batch: See `Batch`.
            each_slot: With objective `score`, compute every slot's own loss too, for the log; it costs a little.
        """
        target = batch.target.flatten()[batch.valid]  # (M,)
        distinct, tables = self.softmax_tables(batch, self.negatives(target))  # (U, H)
        output = self.forward(batch, None, distinct)
        n_prefix = target.new_full((), len(target), dtype=torch.float32)  # ()
        if self.recipe.objective == "slots":
            ranking, slots = self.slot_losses(output.projected, tables)  # (), (K,)
        else:
            ranking = self.score_loss(output.projected, tables)  # ()
            slots = torch.full((self.n_cf + self.n_sem,), torch.nan)  # (K,)
            if each_slot:
                with torch.no_grad():
                    slots = self.slot_losses(output.projected, tables)[1]  # (K,)
        reconstruction, n_reconstructed = n_prefix.new_zeros(()), n_prefix.new_zeros(())
        if distinct is not None:
            error = self.tokens.reconstruct(output.tokens) - self.text[batch.unique]  # (U, F)
            reconstruction = (error.square().mean(dim=1) * batch.weight).sum()  # ()
            n_reconstructed = batch.weight.sum()  # ()
        return LossSums(slots, ranking, reconstruction, n_prefix, n_reconstructed)

    def softmax_tables(self, batch: Batch, chosen: SoftmaxItems) -> tuple[Tensor | None, SoftmaxTables]:
        """The trunk codes of the batch's distinct items, (U, H), and the item side of the loss; one pass makes both.

        With a sample of the catalogue, only the sample and the batch's items go through the trunk.
        """
        items = chosen.items  # (C,)
        distinct, codes = None, None
        if self.n_sem and self.recipe.sampled is not None and items is not None:
            both = self.tokens.encode(self.text[torch.cat([batch.unique, items])])  # (U + C, H)
            distinct, codes = both.split([len(batch.unique), len(items)])  # (U, H), (C, H)
        elif self.n_sem:
            every = self.tokens.encode(self.text)  # (N, H)
            distinct = every[batch.unique]  # (U, H)
            codes = every if items is None else every[items]  # (C, H)
        cf = [(table if items is None else table[items]).float() for table in self.cf]  # n_cf of (C, E)
        text = None
        if self.recipe.memory and self.n_sem:
            text = (self.text if items is None else self.text[items]).float()  # (C, F)
        return distinct, SoftmaxTables(cf, codes, text, chosen.target, chosen.log_q)

    def slot_losses(self, projected: ProjectedQueries, tables: SoftmaxTables) -> tuple[Tensor, Tensor]:
        """The paper's loss: a softmax over the items for every slot alone.

        Returns:
            The mean over the slots, summed over the prefixes, (); and every slot's sum, (K,).
        """
        sums, slots = [], []
        for table, queries in zip(tables.cf, projected.cf, strict=True):
            total, each = catalogue_cross_entropy(queries, table, tables.target, log_q=tables.log_q)  # (), (M,)
            sums.append(total)
            slots.append(each.sum())
        if tables.codes is not None and projected.sem is not None:
            queries = projected.sem.flatten(0, 1)  # (M * n_sem, H)
            target = tables.target.repeat_interleave(self.n_sem)  # (M * n_sem,)
            total, each = catalogue_cross_entropy(queries, tables.codes, target, log_q=tables.log_q)  # (), (M * n_sem,)
            sums.append(total)
            slots += list(each.view(-1, self.n_sem).sum(dim=0))  # n_sem of ()
        return torch.stack(sums).sum() / (self.n_cf + self.n_sem), torch.stack(slots)  # (), (K,)

    def score_loss(self, projected: ProjectedQueries, tables: SoftmaxTables) -> Tensor:
        """One softmax over the sum of all slots, twice the score at beta = 1/2; summed over the prefixes, ()."""
        user = user_vector(projected)
        cf = user.cf  # (M, sum(E))
        if self.training and self.recipe.cf_score_dropout:  # the semantic slots learn to rank alone, as for cold items
            cf = cf * (torch.rand(len(cf), 1, device=cf.device) >= self.recipe.cf_score_dropout)  # (M, sum(E))
        queries = torch.cat([cf, user.sem], dim=1)  # (M, sum(E) + H or + H + F)
        parts = [*tables.cf, *(t for t in (tables.codes, tables.text) if t is not None)]
        table = torch.cat([t.to(queries.dtype) for t in parts], dim=1)  # (C, sum(E) + H or + H + F)
        start = cf.shape[1]
        trained = slice(start, start + (0 if tables.codes is None else tables.codes.shape[1]))  # CF and text are frozen
        return catalogue_cross_entropy(queries, table, tables.target, trained=trained, log_q=tables.log_q)[0]  # ()

    # ------------------------------------------------------------------------------------ projected queries -> scores
    def index(self) -> Index:
        """The catalogue, ready to be scored; valid until a weight changes."""
        return self.index_of(self.codes())

    def index_of(self, codes: Tensor | None) -> Index:
        """The index from trunk codes, (N, H), that are computed already."""
        tables = self.cf or [self.text[:, :0]]
        cf = torch.cat([table.float() for table in tables], dim=1)  # (N, sum(E))
        if codes is None:
            return Index(cf, cf.new_zeros(cf.shape[0], 0), cf.new_zeros(cf.shape[0], 0))
        raw = self.text if self.recipe.memory else cf.new_zeros(cf.shape[0], 0)  # (N, F) or (N, 0)
        sem = torch.cat([codes, raw.to(codes.dtype)], dim=1)  # (N, H or H + F)
        return Index(cf, sem, codes)

    def user_vectors(self, batch: Batch, index: Index) -> UserVector:
        """The vectors that histories are scored with against the index, (M, sum(E)) and (M, H or H + F)."""
        return user_vector(self.forward(batch, index.codes if self.n_sem else None).projected)

    def tokens_of(self, items: Tensor, index: Index) -> Tensor:
        """The tokens of some items, (any) int64 item ids -> (any, K, D) float."""
        flat = items.flatten()  # (n,)
        codes = index.codes[flat] if self.n_sem else None  # (n, H)
        tokens: Tensor = self.tokens([table[flat] for table in self.cf], codes)  # (n, K, D)
        return tokens.view(*items.shape, *tokens.shape[1:])  # (any, K, D)

    def user_vectors_of(self, outputs: Tensor, batch: Batch) -> UserVector:
        """What `user_vectors` makes of the backbone's query outputs, (M, K, D), of a batch."""
        return user_vector(self.add_memory(project_queries(outputs, self.tokens), batch))

    def parts(
        self, batch: Batch, index: Index, items: Tensor, outputs: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What every slot and every memory adds to the CF score and to the semantic score of some items, without beta.

        Args:
            batch: See `Batch`; one prefix a user.
            index: From `index()`.
            items: (B, k) int64 item ids.
            outputs: (B, K, D) float, the query outputs of the histories, where they are known.

        Returns:
            The parts of the CF score and those of the semantic score, each name -> (B, k) float.
        """
        if outputs is None:
            projected = self.encode_histories(batch, index.codes if self.n_sem else None).projected
        else:
            projected = project_queries(outputs, self.tokens)
        cf, sem = {}, {}
        for c, (query, table) in enumerate(zip(projected.cf, self.cf, strict=True)):
            cf[f"cf_{c}"] = torch.einsum("be,bke->bk", query, table[items].to(query.dtype))  # (B, k)
            if self.recipe.memory:
                memory = self.cf_memory[c](batch, table)  # (B, E)
                cf[f"memory_cf_{c}"] = torch.einsum("be,bke->bk", memory, table[items].to(memory.dtype))  # (B, k)
        if projected.sem is not None:
            width = index.codes.shape[1]  # H
            codes, raw = index.sem[items].tensor_split([width], dim=2)  # (B, k, H), (B, k, 0 or F)
            slots = torch.einsum("bsh,bkh->sbk", projected.sem, codes)  # (n_sem, B, k)
            sem = {f"sem_{k}": part for k, part in enumerate(slots)}
            if self.recipe.memory and self.text_memory is not None:
                memory = self.text_memory(batch, self.text)  # (B, F)
                sem["memory_text"] = torch.einsum("bf,bkf->bk", memory, raw)  # (B, k)
        return cf, sem


def check_recipe(recipe: Recipe, catalogue: Catalogue) -> None:
    """Check that the options go together, and that the data has vectors for the slots.

    Raises:
        ConfigError: they don't, or it has not.
    """
    n_cf, n_sem = recipe.n_cf, recipe.n_sem
    if n_cf + n_sem < 1 or min(n_cf, n_sem) < 0:
        raise ConfigError(f"n_cf is {n_cf} and n_sem is {n_sem}: an item needs at least one slot, and none below 0.")
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
    if recipe.memory and recipe.objective == "slots":
        raise ConfigError("--model.memory true has no loss of its own for each slot: add --model.objective score.")
    if recipe.cf_score_dropout and recipe.objective == "slots":
        raise ConfigError("--model.cf_score_dropout works on the sum of the slots: add --model.objective score.")
    if recipe.sampled is not None and recipe.sampled < 1:
        raise ConfigError(f"sampled is {recipe.sampled}: draw at least 1 item, or null for the whole catalogue.")
