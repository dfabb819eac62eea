"""Constructor arguments in plain types, so that a checkpoint can hold them and loads with weights_only=True.

An instance becomes {"class_path": ..., "init_args": {...}}, the form that LightningCLI writes and reads. So a configurable class
must keep every constructor argument in an attribute of the same name.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setrec.class_names import find_class, public_name

if TYPE_CHECKING:
    from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

_CLI_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # makes load_from_checkpoint build class_path dicts


def instantiate_default(value: Any) -> Any:
    """Make the object of a jsonargparse `lazy_instance` default. Return anything else as it is."""
    if hasattr(value, "lazy_get_init_data"):
        data = value.lazy_get_init_data().as_dict()
        module, _, name = data["class_path"].rpartition(".")
        arguments = {name: instantiate(one) for name, one in data.get("init_args", {}).items()}
        return getattr(importlib.import_module(module), name)(**arguments)  # safe: the name is in the code, in no file
    return value


def to_plain(value: Any) -> Any:
    """Turn a value into plain types: None, bool, int, float, str, list, dict.

    A dataclass becomes the dict of its fields, any other object {"class_path", "init_args"}.

    Raises:
        TypeError: an object does not keep a constructor argument in an attribute of that name.
    """
    value = instantiate_default(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    cls = type(value)
    init_args = {}
    for name in inspect.signature(cls).parameters:
        if not hasattr(value, name):
            raise TypeError(f"{cls.__name__} must keep its argument {name!r} in an attribute of that name")
        init_args[name] = to_plain(getattr(value, name))
    return {"class_path": public_name(cls), "init_args": init_args}


def default_arguments(cls: type) -> dict[str, Any]:
    """Return the default of every constructor argument that has one, in plain types."""
    parameters = inspect.signature(cls).parameters.values()
    return {one.name: to_plain(one.default) for one in parameters if one.default is not inspect.Parameter.empty}


def instantiate(value: Any, base: type = object) -> Any:
    """Make the object that {"class_path", "init_args"} describes, and those inside it. Return anything else as it is.

    Args:
        value: plain types.
        base: the class of the outermost object, or a base class of it.

    Raises:
        ConfigError: see `find_class`.
        TypeError: the class has no such argument.
    """
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = {key: instantiate(item) for key, item in value.get("init_args", {}).items()}
        return find_class(str(value["class_path"]), base)(**arguments)
    if isinstance(value, Mapping):
        return {key: instantiate(item) for key, item in value.items()}
    if isinstance(value, list):
        return [instantiate(item) for item in value]
    return value


def save_plain_hyperparameters(holder: "HyperparametersMixin", arguments: Mapping[str, Any]) -> None:
    """Call save_hyperparameters() with every instance in `arguments` turned into plain types.

    If LightningCLI makes the holder, Lightning stores the parsed configuration, which is plain. If Python code makes it, Lightning
    would pickle the instances, and weights_only=True refuses such a checkpoint. With ignore=[...] the argument would be missing
    when the checkpoint is restored.

    Args:
        holder: the LightningModule or LightningDataModule that is being made.
        arguments: constructor argument -> value.
    """
    from lightning.pytorch.core.mixins import (
        hparams_mixin,  # here: inference imports this module and needs no Lightning
    )

    if hparams_mixin._given_hyperparameters.get() is not None:
        holder.save_hyperparameters()
        return
    with hparams_mixin._given_hyperparameters_context(to_plain(dict(arguments)), _CLI_INSTANTIATOR):
        holder.save_hyperparameters()


def plain_hparams(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Return `self.hparams` in plain types, without Lightning's own entries."""
    return {key: to_plain(value) for key, value in hparams.items() if not key.startswith("_")}
