"""The words of a command line: functions that read or change them before a parser does."""

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from setrec.commands.parser_errors import OneSentenceParser
from setrec.errors import ConfigError
from setrec.files.yaml_size import check_yaml


def call(function: Callable[..., Any], name: str, words: Sequence[str]) -> Any:
    """Call a function with the options of a command line, and return what it returns.

    Args:
        function: does the work; its parameters are the options, its docstring is the help.
        name: the name of the command.
        words: the words after the name.

    Raises:
        ConfigError: an option that there is not, or a wrong value.
    """
    return auto_cli(
        function, args=list(words), as_positional=False, prog=f"setrec {name}", parser_class=OneSentenceParser
    )


def call_around_fit(function: Callable[..., Any], name: str, words: Sequence[str]) -> Any:
    """Run a command that fits: what follows `--` are flags of fit, its argument `fit`.

    auto_cli, which `call` uses, would read --config as a file with arguments of the command itself.
    """
    cut = words.index("--") if "--" in words else len(words)
    parser = OneSentenceParser(prog=f"setrec {name}", description=(function.__doc__ or "").split("\n", 1)[0])
    parser.add_function_arguments(function, as_group=False)
    own = words[:cut]
    if configs := values_of(own, "--config"):  # given once or more, it is one list
        own = [*without(own, "--config"), f"--config={json.dumps(configs)}"]
    given = parser.parse_args([*own, f"--fit={json.dumps(words[cut + 1 :])}"])
    return function(**given.as_dict())


def check_configurations(words: Sequence[str]) -> None:
    """Check the size of every YAML file that a command line names, and of what it gives for --config.

    Raises:
        ConfigError: see `check_yaml`.
    """
    values = [word.partition("=")[2] or word for word in words]
    files = [value for value in values if value.endswith((".yaml", ".yml")) and Path(value).is_file()]
    for value in dict.fromkeys([*values_of(words, "--config", "-c"), *files]):
        check_yaml(value)


def command_of(words: Sequence[str]) -> str:
    """A command that can be pasted into a shell."""
    return shlex.join(["setrec", *words])


def values_of(words: Sequence[str], *options: str) -> list[str]:
    """What a command line gives for an option, in order: `--option value` or `--option=value`."""
    found = []
    for word, after in zip(words, [*words[1:], ""], strict=False):  # no words: nothing
        name, equals, value = word.partition("=")
        if name in options:
            found.append(value if equals else after)
    return [value for value in found if value]


def with_value(words: Sequence[str], flag: str) -> list[str]:
    """Give the value true to a flag that has none."""
    after = [*words[1:], ""]
    alone = [word == flag and follows not in ("true", "false") for word, follows in zip(words, after, strict=False)]
    return [f"{word}=true" if bare else word for word, bare in zip(words, alone, strict=True)]


def without(words: Sequence[str], option: str, value: str = "") -> list[str]:
    """Leave out an option and its value, if the value begins with `value`."""
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word == option and (rest or [""])[0].startswith(value):
            rest = rest[1:]
        elif not word.startswith(f"{option}={value}"):
            kept.append(word)
    return kept


def ckpt_path_of(words: Sequence[str]) -> Path | None:
    """The file that `--ckpt_path` names; None if the option is missing, or has a keyword such as `best`.

    Raises:
        ConfigError: the file does not exist.
    """
    for value in values_of(words, "--ckpt_path"):
        if value in ("best", "last", "hpc", "registry", "null"):
            return None
        if not Path(value).exists():
            raise ConfigError(f"--ckpt_path {value}: no such file; give the path that fit printed at its end.")
        return Path(value)
    return None
