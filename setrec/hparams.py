"""Constructor arguments as plain dicts, so that a checkpoint carries them and loads with weights_only=True.

An instance becomes {"class_path": ..., "init_args": {...}}, the form LightningCLI writes and reads. The convention that
makes it possible: a configurable class keeps every constructor argument in an attribute of the same name.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.core.mixins.hparams_mixin import (
    HyperparametersMixin,
    _given_hyperparameters,
    _given_hyperparameters_context,
)

_CLI_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # makes load_from_checkpoint build class_path dicts


def made(value: Any) -> Any:
    """The object behind a jsonargparse `lazy_instance` default; anything else comes back as it is."""
    if hasattr(value, "lazy_get_init_data"):
        data = value.lazy_get_init_data().as_dict()
        return from_spec(data)
    return value


def spec(value: Any) -> Any:
    """`value` in plain types: None, bool, int, float, str, list, dict.

    A dataclass becomes the dict of its fields, any other object {"class_path", "init_args"}.

    Raises:
        TypeError: an object does not keep a constructor argument in an attribute of that name.
    """
    value = made(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): spec(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spec(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: spec(getattr(value, field.name)) for field in dataclasses.fields(value)}
    cls = type(value)
    init_args = {}
    for name in inspect.signature(cls).parameters:
        if not hasattr(value, name):
            raise TypeError(f"{cls.__name__} must keep its argument {name!r} in an attribute of that name")
        init_args[name] = spec(getattr(value, name))
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": init_args}


def from_spec(value: Any) -> Any:
    """The object described by {"class_path", "init_args"}, nested ones included; anything else comes back as it is.

    Only for specs made by this program (defaults, `spec`): it imports what class_path names.
    """
    if isinstance(value, Mapping) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        arguments = {key: from_spec(item) for key, item in value.get("init_args", {}).items()}
        return getattr(importlib.import_module(module), name)(**arguments)
    if isinstance(value, list):
        return [from_spec(item) for item in value]
    return value


def save_plain_hyperparameters(holder: HyperparametersMixin, arguments: Mapping[str, Any]) -> None:
    """save_hyperparameters() with every instance in `arguments` turned into its spec.

    Through LightningCLI the parsed configuration is stored, as Lightning does. Made directly in Python, Lightning would
    pickle the instances themselves: a checkpoint that weights_only=True refuses. ignore=[...] is no way out either: an
    ignored argument is missing when the checkpoint is restored.

    Args:
        holder: the LightningModule or LightningDataModule being constructed.
        arguments: constructor argument -> value.
    """
    if _given_hyperparameters.get() is not None:
        holder.save_hyperparameters()
        return
    with _given_hyperparameters_context(spec(dict(arguments)), _CLI_INSTANTIATOR):
        holder.save_hyperparameters()


def plain(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """`self.hparams` as `spec` gives it, without what Lightning keeps there for itself."""
    return {key: spec(value) for key, value in hparams.items() if not key.startswith("_")}
