"""T5 of any size as a backbone: its encoder reads the history under the set mask, its decoder reads the queries.

The blocks are transformers' own; this module passes them masks and position biases. It leaves out one part: queries that see
only themselves need no self-attention in the decoder, since a softmax over one key is 1.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, T5Config, T5Model
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerSelfAttention

from setrec.backbones.attention import NAME as ATTENTION
from setrec.backbones.attention import attend
from setrec.backbones.base import Backbone
from setrec.backbones.dropout import Dropout, replace_dropout
from setrec.backbones.masks import (
    additive,
    bidirectional_mask,
    history_mask,
    history_positions,
    new_tokens_see,
    queries_see,
)
from setrec.backbones.past import Past, rms_norm
from setrec.errors import ConfigError


class T5Shape(NamedTuple):
    """The sizes of a T5."""

    d_model: int
    d_kv: int
    d_ff: int
    layers: int
    heads: int


SHAPES = {
    "nano": T5Shape(d_model=32, d_kv=16, d_ff=64, layers=1, heads=2),
    "tiny": T5Shape(d_model=128, d_kv=32, d_ff=512, layers=2, heads=4),
    "small": T5Shape(d_model=512, d_kv=64, d_ff=2048, layers=6, heads=8),
    "base": T5Shape(d_model=768, d_kv=64, d_ff=3072, layers=12, heads=12),
    "large": T5Shape(d_model=1024, d_kv=64, d_ff=4096, layers=24, heads=16),
}


class T5Backbone(Backbone):
    """T5, pretrained or from random weights.

    Args:
        pretrained: A Hugging Face name or a local folder of a T5 (paper: google-t5/t5-small). None: random weights of `shape`.
        shape: Size of a T5 from random weights: nano (32 wide, for tests), tiny (128 wide, 2 + 2 layers, trains on two CPU cores),
            small, base, large (the published sizes). Not used with `pretrained`.
        mask: Which tokens a history token sees. set: the instruction, itself and earlier items (the paper's sparse mask).
            items: also the other slots of its own item. bidirectional: every history token, as in the released code; this
            shows later items to earlier prefixes, so it needs --data.prefix_parallel false.
        isolate_queries: True: a query never sees another query (the paper). False: the K queries of a prefix see each
            other in the decoder's self-attention, as they do in the released code.
        recency_bias: Add a learned bias for each head and age of an item (prefix length minus its place) to the queries'
            cross-attention, which otherwise can't tell the last item from the first. Off in the paper.
        max_recency: Ages above this share one bias; in items.
        dropout: Probability of dropout in every layer (paper: 0.1, T5's own). All prefixes of a row read the same history after
            dropout, so with --data.prefix_parallel true less dropout is better: docs/scaling.md.
        attention_dropout: Probability of dropout on attention weights (paper: 0.1, T5's own). 0 trains faster on a CPU. It is
            not applied between isolated queries, which attend to themselves only.
        instruction: Text before the history, tokenised with the pretrained tokenizer; without a tokenizer, see `n_prompt`.
        response: Text after the instruction. It stands before the items, so that its position doesn't depend on the length
            of the history.
        n_prompt: Learned tokens in place of the texts where there is no tokenizer; every token sees them. At least 1, because
            an empty history must see something.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        shape: Literal["nano", "tiny", "small", "base", "large"] = "tiny",
        mask: Literal["set", "items", "bidirectional"] = "set",
        isolate_queries: bool = True,
        recency_bias: bool = False,
        max_recency: int = 50,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        instruction: str = "What would the user be likely to purchase next after buying the following items?",
        response: str = "The user would purchase:",
        n_prompt: int = 1,
    ) -> None:
        super().__init__()
        if n_prompt < 1:
            raise ConfigError(f"n_prompt is {n_prompt}: give at least 1 token for an empty history to see.")
        self.pretrained = pretrained
        self.shape = shape
        self.mask = mask
        self.isolate_queries = isolate_queries
        self.recency_bias = recency_bias
        self.max_recency = max_recency
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.instruction = instruction
        self.response = response
        self.n_prompt = n_prompt
        self.reads_whole_row = mask == "bidirectional"
        self.query_std = 1.0  # T5 draws its embeddings with standard deviation 1

    def build(self) -> None:
        """Make the layers; see `Backbone.build`."""
        if self.saved_sizes is not None:
            model, prompt = self._copy(self.saved_sizes)
        else:
            model, prompt = self._load() if self.pretrained else self._draw()
        config = model.config
        self._sizes = {"config": config.to_dict(), "n_text": len(prompt)} if self.pretrained else None
        self.width = config.d_model
        self.prompt = nn.Parameter(prompt)  # (n_text, D)
        self.encoder = model.encoder.block
        self.encoder_norm = model.encoder.final_layer_norm
        self.decoder = model.decoder.block
        self.decoder_norm = model.decoder.final_layer_norm
        self.drop = Dropout(self.dropout)
        replace_dropout(self)
        for block in self.decoder:
            attention = block.get_submodule("layer.0.SelfAttention")
            assert isinstance(attention, T5Attention)
            if self.isolate_queries:  # never used, and plain DDP refuses parameters without gradients
                del attention.q, attention.k
            if attention.has_relative_attention_bias:  # queries have no order
                del attention.relative_attention_bias
                attention.has_relative_attention_bias = False
        for module in self.modules():
            if isinstance(module, T5Attention):
                module.dropout = self.attention_dropout
                module.config._attn_implementation = ATTENTION
        if self.recency_bias:
            self.recency = nn.Embedding(self.max_recency + 1, config.num_heads)
            nn.init.zeros_(self.recency.weight)
        self.train()  # from_pretrained returns eval(), and Lightning would keep it

    def sizes(self) -> dict[str, Any] | None:
        """The sizes of a pretrained T5; see `Backbone.sizes`."""
        return self._sizes

    def _copy(self, sizes: dict[str, Any]) -> tuple[T5Model, Tensor]:
        """Layers and a prompt, (n_text, D), of these sizes, for a checkpoint to fill."""
        config = T5Config.from_dict(sizes["config"] | {"vocab_size": 2})
        config._attn_implementation = "sdpa"
        return T5Model(config), torch.zeros(sizes["n_text"], config.d_model)  # (n_text, D)

    def _draw(self) -> tuple[T5Model, Tensor]:
        """Random weights of the named shape, and a random prompt, (n_prompt, D)."""
        size = SHAPES[self.shape]
        config = T5Config(
            vocab_size=2,  # items come as vectors: no word is looked up
            d_model=size.d_model,
            d_kv=size.d_kv,
            d_ff=size.d_ff,
            num_layers=size.layers,
            num_decoder_layers=size.layers,
            num_heads=size.heads,
            dropout_rate=self.dropout,
        )
        config._attn_implementation = "sdpa"
        return T5Model(config), torch.randn(self.n_prompt, size.d_model)  # (n_prompt, D)

    def _load(self) -> tuple[T5Model, Tensor]:
        """The pretrained weights in float32, and the embedded text, (n_text, D)."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.pretrained, trust_remote_code=False)
            model = T5Model.from_pretrained(
                self.pretrained, dtype=torch.float32, dropout_rate=self.dropout, attn_implementation="sdpa"
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The pretrained T5 {self.pretrained!r} is neither a folder here nor reachable on the model hub "
                f"({str(error).splitlines()[0]}). For random weights instead: --model.backbone.pretrained null "
                "(and --model.backbone.shape small)."
            ) from error
        words = tokenizer(f"{self.instruction} {self.response}", add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            return model, model.shared(words.input_ids[0]).clone()  # (n_text, D)

    def forward(self, items: Tensor, real: Tensor, prefix: Tensor, queries: Tensor) -> Tensor:
        """Compute the query outputs of every prefix; see `Backbone.forward`."""
        history = self._encode(items, real)  # (B, T, D)
        return self._decode(history, prefix, queries, n_items=items.shape[1], n_slots=items.shape[2])  # (B, P, K, D)

    def _encode(self, items: Tensor, real: Tensor) -> Tensor:
        """The encoder: items (B, L, K, D) and real (B, L) -> (B, T, D), the states of the text and of the items' tokens."""
        n_batch, n_items, n_slots, width = items.shape
        text = self.prompt.expand(n_batch, -1, -1)  # (B, n_text, D)
        x = torch.cat([text, items.reshape(n_batch, n_items * n_slots, width)], dim=1)  # (B, T, D)
        n_text = self.prompt.shape[0]
        if self.mask == "bidirectional":
            see = bidirectional_mask(n_text, n_slots, real)  # (B, T, T)
        else:
            see = history_mask(n_text, n_items, n_slots, x.device, own_item=self.mask == "items")[None]  # (1, T, T)
        position = history_positions(n_text, n_items, n_slots, x.device)  # (T,)
        mask = additive(see, x.dtype)[:, None]  # (1 or B, 1, T, T)
        first = self.encoder[0].get_submodule("layer.0.SelfAttention")
        assert isinstance(first, T5Attention)
        # T5's own bias for the positions 0, 1, 2 ..., read at our positions, which the slots of an item share
        bias = first.compute_bias(n_text + n_items, n_text + n_items, device=x.device)  # (1, heads, n_text+L, n_text+L)
        bias = bias[:, :, position][..., position].to(x.dtype)  # (1, heads, T, T)
        bias = bias + mask  # (1 or B, heads, T, T): added here once for all layers
        x = self.drop(x)
        for block in self.encoder:
            x, _, _ = block(x, position_bias=bias)  # (B, T, D)
        states: Tensor = self.drop(self.encoder_norm(x))  # (B, T, D)
        return states

    def _decode(self, history: Tensor, prefix: Tensor, queries: Tensor, n_items: int, n_slots: int) -> Tensor:
        """The decoder: history (B, T, D), prefix (B, P) and queries (K, D) -> (B, P, K, D)."""
        n_batch, n_prefix = prefix.shape
        n_queries, width = queries.shape
        see = queries_see(prefix, self.prompt.shape[0], n_items, n_slots)  # (B, P, T)
        bias = additive(see, history.dtype)[:, None]  # (B, 1, P, T)
        if self.recency_bias:
            bias = bias + self._recency(prefix, n_items, n_slots)  # (B, heads, P, T)
        bias = bias.repeat_interleave(n_queries, dim=2)  # (B, 1 or heads, P * K, T)
        x: Tensor = queries.to(history.dtype).expand(n_batch, n_prefix, n_queries, width)  # (B, P, K, D)
        x = self.drop(x.reshape(n_batch, n_prefix * n_queries, width))  # (B, P * K, D)
        for block in self.decoder:
            self_attention, cross_attention, feed_forward = (block.get_submodule(f"layer.{i}") for i in range(3))
            assert isinstance(self_attention, T5LayerSelfAttention)
            x = self._self_attention(self_attention, x, n_queries)  # (B, P * K, D)
            x, _, _ = cross_attention(x, key_value_states=history, position_bias=bias)  # (B, P * K, D)
            x = feed_forward(x)  # (B, P * K, D)
        x = self.drop(self.decoder_norm(x))  # (B, P * K, D)
        return x.view(n_batch, n_prefix, n_queries, width)  # (B, P, K, D)

    def _self_attention(self, layer: T5LayerSelfAttention, x: Tensor, n_queries: int) -> Tensor:
        """The decoder's self-attention. x and the result: (B, P * K, D).

        An isolated query attends to itself only. The softmax over this one key is 1, so only the value and output projections are
        left to compute.
        """
        if self.isolate_queries:
            attention = layer.SelfAttention
            x = x + layer.dropout(attention.o(attention.v(layer.layer_norm(x))))  # (B, P * K, D)
            return x
        sets: Tensor = x.reshape(-1, n_queries, x.shape[-1])  # (B * P, K, D)
        zero = x.new_zeros(1, 1, 1, 1)
        sets, _, _ = layer(sets, attention_mask=zero, position_bias=zero)  # (B * P, K, D)
        return sets.reshape(x.shape)  # (B, P * K, D)

    def _recency(self, prefix: Tensor, n_items: int, n_slots: int) -> Tensor:
        """The bias of an item's age, prefix[p] - its place: (B, heads, P, T), zero for the text."""
        place = torch.arange(n_items, device=prefix.device)  # (L,)
        age = (prefix[..., None] - place).clamp(0, self.max_recency)  # (B, P, L)
        bias = self.recency(age).permute(0, 3, 1, 2)  # (B, heads, P, L)
        bias = bias.repeat_interleave(n_slots, dim=-1)  # (B, heads, P, L * K)
        return nn.functional.pad(bias, (self.prompt.shape[0], 0))  # (B, heads, P, T)

    # ------------------------------------------------------------------------------------------------------ reading on
    @property
    def reads_on(self) -> bool:
        """Whether history tokens see nothing after them; see `Backbone.reads_on`."""
        return self.mask != "bidirectional"

    def read_text(self) -> Tensor:
        """Keys and values of the text; see `Backbone.read_text`. The layers are those of the encoder, then of the decoder."""
        n_text = len(self.prompt)
        see = torch.ones(1, n_text, n_text, dtype=torch.bool, device=self.prompt.device)  # (1, n_text, n_text)
        place = torch.arange(n_text, device=self.prompt.device)[None]  # (1, n_text)
        return self._read_tokens(self.prompt[None], place, place, see, None)[0]  # (C, 2, heads, n_text, d)

    def read(self, items: Tensor, new: Tensor, queries: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """Read on where `past` ends; see `Backbone.read`."""
        n_batch, n_new, n_slots, _ = items.shape
        n_text, most_read = len(self.prompt), past.items.shape[4] // n_slots
        text = torch.arange(n_text, device=items.device).expand(n_batch, -1)  # (B, n_text)
        before = (n_text + torch.arange(most_read, device=items.device)).repeat_interleave(n_slots)  # (S,)
        after = (n_text + torch.arange(n_new, device=items.device)).repeat_interleave(n_slots) + past.read[
            :, None
        ]  # (B, n * K)
        key_position = torch.cat([text, before.expand(n_batch, -1), after], dim=1)  # (B, n_text + S + n * K)
        lengths = (most_read, n_new, n_text, n_slots, 0, len(queries))
        own = self.mask == "items"
        see = new_tokens_see(
            past.read, new, *lengths, "items" if own else "set"
        )  # (B, n * K + K, n_text + S + n * K + K)
        see = see[:, :, : -len(queries)]  # (B, n * K + K, n_text + S + n * K): the decoder's queries are no keys
        see_items, see_queries = see.split([n_new * n_slots, len(queries)], dim=1)  # (B, n * K, ...), (B, K, ...)
        states = self._read_tokens(
            items.flatten(1, 2), after, key_position, see_items, past
        )  # (B, C, 2, heads, n * K, d)
        bias = additive(see_queries, items.dtype)[:, None]  # (B, 1, K, n_text + S + n * K)
        if self.recency_bias:
            age = (past.read + new + n_text)[:, None] - key_position  # (B, n_text + S + n * K)
            ages = self.recency(age.clamp(0, self.max_recency)).permute(0, 2, 1)[:, :, None]  # (B, heads, 1, ...)
            ages = ages * (
                torch.arange(ages.shape[3], device=age.device) >= n_text
            )  # (B, heads, 1, ...): none for the text
            bias = bias + ages  # (B, heads, K, n_text + S + n * K)
        x: Tensor = queries.expand(n_batch, -1, -1)  # (B, K, D)
        for i, block in enumerate(self.decoder):
            layers: Any = block.get_submodule("layer")
            self_attention, cross, feed_forward = layers
            x = self._self_attention(self_attention, x, len(queries))  # (B, K, D)
            c = len(self.encoder) + i
            key, value = past.before(c, states[:, c])  # (B, heads, n_text + S + n * K, d) each
            x = x + self._attend(cross.EncDecAttention, rms_norm(cross.layer_norm, x), key, value, bias)  # (B, K, D)
            x = x + feed_forward.DenseReluDense(rms_norm(feed_forward.layer_norm, x))  # (B, K, D)
        return rms_norm(self.decoder_norm, x), states  # (B, K, D)

    def _read_tokens(self, x: Tensor, position: Tensor, key_position: Tensor, see: Tensor, past: Past | None) -> Tensor:
        """The encoder, for evaluation: keys and values that later tokens and the queries look at, (B, C, 2, heads, T, d).

        Args:
            x: (B, T, D) float.
            position: (B, T) int64.
            key_position: (B, S + T) int64: of the S kept tokens, and of x.
            see: (B, T, S + T) bool.
            past: Kept keys and values; None: there are none, S = 0.
        """
        first: Any = self.encoder[0].get_submodule("layer.0.SelfAttention")
        most = int(key_position.max()) + 1 if key_position.numel() else 1
        apart = torch.arange(-most, most + 1, device=x.device)  # (2 * most + 1,)
        buckets = first._relative_position_bucket(
            apart, True, first.relative_attention_num_buckets, first.relative_attention_max_distance
        )  # (2 * most + 1,)
        by_distance = first.relative_attention_bias(buckets)  # (2 * most + 1, heads)
        distance = key_position[:, None] - position[:, :, None] + most  # (B, T, S + T)
        bias = by_distance[distance].permute(0, 3, 1, 2) + additive(see, x.dtype)[:, None]  # (B, heads, T, S + T)
        states = []
        for c, block in enumerate(self.encoder):
            attention: Any = block.get_submodule("layer.0")
            feed_forward: Any = block.get_submodule("layer.1")
            h = rms_norm(attention.layer_norm, x)  # (B, T, D)
            key, value = self._keys_and_values(attention.SelfAttention, h)  # (B, heads, T, d) each
            states.append(torch.stack([key, value], dim=1))  # (B, 2, heads, T, d)
            if past is not None:
                key, value = past.before(c, states[c])  # (B, heads, S + T, d) each
            x = x + self._attend(attention.SelfAttention, h, key, value, bias)  # (B, T, D)
            x = x + feed_forward.DenseReluDense(rms_norm(feed_forward.layer_norm, x))  # (B, T, D)
        x = rms_norm(self.encoder_norm, x)  # (B, T, D)
        for block in self.decoder:
            cross = block.get_submodule("layer.1.EncDecAttention")
            states.append(torch.stack(self._keys_and_values(cross, x), dim=1))  # (B, 2, heads, T, d)
        return torch.stack(states, dim=1)  # (B, C, 2, heads, T, d)

    def _keys_and_values(self, attention: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens: x (B, T, D) -> (B, heads, T, d) each."""
        width = attention.key_value_proj_dim
        key, value = (project(x).unflatten(2, (-1, width)).transpose(1, 2) for project in (attention.k, attention.v))
        return key, value

    def _attend(self, attention: Any, x: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """One attention layer: x (B, T, D), key and value (B, heads, any, d) -> (B, T, D)."""
        query = attention.q(x).unflatten(2, (-1, attention.key_value_proj_dim)).transpose(1, 2)  # (B, heads, T, d)
        read, _ = attend(attention, query, key, value, None, scaling=1.0, position_bias=bias)  # (B, T, heads, d)
        out: Tensor = attention.o(read.flatten(2))  # (B, T, D)
        return out
