"""The parser of the commands that fit: the arguments of a default are its own class's only."""

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from setrec.commands.parser_errors import OneSentenceParser


class Parser(OneSentenceParser, LightningArgumentParser):
    """LightningCLI's parser, in which another class starts from its own defaults.

    jsonargparse carries arguments over when a class is exchanged, defaults included: TableFiles would get the file of items that
    OfficialRelease, the default reader, has by default.
    """

    def get_defaults(self, *args: Any, **kwargs: Any) -> Namespace:
        """Return the defaults, with no more arguments of a class than the default itself names."""
        defaults: Namespace = super().get_defaults(*args, **kwargs)
        for action in self._actions:
            value = defaults.get(action.dest)
            if isinstance(value, Namespace) and "class_path" in value and "init_args" in value:
                named = (action.default or {}).get("init_args") or {}
                for name in [name for name, _ in value["init_args"].items() if name not in named]:
                    del value["init_args"][name]
        return defaults
