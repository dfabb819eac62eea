"""The search space of tune: options of fit and the values that are tried, from a YAML file.

model.lr: {low: 0.0005, high: 0.01, log: true}
model.n_sem: {low: 1, high: 4}
model.backbone.dropout: {low: 0.0, high: 0.3, step: 0.1}
model.objective: [slots, score]
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from setrec.errors import ConfigError
from setrec.files.yaml_size import check_yaml

KEYS = {"low", "high", "log", "step"}


class Range(NamedTuple):
    """Numbers from low to high, both included; whole numbers if all of it are."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether the numbers are whole."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step) if number is not None)

    def holds(self, value: Any) -> bool:
        """Whether a value is one of the numbers."""
        kind = int if self.whole else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step is not None else 0.0
        return abs(steps - round(steps)) < 1e-9


class Choices(NamedTuple):
    """Values in plain types, each as JSON."""

    values: tuple[str, ...]


Space = dict[str, Range | Choices]  # option of fit, with dots -> its values


def read_space(path: str) -> Space:
    """Read a search space.

    Raises:
        ConfigError: the file can't be read, or an entry is wrong; the sentence names it.
    """
    check_yaml(path)
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--space {path} can't be read ({' '.join(str(error).split())[:200]}).") from None
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"--space {path} holds no options: write lines such as `model.n_sem: {{low: 1, high: 4}}`.")
    return {str(name): _entry(f"--space {path}, {name}", value) for name, value in content.items()}


def as_word(name: str, value: Any) -> str:
    """An option with a value as a word of a command line."""
    return f"--{name}={value if isinstance(value, str) else json.dumps(value)}"


def _entry(where: str, value: Any) -> Range | Choices:
    if isinstance(value, list):
        if not value:
            raise ConfigError(f"{where}: the list is empty; give the values to choose from.")
        return Choices(tuple(json.dumps(one) for one in value))
    if not isinstance(value, dict) or not {"low", "high"} <= value.keys() <= KEYS:
        raise ConfigError(f"{where}: give {{low: ..., high: ...}} with log: true or step: ... if you like, or a list.")
    numbers = {name: _number(where, value[name]) for name in ("low", "high", "step") if value.get(name) is not None}
    log, step = value.get("log", False), numbers.get("step")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: log is {log!r}; give true or false.")
    if numbers["low"] > numbers["high"]:
        raise ConfigError(
            f"{where}: low is {numbers['low']} and high is {numbers['high']}; low must not be the larger one."
        )
    if log and (step is not None or numbers["low"] <= 0):
        raise ConfigError(f"{where}: with log: true, low must be above 0 and there is no step.")
    if step is not None and step <= 0:
        raise ConfigError(f"{where}: step is {step}; it must be above 0.")
    return Range(numbers["low"], numbers["high"], log, step)


def _number(where: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return value if isinstance(value, int) else float(value)  # YAML reads 1e-4 as a text
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: {value!r} is no number; for other values give a list.") from None
