"""A decoder-only language model as a backbone: Qwen2, Qwen2.5, Qwen3, Llama, SmolLM2, and models built like them.

The model is Hugging Face's own; it is called with vectors, positions and a complete mask. All prefixes of a history are packed
into one sequence, see `packed_mask` in setrec/backbones/masks.py.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from setrec.backbones.attention import NAME as ATTENTION
from setrec.backbones.attention import attend
from setrec.backbones.base import Backbone
from setrec.backbones.lora import LoRA, deltas, fingerprint, inject, leave_frozen_out
from setrec.backbones.masks import additive, new_tokens_see, packed_mask, packed_positions
from setrec.backbones.past import Past, rms_norm
from setrec.backbones.pretrained import ModelSource, load_decoder
from setrec.errors import ConfigError
from setrec.files.whole import whole_folder


class DecoderShape(NamedTuple):
    """The sizes of a decoder-only model, named as in transformers."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


SHAPES = {
    "nano": DecoderShape(32, 64, 2, 2, 1, 16),
    "tiny": DecoderShape(128, 384, 3, 4, 2, 32),
    "135m": DecoderShape(576, 1536, 30, 9, 3, 64),  # SmolLM2-135M
    "0.6b": DecoderShape(1024, 3072, 28, 16, 8, 128),  # Qwen3-0.6B
    "1.5b": DecoderShape(1536, 8960, 28, 12, 2, 128),  # Qwen2.5-1.5B
    "7b": DecoderShape(3584, 18944, 28, 28, 4, 128),  # Qwen2.5-7B
}


