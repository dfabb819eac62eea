"""README is short and right: its commands exist, with all options that the docs give them; its figures stand in docs/results.md."""

import dataclasses
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger

from setrec.class_names import CLASSES
from setrec.commands import COMMANDS
from setrec.commands.estimate import Workload
from setrec.commands.predict_file import PredictFileOptions, predict_file
from setrec.commands.update_options import UpdateOptions
from setrec.data.datamodule import SETRecDataModule
from setrec.module import SETRecModule
from setrec.recipe import Recipe
from setrec.sasrec import SASRecModule
from setrec.serve.options import ServeOptions

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^ *```bash\n(.*?)^ *```", re.M | re.S)
CODE = re.compile(r"`((?:setrec|python main\.py|python -m setrec) [^`]+)`")
NOTHING: frozenset[str] = frozenset()
LIGHTNING = ("fit", "validate", "test", "refit", "predict")


def arguments(thing: object) -> set[str]:
    """Names of the arguments of a class or a function."""
    return set(inspect.signature(thing).parameters)  # type: ignore[arg-type]


def fields(dataclass: type) -> set[str]:
    return {field.name for field in dataclasses.fields(dataclass)}


def of_any_class() -> set[str]:
    """Arguments of the classes that a command line can name."""
    found = {"class_path", "init_args", "help"}
    for name in CLASSES:
        module, _, cls = name.rpartition(".")
        found |= arguments(getattr(importlib.import_module(module), cls))
    for logger in (CSVLogger, MLFlowLogger, WandbLogger):
        found |= arguments(logger)
    return found


NESTED = of_any_class()
TOP: dict[str, Set[str]] = {  # first part of an option of fit -> what may follow
    "model": arguments(SETRecModule) | fields(Recipe) | arguments(SASRecModule) | {"help"},
    "data": arguments(SETRecDataModule),
    "trainer": arguments(Trainer),
    "checkpoint": arguments(ModelCheckpoint),
    "early_stopping": arguments(EarlyStopping),
    "predictions": {"output"},
} | dict.fromkeys(("config", "ckpt_path", "seed_everything", "test_after_fit", "compare"), NOTHING)


def options_of(command: str) -> Mapping[str, Set[str]]:
    """The options of a command, and what may follow each after a dot."""
    if command in LIGHTNING:
        return TOP | (
            dict.fromkeys(arguments(predict_file) | fields(PredictFileOptions), NOTHING) if command == "predict" else {}
        )
    if command == "update":  # its own options, and flags of the training
        return TOP | dict.fromkeys(fields(UpdateOptions), NESTED)
    module = importlib.import_module(COMMANDS[command].module)
    own = arguments(getattr(module, command.replace("-", "_"))) | (
        fields(ServeOptions) if command == "serve" else set()
    )
    return dict.fromkeys(own, NESTED) | ({"workload": fields(Workload)} if command == "estimate" else {})


def unknown(words: list[str]) -> list[str]:
    """What of a command line, without the program's name, doesn't exist."""
    command, *words = words
    if command.startswith("--"):
        return []
    if command not in COMMANDS:
        return [command]
    wrong, known = [], options_of(command)
    for word in words:
        if word == "--":  # ablate: what follows goes to fit
            known = TOP
        elif word.startswith("--") and word != "--help":
            first, *rest = word[2:].partition("=")[0].rstrip("+").split(".")
            follows = known.get(first)
            free = first in ("runs", "more")
            if follows is None or (rest and not free and (rest[0] not in follows or not NESTED.issuperset(rest[1:]))):
                wrong.append(word)
    return wrong


def command_lines(page: str) -> Iterator[list[str]]:
    """The words of every call of setrec, in fenced shell code and in backticks, without the program's name."""
    fenced = [block.replace("\\\n", " ") for block in FENCE.findall(page)]
    lines = [part for block in fenced for line in block.splitlines() for part in line.split(" && ")]
    for line in lines + CODE.findall(page):
        words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
        for start in (["setrec"], ["python", "main.py"], ["python", "-m", "setrec"]):
            if words[: len(start)] == start and len(words) > len(start) and not words[len(start)].isupper():
                yield words[len(start) :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_name_commands_and_options_that_exist(page: Path) -> None:
    wrong = [(words, bad) for words in command_lines(page.read_text(encoding="utf-8")) if (bad := unknown(words))]
    assert not wrong


def test_what_counts_as_a_command_line() -> None:
    shell = "pip install x && python main.py fit --a 1 \\\n  --b  # c\nTOKEN=1 setrec serve\n"
    page = f"```bash\n{shell}```\n`setrec X`, `setrec Y --z`, `setrec fit`\n"
    assert list(command_lines(page)) == [["fit", "--a", "1", "--b"], ["serve"], ["fit"]]
    assert unknown(["fti"]) == ["fti"]
    assert unknown(["fit", "--model.lrr", "1"]) == ["--model.lrr"]
    assert unknown(["fit", "--data.text.fil=x", "--data.text.file=x", "--data.cf+=y"]) == ["--data.text.fil=x"]
    assert unknown(["report", "--runs.anything", "x", "--slit"]) == ["--slit"]
    assert unknown(["ablate", "--output", "x", "--", "--trainer.max_epochs", "1", "--output"]) == ["--output"]


def test_readme_is_short_and_lists_every_command() -> None:
    assert len(README.splitlines()) <= 150
    assert re.findall(r"^\| `([a-z-]+)` \|", README, re.M) == list(COMMANDS)


def test_readmes_figures_stand_in_the_results() -> None:
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in README.splitlines() if re.search(r"\| \**\.\d{4} / ", line)]
    assert rows
    assert set(rows) <= set(results)
