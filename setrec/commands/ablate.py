"""ablate: fit a configuration, and fit it again without each of its parts, over several seeds; then report.

    setrec ablate --config quickstart --output ablation -- --trainer.max_epochs 4

The flags after -- are passed to every fit. Finished fits are kept: the same command continues after an interruption, and with more
seeds or factors it runs only the missing fits. All fits run in this one process.
"""

import json
from pathlib import Path
from typing import Any, Literal, get_args

from setrec.backbones.t5 import T5Backbone
from setrec.commands.configurations import find_configuration
from setrec.commands.fit import SETRecCLI, prepared, run, say
from setrec.commands.report import report
from setrec.commands.words import call_around_fit
from setrec.errors import ConfigError
from setrec.evaluation.results import RESULTS, write_results
from setrec.hparams import plain_hparams
from setrec.module import SETRecModule
from setrec.schemas import EvalSplit

WHOLE = "whole"  # the unchanged configuration, with which the others are compared
Factor = Literal[
    "without_cf",
    "without_semantic",
    "without_isolation",
    "without_item_mask",
    "without_mask",
    "without_memory",
    "without_neighbours",
    "without_sources",
]
OPTIONS = {  # factor -> the option of the part that it takes away
    "without_cf": "n_cf",
    "without_semantic": "n_sem",
    "without_memory": "memory",
    "without_neighbours": "neighbours",
}
SOURCES: Factor = "without_sources"  # a fit for every further source
FACTORS: list[Factor] = list(get_args(Factor))
PLAN = "ablation.json"  # what a folder's fits belong to


def without_sources(model: dict[str, Any], data: dict[str, Any]) -> dict[str, list[str]]:
    """For each further source that a model reads, without_NAME -> the flags of fit that take it away.

    Args:
        model: the options of the model, in plain types.
        data: those of the data.
    """
    tokens: dict[str, Any] = (
        {name: {} for name in data["vectors"] or {}} if model["tokens"] is None else model["tokens"]
    )
    rest = {name: {other: one for other, one in tokens.items() if other != name} for name in tokens}
    return {f"without_{name}": [f"--model.tokens={json.dumps(others)}"] for name, others in rest.items()}


def flags_of(factor: Factor, backbone: object) -> list[str]:
    """The flags of fit that take a part away."""
    flags = {
        "without_cf": ["--model.n_cf=0"],
        "without_semantic": ["--model.n_sem=0"],
        "without_isolation": ["--model.backbone.isolate_queries=false"],  # queries see each other
        "without_item_mask": ["--model.backbone.mask=items"],  # an item's slots see each other
        "without_mask": ["--model.backbone.mask=causal"],  # a language model's own mask
        "without_memory": ["--model.memory=false"],
        "without_neighbours": ["--model.neighbours=false"],
    }
    if isinstance(backbone, T5Backbone) and factor == "without_mask":  # its encoder then sees the whole history
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
    """Fit a configuration, fit it without each of its parts, and report the difference that each part makes.

    Flags after -- are passed to every fit: setrec ablate --config C --output DIR -- --data.raw RAW --trainer.max_epochs 4

    Args:
        config: A configuration of fit with SETRec, a file or the name of a shipped one; several: --config A --config B, the later
            wins.
        output: Folder for all results: a folder for each factor and seed, report.json, report.png.
        seeds: Seeds of the weights and of the order of batches; every factor is fitted with each seed.
        factors: Parts to take away: without_cf (no collaborative slots), without_semantic (no semantic slots),
            without_isolation (the queries see each other), without_item_mask (an item's slots see each other), without_mask (T5:
            the encoder sees the whole history, trained one prefix a row; decoder-only: a causal mask), without_memory,
            without_neighbours, without_sources (of --data.vectors, one after the other: without_NAME). Parts that the
            configuration doesn't have are skipped.
        more: Factors of your own as flags of fit: --more.smaller="--model.bottleneck=32".
        split: The split that is compared: validation, to make decisions; test, to report decisions made before.
        fit: The flags for every fit, those after --.

    Returns:
        The path of report.json.

    Raises:
        ConfigError: the model is not SETRec, there are several processes, or the folder holds another ablation.
    """
    configs = [find_configuration(name) for name in ([config] if isinstance(config, str) else config)]
    words, folder = list(fit or []), Path(output)
    start = [f"--config={path}" for path in configs]
    cli = prepared([*start, *words])
    if not isinstance(cli.model, SETRecModule):
        raise ConfigError(f"{', '.join(configs)} trains {cli.model.label}; ablate takes SETRec apart.")
    if cli.trainer.world_size > 1:
        raise ConfigError(
            "ablate fits in one process: set -- --trainer.devices 1, or run `fit` for every factor and seed, then one "
            "`report` over all."
        )
    wanted: dict[str, list[str]] = {WHOLE: []}
    backbone, options = cli.model.backbone_settings[0], cli.model.hparams
    present = [factor for factor in factors if factor not in OPTIONS or options[OPTIONS[factor]]]
    for factor in present:
        if factor == SOURCES:
            wanted |= without_sources(plain_hparams(options), plain_hparams(cli.datamodule.hparams))
        else:
            wanted[factor] = flags_of(factor, backbone)
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
    """Run `ablate`."""
    made: Path = call_around_fit(ablate, "ablate", words)
    return made


def check_plan(folder: Path, config: str, words: list[str], wanted: dict[str, list[str]]) -> None:
    """Write the ablation's plan into the folder, or check that the folder's fits belong to this ablation.

    Raises:
        ConfigError: they belong to another.
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
    """Run one fit, and evaluate its best checkpoint on the split.

    Raises:
        ConfigError: the options don't go together; the message names the factor.
    """
    own = [f"--seed_everything={seed}", f"--data.seed={seed}", f"--trainer.default_root_dir={where}"]
    own.append(f"--test_after_fit={'true' if split == 'test' else 'false'}")
    try:
        cli: SETRecCLI = run(["fit", *words, *own])
    except ConfigError as error:
        raise ConfigError(f"{name}: {error} (--factors leaves it out)") from error
    if split == "validation":
        best = cli.checkpoint.outcome if cli.checkpoint is not None else None
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=best, verbose=False)
