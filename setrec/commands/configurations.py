"""The configurations that SETRec ships: `--config quickstart` finds one by its name, in a clone and after pip install alike."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from setrec.commands.words import check_configurations, values_of
from setrec.errors import ConfigError

OPTIONS = ("--config", "-c")
SPACES = "tune/"  # the folder of search spaces, which are no configurations of fit
_PACKAGE = Path(__file__).resolve().parents[1]
# in an installed package configs/ lies inside setrec/, in a clone beside it (pyproject.toml, package-dir)
SHIPPED = next((path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()), _PACKAGE)


def shipped_names() -> list[str]:
    """The names of the shipped configurations: csv_example, quickstart, ..., data/toys, ..., model/best, ..."""
    names = [path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml")]
    return sorted((name for name in names if not name.startswith(SPACES)), key=lambda name: (name.count("/"), name))


def find_space(value: str) -> str:
    """What `--space value` of tune means: a file, or else the name of a shipped search space, tune/quickstart.

    Raises:
        ConfigError: it is neither.
    """
    if os.path.isfile(value):
        return value
    spaces = {f"{SPACES}{path.stem}": str(path) for path in sorted((SHIPPED / SPACES).glob("*.yaml"))}
    name = value.removesuffix(".yaml")
    if name not in spaces:
        raise ConfigError(
            f"--space {value}: there is no such file, and the spaces that SETRec ships are {', '.join(spaces)}."
        )
    return spaces[name]


def find_configuration(value: str) -> str:
    """What `--config value` means: a file, options written out as YAML or JSON, or else the name of a shipped configuration.

    Returns:
        `value` as it is, or the path of the shipped configuration.

    Raises:
        ConfigError: it is none of these.
    """
    name = value.removesuffix(".yaml")
    if os.path.isfile(value) or _is_written_out(value):
        return value
    if name not in shipped_names():
        raise ConfigError(
            f"--config {value}: there is no such file, and the configurations that SETRec ships are "
            f"{', '.join(shipped_names())}."
        )
    return str(SHIPPED / f"{name}.yaml")


def with_configurations(words: Sequence[str]) -> list[str]:
    """A command line with the path of the file in place of every name of a shipped configuration.

    Raises:
        ConfigError: see `check_configurations`, `find_configuration` and `check_order`.
    """
    check_configurations(words)
    found = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if equals and option in OPTIONS:
            found.append(f"{option}={find_configuration(value)}")
        else:
            found.append(find_configuration(word) if before in OPTIONS else word)
    check_order(values_of(found, *OPTIONS))
    return found


def check_order(configs: Sequence[str]) -> None:
    """Refuse a shipped data set that would undo what a shipped model says about the data.

    Raises:
        ConfigError: configs/data/X.yaml comes after configs/model/Y.yaml, and both set the same option.
    """
    paths = [Path(value).resolve() for value in configs if os.path.isfile(value)]
    for place, later in enumerate(paths):
        for earlier in paths[:place]:
            if (earlier.parent, later.parent) != (SHIPPED / "model", SHIPPED / "data"):
                continue
            both = sorted(_data_options(earlier) & _data_options(later))
            if both:
                raise ConfigError(
                    f"--config data/{later.stem} comes after --config model/{earlier.stem} and would undo its data.{both[0]}: "
                    "give the data first, then the model."
                )


def _data_options(path: Path) -> set[str]:
    options: dict[str, Any] = yaml.safe_load(path.read_text()).get("data", {})
    return set(options)


def _is_written_out(value: str) -> bool:
    try:
        return isinstance(yaml.safe_load(value), dict)
    except yaml.YAMLError:
        return False
