"""ablate: a configuration, and the same without one of its parts at a time, over several seeds; then the report.

    setrec ablate --config quickstart --output ablation -- --trainer.max_epochs 4

What stands behind -- goes to every fit. Fits that are done stay done: the same command goes on after an interruption, and
with more seeds or factors makes only what is missing. Everything runs in this one process.
"""

import json
from pathlib import Path
from typing import Any, Literal, get_args

from jsonargparse import ArgumentParser

from setrec.backbones.t5 import T5Backbone
from setrec.commands.configurations import find_configuration
from setrec.commands.fit import SETRecCLI, prepared, run, say
from setrec.commands.report import report
from setrec.commands.words import values_of, without
from setrec.errors import ConfigError
from setrec.evaluation.results import RESULTS, write_results
from setrec.module import SETRecModule
from setrec.schemas import EvalSplit

WHOLE = "whole"  # the configuration as it is, what the others are compared with
Factor = Literal[
    "without_cf",
    "without_semantic",
    "without_isolation",
    "without_item_mask",
    "without_mask",
    "without_memory",
    "without_neighbours",
]
PARTS = {
    "without_cf": "n_cf",
    "without_semantic": "n_sem",
    "without_memory": "memory",
    "without_neighbours": "neighbours",
}
FACTORS: list[Factor] = list(get_args(Factor))
PLAN = "ablation.json"


def flags_of(factor: Factor, backbone: object) -> list[str]:
    """What takes a factor away, as flags of fit."""
    flags = {
        "without_cf": ["--model.n_cf=0"],
        "without_semantic": ["--model.n_sem=0"],
        "without_isolation": ["--model.backbone.isolate_queries=false"],  # queries see each other
        "without_item_mask": ["--model.backbone.mask=items"],  # an item's slots see each other
        "without_mask": ["--model.backbone.mask=causal"],  # what a language model has without any
        "without_memory": ["--model.memory=false"],
        "without_neighbours": ["--model.neighbours=false"],
    }
    if isinstance(backbone, T5Backbone) and factor == "without_mask":  # its encoder then sees everything
        return ["--model.backbone.mask=bidirectional", "--data.prefix_parallel=false"]
    return flags[factor]


def ablate(
    config: list[str] | str,
    output: str,
    seeds: list[int] = [2023, 2024, 2025],  # noqa: B006  (read only; shown by --help)
    factors: list[Factor] = FACTORS,
    more: dict[str, list[str] | str] | None = None,
    split: Literal["validation", "test"] = "validation",
    fit: list[str] | None = None,
) -> Path:
    """Fit a configuration and the same without each of its parts, seed by seed, and report what each part is worth.

    Flags behind -- go to every fit: setrec ablate --config C --output DIR -- --data.raw RAW --trainer.max_epochs 4

    Args:
        config: A configuration of fit with SETRec, a file or the name of a shipped one; several: --config A --config B, the later
            wins.
        output: Folder for everything: a folder a factor and seed, report.json, report.png.
        seeds: Of the weights and of the order of batches; every factor is fitted with each.
        factors: Parts to take away: without_cf (no collaborative slots), without_semantic (no semantic slots),
            without_isolation (the queries see each other), without_item_mask (an item's slots see each other), without_mask (T5:
            the encoder sees the whole history, which has to be trained one prefix a row; decoder-only: plainly causal),
            without_memory, without_neighbours. What the configuration doesn't have isn't taken away.
        more: Factors of your own as flags of fit: --more.smaller="--model.bottleneck=32".
        split: Where they are compared: validation, for decisions; test, to report what was decided before.
        fit: The flags for every fit; what stands behind --.

    Returns:
        The path of report.json.

    Raises:
        ConfigError: another model than SETRec, several processes, or a folder that holds another ablation.
    """
    configs = [find_configuration(name) for name in ([config] if isinstance(config, str) else config)]
    words, folder = list(fit or []), Path(output)
    start = [f"--config={path}" for path in configs]
    cli = prepared([*start, *words])
    if not isinstance(cli.model, SETRecModule):
        raise ConfigError(f"{', '.join(configs)} trains {cli.model.label}; ablate takes SETRec apart.")
    if cli.trainer.world_size > 1:
        raise ConfigError(
            "ablate fits in one process: set -- --trainer.devices 1, or run `fit` for every factor and seed and put them into "
            "one `report`."
        )
    wanted: dict[str, list[str]] = {WHOLE: []}
    backbone, options = cli.model.backbone_settings[0], cli.model.hparams
    there = [factor for factor in factors if factor not in PARTS or options[PARTS[factor]]]
    wanted |= {factor: flags_of(factor, backbone) for factor in there}
    wanted |= {name: [given] if isinstance(given, str) else given for name, given in (more or {}).items()}
    check_plan(folder, "\n".join(Path(path).read_text() for path in configs), words, wanted)
    runs: dict[str, list[str] | str] = {}
    for seed in seeds:  # seed by seed: an interrupted ablation is one with fewer seeds
        for name, flags in wanted.items():
            where = folder / name / f"seed_{seed}"
            if not list(where.rglob(RESULTS[split])):
                say(f"ablate: {name}, seed {seed}")
                fit_one([*start, *words, *flags], name, seed, where, split)
            runs[name] = [str(folder / name / f"seed_{one}") for one in seeds]
    return report(runs, output, split, against_baselines="first")


def from_words(words: list[str]) -> Path:
    """`ablate` from a command line. (auto_cli would take --config for a file of its own arguments.)"""
    cut = words.index("--") if "--" in words else len(words)
    parser = ArgumentParser(prog="setrec ablate", description=(ablate.__doc__ or "").split("\n", 1)[0])
    parser.add_function_arguments(ablate, as_group=False)
    own = words[:cut]
    if configs := values_of(own, "--config"):  # given once or more, it is one list
        own = [*without(own, "--config"), f"--config={json.dumps(configs)}"]
    given = parser.parse_args([*own, f"--fit={json.dumps(words[cut + 1 :])}"])
    return ablate(**given.as_dict())


def check_plan(folder: Path, config: str, words: list[str], wanted: dict[str, list[str]]) -> None:
    """Write down what is ablated, or check that the folder's fits are of this very ablation.

    Raises:
        ConfigError: they are of another.
    """
    path = folder / PLAN
    plan: dict[str, Any] = {"config": config, "fit": words, "factors": {}}
    if path.exists():
        plan = json.loads(path.read_text())
        for name, flags in wanted.items():
            if plan["factors"].get(name, flags) != flags:
                raise ConfigError(
                    f"{folder} holds {name} with other flags ({plan['factors'][name]}): give another --output."
                )
        if plan["config"] != config or plan["fit"] != words:
            raise ConfigError(
                f"{folder} holds fits of another configuration or with other flags: give another --output."
            )
    plan["factors"] |= wanted
    write_results(path, plan)


def fit_one(words: list[str], name: str, seed: int, where: Path, split: EvalSplit) -> None:
    """One fit and its figures on the split, under its best checkpoint.

    Raises:
        ConfigError: the options don't go together, said with the factor's name.
    """
    own = [f"--seed_everything={seed}", f"--data.seed={seed}", f"--trainer.default_root_dir={where}"]
    own.append(f"--test_after_fit={'true' if split == 'test' else 'false'}")
    try:
        cli: SETRecCLI = run(["fit", *words, *own])
    except ConfigError as error:
        raise ConfigError(f"{name}: {error} (--factors leaves it out)") from error
    if split == "validation":
        best = getattr(cli.trainer.checkpoint_callback, "best_model_path", "")
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=best, verbose=False)
