"""The commands, one module each, and the table of them that `setrec --help` prints and `setrec.cli` runs them from.

A command is a function whose parameters are its options, or, where the words have to be read before a parser sees them, a function
`from_words`, which gets the words after the command's name. A module is imported when its command is run, so that `setrec --help`
and `setrec serve` do not load what only training needs.
"""

from typing import NamedTuple


class Command(NamedTuple):
    """A row of the table."""

    module: str  # runs the command
    help: str  # what it does, in one line
    function: str | None = None  # in the module; its parameters are the options; None: `from_words`


COMMANDS = {
    "fit": Command("setrec.commands.fit", "train a model from raw files or prepared data"),
    "validate": Command("setrec.commands.fit", "evaluate a checkpoint on the validation split"),
    "test": Command("setrec.commands.fit", "evaluate a checkpoint on the test split, and the baselines beside it"),
    "predict": Command("setrec.commands.predict", "recommend items to every user of the data, or of --histories FILE"),
    "refit": Command("setrec.commands.refit", "train a fitted model further, on the validation period"),
    "add-items": Command(
        "setrec.commands.add_items", "add items to a trained model's catalogue, or remove items", "add_items"
    ),
    "publish": Command("setrec.commands.publish", "write a model as a folder for the Hugging Face hub", "publish"),
    "export": Command("setrec.commands.export", "write a model as files that other programs serve", "export"),
    "merge": Command("setrec.commands.merge", "merge LoRA adapters into their language model and write it", "merge"),
    "update": Command("setrec.commands.update", "bring a served model up to date with new events and items"),
    "forget": Command("setrec.commands.forget", "erase users from prepared data and runs", "forget"),
    "serve": Command("setrec.commands.serve", "serve recommendations over HTTP, with a page at /", "serve"),
    "report": Command("setrec.commands.report", "compare runs, with confidence intervals and tests", "report"),
    "ablate": Command(
        "setrec.commands.ablate", "fit a configuration again and again, each time without one of its parts"
    ),
    "tune": Command("setrec.commands.tune", "search for better options of fit, by validation"),
    "estimate": Command("setrec.commands.estimate", "estimate the time and memory of a run", "estimate"),
}
