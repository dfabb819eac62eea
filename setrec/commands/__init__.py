"""The commands: one module each, and the table that `setrec --help` prints and `setrec.cli` dispatches on.

Every module has a function `from_words`, which gets the words behind the command's name. A module is imported when its command is
called, so that `setrec --help` and `serve` don't wait for what only training needs.
"""

from typing import NamedTuple


class Command(NamedTuple):
    """A row of the table."""

    module: str  # that runs it
    help: str  # what it does, one line


COMMANDS = {
    "fit": Command("setrec.commands.fit", "train a model, from raw files or prepared data"),
    "validate": Command("setrec.commands.fit", "figures of a checkpoint on the validation split"),
    "test": Command("setrec.commands.fit", "figures of a checkpoint on the test split, beside the baselines"),
    "predict": Command("setrec.commands.predict", "the best items for every user, or for --histories FILE"),
    "refit": Command("setrec.commands.refit", "train a fitted model a little further, on the validation period"),
    "add-items": Command("setrec.commands.add_items", "add items to a trained model's catalogue, or take some out"),
    "publish": Command("setrec.commands.publish", "write a model as a folder for the Hugging Face hub"),
    "merge": Command("setrec.commands.merge", "write a language model with its LoRA adapters merged in"),
    "serve": Command("setrec.commands.serve", "answer over HTTP, with a page at /"),
    "report": Command("setrec.commands.report", "compare several runs, with intervals and tests"),
    "ablate": Command("setrec.commands.ablate", "fit a configuration without one of its parts at a time"),
    "estimate": Command("setrec.commands.estimate", "the time and memory that a run will take"),
}