class DecoderBackbone(Backbone):
    """A decoder-only language model, pretrained or from random weights.

    Args:
        pretrained: A Hugging Face name or a local folder (paper: Qwen/Qwen2.5-1.5B). None: random weights of `shape`.
        gguf_file: A GGUF file in the folder or repository `pretrained`; its weights are unpacked to `dtype`.
        revision: Branch, tag or commit of `pretrained` on the model hub; None: the newest one.
        family: Architecture of a model from random weights. Not used with `pretrained`.
        shape: Size of a model from random weights: nano (32 wide, for tests), tiny (128 wide, 3 layers, trains on two
            CPU cores), or the size of a published model without its vocabulary. Not used with `pretrained`.
        mask: Which tokens a history token sees. set: the instruction, itself and earlier items (the paper's sparse mask).
            items: also the other slots of its own item. causal: every token before it, as in the model's own training; an
            item's slots are then no set any more.
        isolate_queries: True: a query never sees another query (the paper). False: the K queries of a prefix see each other.
        attention: How attention is computed; the results agree. sdpa: torch's fused kernel, or two matrix products on a CPU;
            eager: all attention weights are held in memory.
        dtype: Precision of the model's weights. Take bfloat16 for a frozen model. To train all weights, keep float32 and set
            --trainer.precision bf16-mixed.
        lora: Freeze the model and train low-rank adapters (as the paper does with Qwen); None: train all weights.
        quantize: Hold the frozen model in 4 or 8 bits (bitsandbytes; needs a GPU, `pretrained` and `lora`).
        gradient_checkpointing: Keep only the inputs of the layers for the backward pass and compute the rest again: about a
            third slower, with much less memory and the same gradients.
        token_dropout: Probability of dropout on the tokens that the model reads and on its query outputs. For models from
            random weights; language models have no dropout of their own.
        instruction: Text before the history, tokenised with the pretrained tokenizer, after its begin-of-text token, if any.
        response: Text between the history and the queries.
        n_prompt: Learned tokens in place of the instruction where there is no tokenizer; at least 1.
        n_response: Learned tokens in place of the response where there is no tokenizer. The response is repeated for every
            prefix.
        train_prompt: Train the embedded texts too (paper: no). Learned tokens always train.

    Raises:
        ConfigError: options that don't go together.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        gguf_file: str | None = None,
        revision: str | None = None,
        family: Literal["qwen2", "qwen3", "llama"] = "qwen2",
        shape: Literal["nano", "tiny", "135m", "0.6b", "1.5b", "7b"] = "tiny",
        mask: Literal["set", "items", "causal"] = "set",
        isolate_queries: bool = True,
        attention: Literal["sdpa", "eager"] = "sdpa",
        dtype: Literal["float32", "bfloat16"] = "float32",
        lora: LoRA | None = None,
        quantize: Literal[4, 8] | None = None,
        gradient_checkpointing: bool = False,
        token_dropout: float = 0.0,
        instruction: str = "What would the user be likely to purchase next after buying the following items?",
        response: str = "The user would purchase:",
        n_prompt: int = 1,
        n_response: int = 0,
        train_prompt: bool = False,
    ) -> None:
        super().__init__()
        if n_prompt < 1 or n_response < 0:
            raise ConfigError(f"n_prompt is {n_prompt} and n_response {n_response}: give at least 1 and at least 0.")
        if quantize and (lora is None or pretrained is None or gguf_file):
            raise ConfigError(
                f"quantize {quantize} needs `pretrained`, no gguf_file, and lora: only a frozen base can be quantised."
            )
        if gguf_file and not pretrained:
            raise ConfigError(f"gguf_file {gguf_file!r} needs --model.backbone.pretrained, the folder that holds it.")
        self.pretrained = pretrained
        self.gguf_file = gguf_file
        self.revision = revision
        self.family = family
        self.shape = shape
        self.mask: Literal["set", "items", "causal"] = mask
        self.isolate_queries = isolate_queries
        self.attention = attention
        self.dtype = dtype
        self.lora = LoRA(**lora) if isinstance(lora, dict) else lora  # a dict, as checkpoints hold it
        self.quantize = quantize
        self.gradient_checkpointing = gradient_checkpointing
        self.token_dropout = token_dropout
        self.instruction = instruction
        self.response = response
        self.n_prompt = n_prompt
        self.n_response = n_response
        self.train_prompt = train_prompt

    # ------------------------------------------------------------------------------------------------------- the layers
    def build(self) -> None:
        """Make the layers; see `Backbone.build`."""
        if self.saved_sizes is not None:
            base, instruction, response = self._copy(self.saved_sizes)
        else:
            base, instruction, response = self._pretrained_parts() if self.pretrained else self._random_parts()
        self.width = base.config.hidden_size
        self.n_text, self.n_announce = len(instruction), len(response)  # n_text, R
        self.prompt = nn.Parameter(torch.cat([instruction, response]))  # (n_text + R, D)
        self.prompt.requires_grad = self.pretrained is None or self.train_prompt
        if self.gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.set_input_embeddings(cast(nn.Module, None))  # items come as vectors: no word is looked up any more
        self._origin: dict[str, Any] = {}
        if self.pretrained and self.lora:
            self._origin = {
                "pretrained": self.pretrained,
                "revision": getattr(base.config, "_commit_hash", None),
                "quantize": self.quantize,
                "fingerprint": fingerprint(base),
            }
        if self.lora:
            inject(base, self.lora)
        if self.attention == "sdpa":
            base.config._attn_implementation = ATTENTION
        self.base = base
        self.drop = nn.Dropout(self.token_dropout)
        if self._origin:  # a random base is in the checkpoint, since it can't be loaded again
            leave_frozen_out(self, base)
        self.train()  # from_pretrained returns eval(), and Lightning would keep it

    def sizes(self) -> dict[str, Any] | None:
        """The sizes of a pretrained model whose weights are all trained; see `Backbone.sizes`."""
        if self.pretrained is None or self.lora:
            return None
        return {"config": self.base.config.to_dict(), "n_text": self.n_text, "n_announce": self.n_announce}

    def _copy(self, sizes: dict[str, Any]) -> tuple[PreTrainedModel, Tensor, Tensor]:
        """Layers and texts, (n_text, D) and (R, D), of these sizes, for a checkpoint to fill."""
        blank = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        config = CONFIG_MAPPING[sizes["config"]["model_type"]].from_dict(sizes["config"] | blank)
        config.use_cache = False
        base: PreTrainedModel = AutoModel.from_config(
            config, attn_implementation=self.attention, dtype=getattr(torch, self.dtype)
        )
        self.query_std = 1.0
        texts = [torch.zeros(n, config.hidden_size) for n in (sizes["n_text"], sizes["n_announce"])]
        return base, texts[0], texts[1]  # (n_text, D), (R, D)

    def _random_parts(self) -> tuple[PreTrainedModel, Tensor, Tensor]:
        """Random weights of the named shape, and random texts, (n_prompt, D) and (n_response, D)."""
        config = AutoConfig.for_model(
            self.family, vocab_size=1, bos_token_id=None, eos_token_id=None, **SHAPES[self.shape]._asdict()
        )
        base: PreTrainedModel = AutoModel.from_config(
            config, attn_implementation=self.attention, dtype=getattr(torch, self.dtype)
        )
        self.query_std = config.initializer_range
        instruction, response = (
            self.query_std * torch.randn(n, config.hidden_size) for n in (self.n_prompt, self.n_response)
        )
        return base, instruction, response

    def _pretrained_parts(self) -> tuple[PreTrainedModel, Tensor, Tensor]:
        """The pretrained weights, and the embedded texts, (n_text, D) and (R, D) float32."""
        tokenizer, base = self._load()
        words: list[int] = tokenizer(self.instruction, add_special_tokens=False).input_ids
        if tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]:
            words = [tokenizer.bos_token_id, *words]
        response = tokenizer(self.response, add_special_tokens=False).input_ids
        table: Tensor = base.get_input_embeddings().get_parameter("weight").detach()  # (words, D)
        self.query_std = float(table.float().std())
        return base, table[words].float().cpu(), table[response].float().cpu()  # (n_text, D), (R, D)

    def _load(self) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        """Tokenizer and model; see `load_decoder`."""
        assert self.pretrained is not None
        return load_decoder(
            ModelSource(self.pretrained, self.gguf_file, self.revision), self.dtype, self.attention, self.quantize
        )

    # ------------------------------------------------------------------------------------------------------ the forward
    def forward(self, items: Tensor, real: Tensor, prefix: Tensor, queries: Tensor) -> Tensor:
        """Compute the query outputs of every prefix; see `Backbone.forward`.

        The model is called once, with T = n_text + L * K + P * (R + K) tokens a row; the mask holds B * T * T numbers. In
        evaluation there is one prefix a row, so both are small.
        """
        n_batch, n_items, n_slots, _ = items.shape
        n_prefix = prefix.shape[1]
        text, response = self.prompt.split([self.n_text, self.n_announce])  # (n_text, D), (R, D)
        blocks = torch.cat([response, queries]).repeat(n_prefix, 1)  # (P * (R + K), D)
        x = torch.cat(
            [text.expand(n_batch, -1, -1), items.flatten(1, 2), blocks.expand(n_batch, -1, -1)], dim=1
        )  # (B, T, D)
        x = self.drop(x)
        if self.dtype == "bfloat16":
            x = x.to(torch.bfloat16)
        lengths = (self.n_text, n_items, n_slots, self.n_announce, queries.shape[0])
        see = packed_mask(prefix, *lengths, self.mask, self.isolate_queries)  # (B, T, T)
        device = x.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        # transformers leaves a 4D mask of floats as it is; without a mask it would take repeated positions for several
        # packed texts
        output = self.base(
            inputs_embeds=x,
            position_ids=packed_positions(prefix, *lengths),
            attention_mask=additive(see, precision)[:, None],  # (B, 1, T, T)
            use_cache=False,
        ).last_hidden_state  # (B, T, D)
        blocks = output[:, self.n_text + n_items * n_slots :].unflatten(1, (n_prefix, -1))  # (B, P, R + K, D)
        outputs: Tensor = self.drop(blocks[:, :, self.n_announce :].to(queries.dtype))  # (B, P, K, D)
        return outputs

    # ------------------------------------------------------------------------------------------------------ reading on
    @property
    def reads_on(self) -> bool:
        """Whether `read` knows the layers of this model; see `Backbone.reads_on`."""
        config = self.base.config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        return config.model_type in ("qwen2", "qwen3", "llama") and kinds == {"full_attention"}

    def read_text(self) -> Tensor:
        """Keys and values of the instruction; see `Backbone.read_text`."""
        text = self.prompt[None, : self.n_text].to(getattr(torch, self.dtype))  # (1, n_text, D)
        position = torch.arange(self.n_text, device=text.device)[None]  # (1, n_text)
        see = torch.ones(
            1, self.n_text, self.n_text, dtype=torch.bool, device=text.device
        ).tril()  # (1, n_text, n_text)
        return self._layers(text, position, see, None, self.n_text)[1][0]  # (C, 2, heads, n_text, d)

    def read(self, items: Tensor, new: Tensor, queries: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """Read on where `past` ends; see `Backbone.read`. Response and queries follow the new items."""
        n_batch, n_new, n_slots, _ = items.shape
        block = torch.cat([self.prompt[self.n_text :], queries])  # (R + K, D)
        x = torch.cat([items.flatten(1, 2), block.expand(n_batch, -1, -1)], dim=1)  # (B, n * K + R + K, D)
        x = x.to(getattr(torch, self.dtype))
        step = torch.arange(len(block), device=x.device).clamp(max=self.n_announce)  # (R + K,): 0 1 .. R R R
        place = torch.arange(n_new, device=x.device).repeat_interleave(n_slots)  # (n * K,)
        begin = self.n_text + past.read[:, None]  # (B, 1)
        position = torch.cat([begin + place, begin + new[:, None] + step], dim=1)  # (B, n * K + R + K)
        lengths = (past.items.shape[4] // n_slots, n_new, self.n_text, n_slots, self.n_announce, len(queries))
        see = new_tokens_see(past.read, new, *lengths, self.mask, self.isolate_queries)  # (B, n * K + R + K, all keys)
        x, states = self._layers(
            x, position, see, past, len(block)
        )  # (B, R + K, D), (B, C, 2, heads, n * K + R + K, d)
        outputs = x[:, self.n_announce :].to(queries.dtype)  # (B, K, D)
        return outputs, states[:, :, :, :, : n_new * n_slots]

    def _layers(
        self, x: Tensor, position: Tensor, see: Tensor, past: Past | None, n_last: int
    ) -> tuple[Tensor, Tensor]:
        """The model's layers, for evaluation: what transformers computes, in fewer operations.

        Args:
            x: (B, T, D) float.
            position: (B, T) int64.
            see: (B, T, S + T) bool, which of the S kept keys and of its own each token sees.
            past: Kept keys and values; None: there are none, S = 0.
            n_last: How many of the last tokens are asked for: the others need no output of the last layer.

        Returns:
            (B, n_last, D), and the keys and values of x, (B, C, 2, heads, T, d).
        """
        base: Any = self.base
        cos, sin = (table[:, None] for table in base.rotary_emb(x, position))  # (B, 1, T, d), (B, 1, T, d)
        mask = additive(see, x.dtype)[:, None]  # (B, 1, T, S + T)
        rows = slice(None)
        states = []
        for c, layer in enumerate(base.layers):
            attention = layer.self_attn
            h = rms_norm(layer.input_layernorm, x)  # (B, T, D)
            key, value = (
                project(h).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
                for project in (attention.k_proj, attention.v_proj)
            )  # (B, heads, T, d), (B, heads, T, d)
            if c == len(base.layers) - 1:
                rows = slice(x.shape[1] - n_last, None)
                x, h = x[:, rows], h[:, rows]  # (B, n_last, D) each
                mask = mask[:, :, rows]  # (B, 1, n_last, S + T)
            query = (
                attention.q_proj(h).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
            )  # (B, heads, T or n_last, d)
            if base.config.model_type == "qwen3":
                query, key = rms_norm(attention.q_norm, query), rms_norm(attention.k_norm, key)
            query = _rotated(query, cos[:, :, rows], sin[:, :, rows])  # (B, heads, T or n_last, d)
            key = _rotated(key, cos, sin)  # (B, heads, T, d)
            states.append(torch.stack([key, value], dim=1))  # (B, 2, heads, T, d)
            if past is not None:
                key, value = past.before(c, states[c])  # (B, heads, S + T, d) each
            read, _ = attend(
                attention, query, key, value, mask, scaling=attention.scaling
            )  # (B, T or n_last, heads, d)
            x = x + attention.o_proj(read.flatten(2))  # (B, T or n_last, D)
            x = x + layer.mlp(rms_norm(layer.post_attention_layernorm, x))  # (B, T or n_last, D)
        return rms_norm(base.norm, x), torch.stack(states, dim=1)  # (B, n_last, D), (B, C, 2, heads, T, d)

    # ---------------------------------------------------------------------------------------------- weights on the disk
    def origin(self) -> dict[str, Any]:
        """Where the frozen base comes from; see `Backbone.origin`."""
        return dict(self._origin)

    def check_origin(self, origin: dict[str, Any]) -> None:
        """Check that this is the base that the adapters were trained on; see `Backbone.check_origin`."""
        here = self._origin
        if not origin or not here:
            return  # load_state_dict reports what is missing
        if origin["quantize"] == here["quantize"] and origin["fingerprint"] != here["fingerprint"]:
            revision = f" at revision {origin['revision']}" if origin["revision"] else ""
            raise ConfigError(
                f"The checkpoint's adapters were trained on {origin['pretrained']!r}{revision}, whose weights "
                f"({origin['fingerprint'][:12]}) are not those found at {here['pretrained']!r} "
                f"({here['fingerprint'][:12]}): give that model with --model.backbone.pretrained "
                "(and --model.backbone.revision)."
            )

    def merge(self, folder: str | Path) -> None:
        """Write the language model as a plain Hugging Face folder, with the adapters added to its weights.

        `--model.backbone.pretrained FOLDER --model.backbone.lora null` reads it. The vocabulary comes from the base. A
        trained prompt, the queries and the item tokenizers are not in the folder: they stay in the checkpoint.

        Raises:
            ConfigError: the model has no pretrained base, or the folder exists.
        """
        folder = Path(folder)
        if not self.pretrained:
            raise ConfigError(
                "This model began with random weights: there is no pretrained base to merge the adapters into."
            )
        if folder.exists():
            raise ConfigError(f"{folder} exists already: give a new folder for the merged model.")
        unquantized = DecoderBackbone(
            self.pretrained, self.gguf_file, self.revision, attention=self.attention, dtype=self.dtype
        )
        tokenizer, base = unquantized._load()
        with torch.no_grad():
            if self.lora:
                for name, delta in deltas(self.base):
                    weight = base.get_parameter(f"{name}.weight")
                    weight.copy_(weight.float() + delta.to(weight.device))
            else:
                base.load_state_dict(self.base.state_dict(), strict=False)  # all weights but the vocabulary
        with whole_folder(folder) as hidden:
            base.save_pretrained(hidden)
            tokenizer.save_pretrained(hidden)

    def shard(self, mesh: DeviceMesh) -> None:
        """Split every layer's weights over the processes; see `Backbone.shard`."""
        for layer in cast(nn.ModuleList, self.base.layers):
            fully_shard(layer, mesh=mesh)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x (B, heads, T, d), cos and sin (B, 1, T, d) -> (B, heads, T, d)."""
    one, two = x.chunk(2, dim=-1)  # (B, heads, T, d / 2) each
    return x * cos + torch.cat([-two, one], dim=-1) * sin  # (B, heads, T, d)
