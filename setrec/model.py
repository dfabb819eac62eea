"""SETRec in one forward pass: read this file first. It is written in the order of the data.

    histories -> item tokens -> backbone -> K query outputs a prefix -> projected -> loss | scores of the catalogue
                 tokens.py      backbones/                              grounding.py  loss.py

The letters of the shape comments are defined in schemas.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from setrec.backbones.base import Backbone
from setrec.data.catalogue import Catalogue
from setrec.layers.grounding import (
    Index,
    ProjectedQueries,
    UserVector,
    by_part,
    project_queries,
    source_queries,
    user_vector,
)
from setrec.layers.loss import catalogue_cross_entropy
from setrec.layers.memory import Memory
from setrec.layers.negatives import Negatives, SoftmaxItems
from setrec.layers.tokens import ItemTokens, Source, source_part
from setrec.recipe import Recipe, check_recipe, tokens_of
from setrec.schemas import Batch, mask_of

CODE_BLOCK = 1 << 16  # items encoded at a time for an index, since the trunk's hidden layers need much memory


class ForwardOutput(NamedTuple):
    """What one forward pass computes for the M real prefixes of a batch."""

    projected: ProjectedQueries  # the query outputs at the widths of the codes
    tokens: Tensor  # (U, K, D) float, the tokens of the batch's distinct items


class SoftmaxTables(NamedTuple):
    """The item side of the loss: C items, the whole catalogue or a part of it; see `SoftmaxItems`."""

    codes: list[Tensor]  # of every source, (C, W or H) float
    raw: list[
        Tensor | None
    ]  # of every source, (C, W) float: vectors that are not its code, where the model has a memory of them
    target: Tensor  # (M, A) int64: the rows of every prefix's targets, padded
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
        self.chosen_tokens = tokens_of(recipe, catalogue)
        for name in self.chosen_tokens:
            self.register_buffer(f"source_{name}", catalogue.vectors[name].table, persistent=False)  # (N, W)
        self.negatives = self.negatives_for(catalogue, targets)
        sources = [Source(f"cf_{c}", "cf", table.shape[1], 1, False) for c, table in enumerate(self.cf)]
        if self.n_sem:
            sources.append(Source("text", "semantic", self.text.shape[1], self.n_sem, True))
        sources += [
            Source(name, source_part(name), self.table(name).shape[1], one.slots, one.tokenizer == "autoencoder")
            for name, one in self.chosen_tokens.items()
        ]
        self.tokens = ItemTokens(sources, backbone.width, recipe.bottleneck, list(recipe.trunk))
        n_slots = sum(source.slots for source in sources)  # K
        self.queries = nn.Parameter(backbone.query_std * torch.randn(n_slots, backbone.width))  # (K, D)
        if recipe.memory:
            memories = [Memory(max_age=50, scale=3.0 if source.autoencoder else 1.0) for source in sources]
            self.cf_memory = nn.ModuleList(memories[: self.n_cf])
            self.text_memory = memories[self.n_cf] if self.n_sem else None
            more = zip(sources, memories, strict=True)
            self.source_memory = nn.ModuleDict({of.name: one for of, one in more if of.name in self.chosen_tokens})

    def negatives_for(self, catalogue: Catalogue, targets: Tensor | None) -> Negatives:
        """What chooses the items of the softmax. targets: see `SETRec`."""
        recipe = self.recipe
        targets = catalogue.warm if targets is None else targets  # (N,)
        return Negatives(targets, catalogue.count, recipe.negatives, recipe.sampled, recipe.sampling)

    @property
    def cf(self) -> list[Tensor]:
        """The CF tables, n_cf of (N, E_c)."""
        return [self.get_buffer(f"cf_{c}") for c in range(self.n_cf)]

    def table(self, name: str) -> Tensor:
        """The vectors of a source of --data.vectors, (N, W)."""
        return self.get_buffer(f"source_{name}")

    @property
    def tables(self) -> list[Tensor]:
        """The vectors of every source of tokens, (N, W) each."""
        text = [self.text] if self.n_sem else []
        return [*self.cf, *text, *(self.table(name) for name in self.chosen_tokens)]

    @property
    def memories(self) -> list[Memory]:
        """The memory of every source, where the recipe has them."""
        text = [self.text_memory] if self.text_memory is not None else []
        return [*self.cf_memory, *text, *self.source_memory.values()]

    @property
    def slot_names(self) -> list[str]:
        """A name for each of the K slots: cf_0, ..., sem_0, ..., image_0, ..."""
        names = []
        for source in self.tokens.sources:
            stem = {"cf": source.name, "semantic": "sem"}.get(source.part, source.name)
            names += [stem] if source.part == "cf" else [f"{stem}_{k}" for k in range(source.slots)]
        return names

    def codes(self) -> list[Tensor]:
        """The codes of the whole catalogue, (N, W or H) of every source."""
        found = []
        for s, table in enumerate(self.tables):
            if torch.is_grad_enabled() or not self.tokens.sources[s].autoencoder:
                found.append(self.tokens.encode(s, table))  # (N, H)
            else:
                found.append(torch.cat([self.tokens.encode(s, block) for block in table.split(CODE_BLOCK)]))  # (N, H)
        return found

    # --------------------------------------------------------------------------------- histories -> projected queries
    def encode_histories(
        self, batch: Batch, codes: list[Tensor] | None, distinct: list[Tensor] | None = None
    ) -> ForwardOutput:
        """Item tokens, backbone, projection; without memories. Arguments: see `forward`."""
        if distinct is None:
            assert codes is not None, "one of the two is given"
            distinct = [table[batch.unique] for table in codes]  # of (U, C)
        if self.training and self.recipe.cf_dropout:
            keep = torch.rand(len(batch.unique), 1, device=batch.unique.device) >= self.recipe.cf_dropout  # (U, 1)
            distinct = [*(vectors * keep for vectors in distinct[: self.n_cf]), *distinct[self.n_cf :]]  # of (U, C)
        tokens = self.tokens(distinct)  # (U, K, D)
        items = nn.functional.embedding(batch.position, tokens.flatten(1)).unflatten(-1, tokens.shape[1:])  # (B,L,K,D)
        real = mask_of(batch.history)  # (B, L)
        outputs = self.backbone(items, real, batch.prefix, self.queries)  # (B, P, K, D)
        outputs = outputs.flatten(0, 1)[batch.valid]  # (M, K, D)
        return ForwardOutput(project_queries(outputs, self.tokens), tokens)

    def add_memory(self, projected: ProjectedQueries, batch: Batch) -> ProjectedQueries:
        """Add the memories of the history to the projected queries, where the recipe has them."""
        if not self.recipe.memory:
            return projected
        pairs = zip(self.memories, self.tables, strict=True)
        return projected._replace(memory=[memory(batch, table) for memory, table in pairs])  # of (M, W)

    def forward(self, batch: Batch, codes: list[Tensor] | None, distinct: list[Tensor] | None = None) -> ForwardOutput:
        """Read the histories of a batch.

        Args:
            batch: See `Batch`.
            codes: (N, C) of every source, from `codes()`.
            distinct: (U, C) of every source, the codes of the batch's distinct items, in place of `codes`.
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
        target = batch.target.flatten(0, 1)[batch.valid]  # (M, A)
        # all targets of a row stand side by side in its user's history
        most = min(target.numel(), len(target) + len(batch.prefix) * (target.shape[1] - 1))
        distinct, tables = self.softmax_tables(batch, self.negatives(target, most))  # of (U, C)
        output = self.forward(batch, None, distinct)
        n_prefix = target.new_full((), len(target), dtype=torch.float32)  # ()
        if self.recipe.objective == "slots":
            ranking, slots = self.slot_losses(output.projected, tables)  # (), (K,)
        else:
            ranking = self.score_loss(output.projected, tables)  # ()
            slots = torch.full((len(self.queries),), torch.nan)  # (K,)
            if each_slot:
                with torch.no_grad():
                    slots = self.slot_losses(output.projected, tables)[1]  # (K,)
        reconstruction, n_reconstructed = n_prefix.new_zeros(()), n_prefix.new_zeros(())
        for s, source in enumerate(self.tokens.sources):
            if source.autoencoder:
                error = self.tokens.reconstruct(s, output.tokens) - self.tables[s][batch.unique]  # (U, W)
                reconstruction = reconstruction + (error.square().mean(dim=1) * batch.weight).sum()  # ()
                n_reconstructed = batch.weight.sum()  # ()
        return LossSums(slots, ranking, reconstruction, n_prefix, n_reconstructed)

    def softmax_tables(self, batch: Batch, chosen: SoftmaxItems) -> tuple[list[Tensor], SoftmaxTables]:
        """The codes of the batch's distinct items, (U, C) of every source, and the item side of the loss; one pass makes both.

        With a sample of the catalogue, only the sample and the batch's items go through the trunk.
        """
        items = chosen.items  # (C,)
        distinct, codes, raw = [], [], list[Tensor | None]()
        for s, (source, table) in enumerate(zip(self.tokens.sources, self.tables, strict=True)):
            vectors = table if items is None else table[items]  # (C, W)
            raw.append(vectors.float() if self.recipe.memory and source.autoencoder else None)  # (C, W)
            if not source.autoencoder:
                distinct.append(table[batch.unique])  # (U, W)
                codes.append(vectors.float())  # (C, W)
            elif self.recipe.sampled is not None and items is not None:
                both = self.tokens.encode(s, table[torch.cat([batch.unique, items])])  # (U + C, H)
                here, there = both.split([len(batch.unique), len(items)])  # (U, H), (C, H)
                distinct.append(here)
                codes.append(there)
            else:
                every = self.tokens.encode(s, table)  # (N, H)
                distinct.append(every[batch.unique])  # (U, H)
                codes.append(every if items is None else every[items])  # (C, H)
        return distinct, SoftmaxTables(codes, raw, chosen.target, chosen.log_q)

    def slot_losses(self, projected: ProjectedQueries, tables: SoftmaxTables) -> tuple[Tensor, Tensor]:
        """The paper's loss: a softmax over the items for every slot alone.

        Returns:
            The mean over the slots, summed over the prefixes, (); and every slot's sum, (K,).
        """
        sums, slots = [], []
        for s, (table, queries) in enumerate(zip(tables.codes, projected.slots, strict=True)):
            if projected.memory is not None and not self.tokens.sources[s].autoencoder:  # of the same vectors
                queries = queries + projected.memory[s][:, None]  # (M, n, W)
            n = queries.shape[1]
            target = tables.target.repeat_interleave(n, dim=0)  # (M * n, A)
            total, each = catalogue_cross_entropy(
                queries.flatten(0, 1), table, target, log_q=tables.log_q
            )  # (), (M*n,)
            sums.append(total)
            slots += list(each.view(-1, n).sum(dim=0))  # n of ()
        return torch.stack(sums).sum() / len(slots), torch.stack(slots)  # (), (K,)

    def score_loss(self, projected: ProjectedQueries, tables: SoftmaxTables) -> Tensor:
        """One softmax over the sum of all slots, twice the score at beta = 1/2; summed over the prefixes, ()."""
        frozen: list[tuple[Tensor, Tensor]] = []  # pairs of queries (M, any) and a table (C, any)
        learned: list[tuple[Tensor, Tensor]] = []
        memories: list[tuple[Tensor, Tensor]] = []
        rows = zip(source_queries(projected, self.tokens), self.tokens.sources, tables.codes, tables.raw, strict=True)
        for (query, memory), source, code, raw in rows:
            (learned if source.autoencoder else frozen).append((query, code))
            if memory is not None and raw is not None:
                memories.append((memory, raw))
        others = len(self.tokens.sources) > self.n_cf
        if self.training and self.recipe.cf_score_dropout and others:  # they learn to rank alone, as for cold items
            some = projected.slots[0]  # (M, n, C)
            keep = torch.rand(len(some), 1, device=some.device) >= self.recipe.cf_score_dropout  # (M, 1)
            frozen = [(q * keep, table) for q, table in frozen[: self.n_cf]] + frozen[self.n_cf :]
        pairs = frozen + learned + memories
        queries = torch.cat([query for query, _ in pairs], dim=1)  # (M, width)
        table = torch.cat([table.to(queries.dtype) for _, table in pairs], dim=1)  # (C, width)
        start = sum(table.shape[1] for _, table in frozen)
        trained = slice(start, start + sum(table.shape[1] for _, table in learned))  # raw vectors are frozen
        return catalogue_cross_entropy(queries, table, tables.target, trained=trained, log_q=tables.log_q)[0]  # ()

    # ------------------------------------------------------------------------------------ projected queries -> scores
    def index(self) -> Index:
        """The catalogue, ready to be scored; valid until a weight changes."""
        return self.index_of(self.codes())

    def index_of(self, codes: list[Tensor]) -> Index:
        """The index from codes, (N, C) of every source, that are computed already."""
        pieces = [
            [code if source.autoencoder else code.float()]
            for source, code in zip(self.tokens.sources, codes, strict=True)
        ]
        if self.recipe.memory:
            for piece, source, table in zip(pieces, self.tokens.sources, self.tables, strict=True):
                piece += [table] if source.autoencoder else []
        return Index(by_part(pieces, self.tokens), codes)

    def user_vectors(self, batch: Batch, index: Index) -> UserVector:
        """The vectors that histories are scored with against the index, (M, width) for every part."""
        return user_vector(self.forward(batch, index.codes).projected, self.tokens)

    def tokens_of(self, items: Tensor, index: Index) -> Tensor:
        """The tokens of some items, (any) int64 item ids -> (any, K, D) float."""
        flat = items.flatten()  # (n,)
        tokens: Tensor = self.tokens([codes[flat] for codes in index.codes])  # (n, K, D)
        return tokens.view(*items.shape, *tokens.shape[1:])  # (any, K, D)

    def user_vectors_of(self, outputs: Tensor, batch: Batch) -> UserVector:
        """What `user_vectors` makes of the backbone's query outputs, (M, K, D), of a batch."""
        return user_vector(self.add_memory(project_queries(outputs, self.tokens), batch), self.tokens)

    def parts(
        self, batch: Batch, index: Index, items: Tensor, outputs: Tensor | None = None
    ) -> list[tuple[str, str, Tensor]]:
        """What every slot and every memory adds to the score of some items, before it is weighed.

        Args:
            batch: See `Batch`; one prefix a user.
            index: From `index()`.
            items: (B, k) int64 item ids.
            outputs: (B, K, D) float, the query outputs of the histories, where they are known.

        Returns:
            (name, part of the score, (B, k) float) each. The slots of a further source are one, called as its part is.
        """
        if outputs is None:
            projected = self.encode_histories(batch, index.codes).projected
        else:
            projected = project_queries(outputs, self.tokens)
        memory = self.add_memory(projected, batch).memory  # of (B, W)
        found = []
        for s, (source, slots, codes) in enumerate(zip(self.tokens.sources, projected.slots, index.codes, strict=True)):
            of_items = codes[items].to(slots.dtype)  # (B, k, C)
            each = torch.einsum("bsc,bkc->sbk", slots, of_items)  # (n, B, k)
            if source.part in ("cf", "semantic"):
                names = [source.name] if source.part == "cf" else [f"sem_{k}" for k in range(len(each))]
                found += [(name, source.part, one) for name, one in zip(names, each, strict=True)]
            else:
                found.append((source.part, source.part, each.sum(dim=0)))  # (B, k)
            if memory is not None:
                raw = self.tables[s][items].to(memory[s].dtype)  # (B, k, W)
                add = torch.einsum("bw,bkw->bk", memory[s], raw)  # (B, k)
                name = f"memory_{source.name}" if source.part in ("cf", "semantic") else f"memory:{source.name}"
                found.append((name, source.part, add))
        return found
