"""LoRA: low-rank adapters on a frozen language model, and checkpoints without the frozen weights."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from setrec.errors import ConfigError

_SAMPLED = 64  # values of each weight that a fingerprint reads


@dataclass
class LoRA:
    """Low-rank adaptation: a frozen weight W becomes W + alpha / r * B A, and only A and B train.

    Args:
        r: Rank of the adapters (paper: 8).
        alpha: The adapter's output is multiplied by alpha / r (the paper gives no value; 16 with r 8 is usual).
        dropout: Probability of dropout on the adapters' input.
        target_modules: Layers that get an adapter, by the last part of their names (paper: the query, value and output
            projections of every attention).
    """

    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj", "o_proj"])


def inject(base: PreTrainedModel, lora: LoRA) -> None:
    """Freeze `base` and put adapters into its layers, in place. They start at zero, so the outputs don't change.

    Raises:
        ConfigError: peft is not installed, or no layer has one of the names.
    """
    if find_spec("peft") is None:
        raise ConfigError('LoRA needs the package peft, which is not installed: pip install "setrec[decoder]".')
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.target_modules)
    )
    try:
        inject_adapter_in_model(config, base)
    except ValueError as error:
        raise ConfigError(
            f"--model.backbone.lora.target_modules {lora.target_modules}: no layer of {type(base).__name__} has such a "
            f"name; its layers are {sorted(_linear_names(base))}."
        ) from error
    for name, parameter in base.named_parameters():
        parameter.requires_grad = is_adapter(name)
        if is_adapter(name) and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()  # half precision would round small steps away


def is_adapter(name: str) -> bool:
    """Whether the parameter with this name belongs to an adapter."""
    return ".lora_" in name


def _linear_names(base: nn.Module) -> set[str]:
    return {name.rpartition(".")[2] for name, layer in base.named_modules() if isinstance(layer, nn.Linear)}


def deltas(adapted: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The change alpha / r * B A, (out, in) float32, of every layer with an adapter, by the layer's name."""
    for name, layer in adapted.named_modules():
        if hasattr(layer, "get_delta_weight"):
            yield name, layer.get_delta_weight("default").float()


# ------------------------------------------------------------------------------------ frozen weights and checkpoints
def leave_frozen_out(owner: nn.Module, base: nn.Module) -> None:
    """Leave the frozen weights of `base` out of owner.state_dict(), and don't ask for them when it is loaded.

    All other weights are saved and loaded as strictly as before. `base` must be the attribute `base` of `owner`.
    """

    def remove_frozen(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        for name in frozen_names(base):
            key = f"{prefix}base.{name}"
            for extra in [
                k for k in state if k == key or k.startswith(f"{key}.")
            ]:  # quantised weights have several tensors
                del state[extra]

    def add_frozen(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
        parameters = dict(base.named_parameters())
        for name in frozen_names(base):
            state.setdefault(f"{prefix}base.{name}", parameters[name])  # the weight that is there is copied onto itself

    owner.register_state_dict_post_hook(remove_frozen)
    owner.register_load_state_dict_pre_hook(add_frozen)


def frozen_names(base: nn.Module) -> list[str]:
    """Names of the parameters of `base` that don't train."""
    return [name for name, parameter in base.named_parameters() if not parameter.requires_grad]


def fingerprint(base: PreTrainedModel) -> str:
    """A hash of names, shapes and some values of every weight, which tells one model from another.

    Values are rounded to bfloat16, so that a model has the same fingerprint in half precision. Not all values are read,
    because seven billion would take a minute.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(base.named_parameters()):
        flat = parameter.detach().flatten()
        # integer arithmetic: rounding must not depend on the machine
        place = torch.arange(min(_SAMPLED, len(flat)), device=flat.device) * len(flat) // min(_SAMPLED, len(flat))
        values = flat[place].to(torch.bfloat16).float().tolist()  # up to 64 numbers
        digest.update(json.dumps([name, list(parameter.shape), values]).encode())
    return digest.hexdigest()
