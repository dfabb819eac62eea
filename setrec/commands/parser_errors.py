"""Errors of a parser in one sentence."""

import difflib
import re

from jsonargparse import ArgumentParser

from setrec.class_names import CLASSES
from setrec.errors import ConfigError

_NOISE = (
    "Parser key",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Does not validate",
    "Expected a path but",
    "Problem with given",
)
_PLAIN = {  # kind of value -> what it is called in YAML
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list, as in [1, 2]",
    "dict": "a mapping, as in {name: value}",
    "NoneType": "null",
}


class OneSentenceParser(ArgumentParser):
    """A parser whose errors are one sentence, without a list of all options."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        """Refuse the command line.

        Raises:
            ConfigError: always.
        """
        said = of_parser(message)
        if unknown := re.match(r"unrecognized arguments: ([^ =]+)", message):
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            said += f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(said) from ex


def of_parser(message: str) -> str:
    """What the parser says over many lines: the option, what it expects, and what it was given."""
    option = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    if missing := re.match(r"the following arguments are required: (.+)", message):
        return f"missing: {', '.join('--' + name for name in missing[1].split(', '))}; `setrec COMMAND --help` explains it."
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    reasons = [re.sub(r"<class '([^']+)'>|typing\.Literal\[(.+?)\]", r"\1\2", line) for line in lines if line]
    reasons = [line for line in dict.fromkeys(reasons) if not line.startswith(_NOISE)]
    given = re.findall(r"(?:Given value:|Got value:) (.+)", message)
    if kinds := [kind for line in reasons for kind in re.findall(r"^Expected an? (.+?)(?:\. Got value: .*)?$", line)]:
        reasons = [line for line in reasons if not re.match(r"Expected an? ", line)]
        kinds = [f"one of {kind}" if kind.startswith("'") else _PLAIN.get(kind, kind) for kind in kinds]
        reasons.insert(0, f"needs {' or '.join(kinds)}")
    # all else that is said of a class that there is not is noise
    for name in re.findall(r"Expected a dot import path string: (\S+)", message):
        reasons, given = [f"there is no class {name}; {_alike(name)}"], []
    said = "; ".join(reasons or lines[:1]) + (f"; given is {given[-1][:80]}" if given else "")
    if not option:
        return f"{said}; `setrec COMMAND --help` lists the options."
    # the parser of a class that is the value of an option has said it of its own option
    return f"--{option}.{said[2:]}" if said.startswith("--") else f"--{option}: {said}"


def _alike(name: str) -> str:
    """What a misspelt class may be."""
    known = {own.rpartition(".")[2].lower(): own.rpartition(".")[2] for own in CLASSES}
    found = [known[low] for low in known if len(name) > 2 and name.lower() in low]
    found = found or [known[low] for low in difflib.get_close_matches(name.lower(), known)]
    if found:
        return f"did you mean {' or '.join(found)}?"
    return "`setrec COMMAND --help` lists this project's; name one of your own with its module, as in my_module.MyClass"
