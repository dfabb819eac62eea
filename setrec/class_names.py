"""The class names that files may hold, and the class that each name means.

Checkpoints, manifests, published folders and catalogue versions hold the names of classes, {"class_path", "init_args"}. Such a
file may come from anywhere, so a name in it is looked up in this table and never imported directly. The table also holds the names
that earlier versions of this project wrote.

A class of your own is found after `register(MyReader)`, or if its name is given on the command line.
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
    "setrec.vectors.FileVectors": "setrec.vectors",
    "setrec.text.FieldText": "setrec.text",
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
    "setrec.data.PolarsEngine": "setrec.data.engines",
    "setrec.data.DuckDBEngine": "setrec.data.duckdb_engine",
    "setrec.data.SparkEngine": "setrec.data.spark_engine",
    "setrec.data.Kinds": "setrec.data.kinds",
    "setrec.data.LeaveOneOut": "setrec.data.split",
    "setrec.data.TimeRatioSplit": "setrec.data.split",
    "setrec.data.TimestampSplit": "setrec.data.split",
}
_PUBLIC = {
    f"{module}.{name.rpartition('.')[2]}": name for name, module in CLASSES.items()
}  # module and class -> public name
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
_UNKNOWN = (
    "{name!r} is no {kind} of this project, and a name in a file is never imported: for a class of your own, call "
    "setrec.register(YourClass) first, or name the class on the command line."
)
_REGISTERED: dict[str, type] = {}  # classes of the user, by name


def register(cls: type) -> type:
    """Allow files to name a class of your own. Returns the class, so it works as a decorator."""
    _REGISTERED[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return cls


def public_name(cls: type) -> str:
    """Return the name that files hold for a class."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    return _PUBLIC.get(name, name)


def current_name(name: str) -> str:
    """Return the public name for any name of a class of this project, former or current. Return other names as they are."""
    return _FORMER.get(name) or _PUBLIC.get(name, name)


def current_names(value: Any) -> Any:
    """Return a copy of plain types with a current name in every class_path."""
    if isinstance(value, Mapping):
        renamed = {key: current_names(item) for key, item in value.items()}
        if isinstance(renamed.get("class_path"), str):
            renamed["class_path"] = current_name(renamed["class_path"])
        return renamed
    return [current_names(item) for item in value] if isinstance(value, list) else value


def check_class_names(value: Any, named: Iterable[str] = ()) -> None:
    """Check every class_path in plain types, before a parser imports them.

    Args:
        value: plain types from a file.
        named: names that the user gave, which are allowed too.

    Raises:
        ConfigError: a name is not of this project, not registered and not among `named`.
    """
    if isinstance(value, Mapping):
        name = value.get("class_path")
        if name is not None and current_name(str(name)) not in {*CLASSES, *_REGISTERED, *named}:
            raise ConfigError(_UNKNOWN.format(name=name, kind="class"))
        for item in value.values():
            check_class_names(item, named)
    elif isinstance(value, list):
        for item in value:
            check_class_names(item, named)


def find_class(name: str, base: type) -> type:
    """Return the class that a name in a file means. Only modules of this project are imported.

    Args:
        name: the name in the file.
        base: the class must be this one or a subclass.

    Raises:
        ConfigError: the name is unknown, or means a class that is not a subclass of `base`.
    """
    name = current_name(name)
    found = _REGISTERED.get(name)
    if found is None and name in CLASSES:
        found = getattr(importlib.import_module(CLASSES[name]), name.rpartition(".")[2])
    if found is None:
        raise ConfigError(_UNKNOWN.format(name=name, kind=base.__name__))
    if not issubclass(found, base):
        raise ConfigError(f"{name!r} is no {base.__name__}; the file is damaged, or was made for something else.")
    return found
