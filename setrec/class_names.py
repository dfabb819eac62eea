"""Names of classes in files: which class each one means, and which modules such a name may import.

Checkpoints, manifests, published folders and catalogue versions hold classes by name, {"class_path", "init_args"}. Such a file may
come from anywhere, so a name in it is looked up here and never imported as it stands. The table also knows the names that
earlier versions of this project wrote.

A class of your own is found after `register(MyReader)`, or when its name is given on the command line.
"""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from setrec.errors import ConfigError

CLASSES = {  # public name -> the module that defines the class
    "setrec.module.SETRecModule": "setrec.module",
    "setrec.sasrec.SASRecModule": "setrec.sasrec",
    "setrec.backbones.T5Backbone": "setrec.backbones.t5",
    "setrec.backbones.DecoderBackbone": "setrec.backbones.decoder",
    "setrec.backbones.LoRA": "setrec.backbones.lora",
    "setrec.text.TextFile": "setrec.text",
    "setrec.text.TfidfSVD": "setrec.text",
    "setrec.encoders.SentenceTransformerText": "setrec.encoders",
    "setrec.encoders.HiddenStatesText": "setrec.encoders",
    "setrec.cf.CFFile": "setrec.cf",
    "setrec.cf.CooccurrenceSVD": "setrec.cf",
    "setrec.data.SETRecDataModule": "setrec.data.datamodule",
    "setrec.data.AmazonReviews": "setrec.data.readers.amazon",
    "setrec.data.SteamReviews": "setrec.data.readers.steam",
    "setrec.data.RecBoleFiles": "setrec.data.readers.recbole",
    "setrec.data.TableFiles": "setrec.data.readers.table",
    "setrec.data.OfficialRelease": "setrec.data.readers.official",
    "setrec.data.SyntheticWorld": "setrec.data.readers.synthetic",
    "setrec.data.Source": "setrec.data.readers.download",
    "setrec.data.Cleaning": "setrec.data.clean",
    "setrec.data.LeaveOneOut": "setrec.data.split",
    "setrec.data.TimeRatioSplit": "setrec.data.split",
    "setrec.data.TimestampSplit": "setrec.data.split",
}
_PUBLIC = {
    f"{module}.{name.rpartition('.')[2]}": name for name, module in CLASSES.items()
}  # where it is -> public name
_FORMER = {  # a name that version 0.1.0 wrote -> public name
    f"setrec.data.{module}.{name}": f"setrec.data.{name}"
    for module, name in (
        ("amazon", "AmazonReviews"),
        ("steam", "SteamReviews"),
        ("recbole", "RecBoleFiles"),
        ("table", "TableFiles"),
        ("official", "OfficialRelease"),
        ("synthetic", "SyntheticWorld"),
        ("download", "Source"),
    )
}
_STRANGER = (
    "{name!r} is no {kind} of this project, and a name in a file is never imported: for a class of your own, call "
    "setrec.register(YourClass) first, or name the class on the command line."
)
_REGISTERED: dict[str, type] = {}  # classes of the user, by name


def register(cls: type) -> type:
    """Let files name a class of your own. Returns the class, so that it can be used as a decorator."""
    _REGISTERED[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return cls


def public_name(cls: type) -> str:
    """The name that files hold for a class."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    return _PUBLIC.get(name, name)


def current_name(name: str) -> str:
    """The public name for any name of a class of this project, former ones included; another name as it is."""
    return _FORMER.get(name) or _PUBLIC.get(name, name)


def current_names(value: Any) -> Any:
    """A copy of plain types in which every class_path holds a current name."""
    if isinstance(value, Mapping):
        renamed = {key: current_names(item) for key, item in value.items()}
        if isinstance(renamed.get("class_path"), str):
            renamed["class_path"] = current_name(renamed["class_path"])
        return renamed
    return [current_names(item) for item in value] if isinstance(value, list) else value


def refuse_strangers(value: Any, named: Iterable[str] = ()) -> None:
    """Check every class_path in plain types, before a parser imports what they name.

    Args:
        value: plain types that came from a file.
        named: names that the user gave, which are allowed too.

    Raises:
        ConfigError: one is neither of this project nor registered nor among `named`.
    """
    if isinstance(value, Mapping):
        name = value.get("class_path")
        if name is not None and current_name(str(name)) not in {*CLASSES, *_REGISTERED, *named}:
            raise ConfigError(_STRANGER.format(name=name, kind="class"))
        for item in value.values():
            refuse_strangers(item, named)
    elif isinstance(value, list):
        for item in value:
            refuse_strangers(item, named)


def find_class(name: str, base: type) -> type:
    """The class that a name in a file means. Nothing but modules of this project is imported.

    Args:
        name: what the file holds.
        base: the class must be derived from it.

    Raises:
        ConfigError: the name is in no table, or means a class of another kind.
    """
    name = current_name(name)
    found = _REGISTERED.get(name)
    if found is None and name in CLASSES:
        found = getattr(importlib.import_module(CLASSES[name]), name.rpartition(".")[2])
    if found is None:
        raise ConfigError(_STRANGER.format(name=name, kind=base.__name__))
    if not issubclass(found, base):
        raise ConfigError(f"{name!r} is no {base.__name__}; the file is damaged, or was made for something else.")
    return found
