"""tune: search for better options of fit, by validation alone; Optuna chooses what to try.

    setrec tune --config quickstart --space tune/quickstart --output tuning --budget_minutes 20 -- --trainer.max_epochs 4

The flags after -- are passed to every fit. The same command goes on with the study; several processes may share it. The test
split is never looked at.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from setrec.commands.configurations import find_configuration, find_space
from setrec.commands.fit import SETRecCLI, command_line, say
from setrec.commands.space import Choices, Range, Space, as_word, read_space
from setrec.commands.words import call_around_fit
from setrec.errors import ConfigError, SETRecError
from setrec.evaluation.results import write_results
from setrec.files.whole import whole_file
from setrec.report.tuning import draw_tuning, print_tuning
from setrec.trainer.trial import TrialCallback, cpu_seconds

if TYPE_CHECKING:
    import optuna

FAILURES = 5  # trials in a row that fail: then something is wrong with all of them


class OptionsOnly(SETRecCLI):
    """Reads a command line and makes nothing of it."""

    def instantiate_classes(self) -> None:
        """Nothing."""


def tune(
    config: list[str] | str,
    space: str,
    output: str,
    budget_minutes: float = 60.0,
    trials: int | None = None,
    storage: str | None = None,
    study: str = "tune",
    fit: list[str] | None = None,
) -> Path:
    """Search for better options of fit by the figure of validation that its checkpoints watch; the test split is never used.

    Flags after -- are passed to every fit: setrec tune --config C --space S --output DIR -- --trainer.max_epochs 4

    Args:
        config: A configuration of fit, a file or the name of a shipped one; several: --config A --config B, the later wins.
        space: YAML file with the options to search, or the name of a shipped one: a dotted name of an option of fit ->
            {low, high}, with log (true: by factors) or step, or a list of choices.
        output: Folder for a run of every trial, tune.json, tune.png and best.yaml.
        budget_minutes: Minutes of CPU time that this process may use, all threads together; then the running trial ends.
        trials: Trials that this process begins at most; null: as many as the budget allows.
        storage: Where the study is kept: sqlite:///FILE, or a journal file; null: a journal in the output folder. Processes that
            share it share the study.
        study: Name of the study in its storage; the same name goes on with it.
        fit: The flags for every fit, those after --.

    Returns:
        The path of best.yaml.

    Raises:
        ConfigError: Optuna is not installed, an option of the space does not exist, the study is another one, or no trial finished.
    """
    if find_spec("optuna") is None:
        raise ConfigError('tune needs the package optuna, which is not installed: pip install "setrec[tune]".')
    if budget_minutes <= 0 or (trials is not None and trials < 1):
        raise ConfigError(f"budget_minutes is {budget_minutes} and trials {trials}: both must be above 0.")
    configs = [find_configuration(name) for name in ([config] if isinstance(config, str) else config)]
    space_path = find_space(space)
    options, folder = read_space(space_path), Path(output)
    words = [*(f"--config={path}" for path in configs), *(fit or [])]
    base = options_of(words, options)
    if base["checkpoint"]["monitor"] is None or base["trainer"]["enable_checkpointing"] is False:
        raise ConfigError(
            "tune takes its figure from the checkpoints: set --checkpoint.monitor, and keep checkpointing on."
        )
    plan = {
        "space": Path(space_path).read_text(),
        "config": [Path(path).read_text() for path in configs],
        "fit": fit or [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    found = open_study(storage or str(folder / "study.journal"), study, base["checkpoint"]["mode"], plan)
    enqueue_base(found, options, base)
    search(found, options, words, folder, base["checkpoint"]["monitor"], budget_minutes * 60, trials)
    return conclude(found, base, folder)


def from_words(words: list[str]) -> Path:
    """Run `tune`."""
    made: Path = call_around_fit(tune, "tune", words)
    return made


def options_of(words: Sequence[str], space: Space) -> dict[str, Any]:
    """Every option of fit under a command line, after the names in the space have been tried.

    Raises:
        ConfigError: an option of the space doesn't exist, or doesn't take the first of its values.
    """
    first = [as_word(name, _first(values)) for name, values in space.items()]
    command_line([*words, *first], run=False, kind=OptionsOnly)
    found: dict[str, Any] = command_line(list(words), run=False, kind=OptionsOnly).config.as_dict()
    return found


def open_study(storage: str, name: str, mode: str, plan: dict[str, Any]) -> "optuna.Study":
    """The study of this name, new or with the trials of before.

    Raises:
        ConfigError: the storage can't be used, or the study has another space or configuration.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction: Literal["maximize", "minimize"] = "maximize" if mode == "max" else "minimize"
    try:
        where = storage if "://" in storage else JournalStorage(JournalFileBackend(storage))
        found = optuna.create_study(storage=where, study_name=name, direction=direction, load_if_exists=True)
    except Exception as error:  # of the data base's driver
        raise ConfigError(
            f"--storage {storage} can't be used ({(str(error).splitlines() or [''])[0][:200]})."
        ) from error
    if found.user_attrs.setdefault("plan", plan) != plan:
        raise ConfigError(f"the study {name!r} has another space, configuration or flags: give another --study.")
    found.set_user_attr("plan", plan)
    return found


def enqueue_base(study: "optuna.Study", space: Space, base: dict[str, Any]) -> None:
    """Let the first trial be the configuration as it is, if the space holds it."""
    values = {}
    for name, of in space.items():
        value = _inside(base, name)
        if isinstance(of, Choices):
            value = json.dumps(value)
            if value not in of.values:
                return
        elif not of.holds(value):
            return
        values[name] = value
    study.enqueue_trial(values, skip_if_exists=True)


def search(
    study: "optuna.Study", space: Space, words: list[str], folder: Path, monitor: str, budget: float, trials: int | None
) -> None:
    """Run trials until the budget, in seconds of CPU time, is used up, or there were enough of them.

    Raises:
        ConfigError: FAILURES trials in a row have failed.
    """
    import optuna

    states = optuna.trial.TrialState
    start, failures, begun = cpu_seconds(), 0, 0

    def has_budget() -> bool:
        return cpu_seconds() - start < budget

    while has_budget() and (trials is None or begun < trials):
        trial = study.ask()
        begun += 1
        values = {name: suggested(trial, name, of) for name, of in space.items()}
        say(f"tune: trial {trial.number}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
        callback = TrialCallback(trial, monitor, has_budget)
        flags = [as_word(name, value) for name, value in values.items()]
        flags += ["--test_after_fit=false", f"--trainer.default_root_dir={folder / f'trial_{trial.number}'}"]
        reason = ""
        try:
            cli = command_line(["fit", *words, *flags], callbacks=[callback])
            score = cli.checkpoint.best_model_score if cli.checkpoint is not None else None
            if score is None:
                reason = "nothing was validated"
        except SETRecError as error:
            reason = str(error)
        except Exception as error:  # a library's; the other trials may do better
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        except BaseException:
            study.tell(trial, state=states.FAIL)
            raise
        if callback.ended == "budget":
            reason = "the budget was used up"
        if callback.ended is not None:
            trial.set_user_attr("reason", reason)
            study.tell(trial, state=states.PRUNED)
        elif reason:
            trial.set_user_attr("reason", reason)
            study.tell(trial, state=states.FAIL)
            say(f"tune: trial {trial.number} failed: {reason}")
            failures += 1
            if failures == FAILURES:
                raise ConfigError(f"{FAILURES} trials in a row failed, the last one because: {reason}")
            continue
        else:
            assert score is not None
            study.tell(trial, float(score))
        failures = 0


def suggested(trial: "optuna.Trial", name: str, of: Range | Choices) -> Any:
    """The value that a trial tries for an option, in plain types."""
    if isinstance(of, Choices):
        return json.loads(trial.suggest_categorical(name, of.values))
    if of.whole:
        return trial.suggest_int(name, int(of.low), int(of.high), step=int(of.step or 1), log=of.log)
    return trial.suggest_float(name, of.low, of.high, step=of.step, log=of.log)


def conclude(study: "optuna.Study", base: dict[str, Any], folder: Path) -> Path:
    """Print the trials and what mattered, and write tune.json, tune.png and best.yaml.

    Raises:
        ConfigError: no trial has finished.
    """
    import optuna

    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    rows = []
    for trial in study.trials:
        values = {name: _plain(trial, name) for name in trial.params}
        value = trial.value if trial.value is not None else next(reversed(trial.intermediate_values.values()), None)
        reason = trial.user_attrs.get("reason", "")
        row = {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": value,
            "options": values,
            "reason": reason,
        }
        if trial.state != optuna.trial.TrialState.WAITING:
            rows.append(row)
    importance = {}
    if len({trial.value for trial in done}) > 1:
        importance = {name: float(share) for name, share in optuna.importance.get_param_importances(study).items()}
    checkpoint = base["checkpoint"]
    content = {"monitor": checkpoint["monitor"], "mode": checkpoint["mode"], "trials": rows, "importance": importance}
    print()
    print_tuning(content)
    draw_tuning(content, folder / "tune.png")
    write_results(folder / "tune.json", content)
    count = {state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "fail")}
    print(f"trials: {count['complete']} finished, {count['pruned']} ended early, {count['fail']} failed")
    if not done:
        raise ConfigError(
            f"no trial has finished: give more --budget_minutes. The trials stand in {folder / 'tune.json'}."
        )
    best, path = study.best_trial, folder / "best.yaml"
    chosen = nested({name: _plain(best, name) for name in best.params}, base)
    with whole_file(path) as hidden:
        header = f"# trial {best.number}: validation {checkpoint['monitor']} {best.value:.6f}; give it after the configuration\n"
        hidden.write_text(header + yaml.safe_dump(chosen, sort_keys=False), encoding="utf-8")
    print(f"best: trial {best.number}, {checkpoint['monitor']} {best.value:.4f}: {path}")
    return path


def nested(values: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Options with dots as a configuration holds them; the arguments of a class stand under its name."""
    content: dict[str, Any] = {}
    for name, value in values.items():
        here, there = content, dict[str, Any](base)
        *above, last = name.split(".")
        for part in above:
            here, there = here.setdefault(part, {}), there.get(part) or {}
            if "class_path" in there and "init_args" in there:
                here.setdefault("class_path", there["class_path"])
                here, there = here.setdefault("init_args", {}), there["init_args"]
        here[last] = value
    return content


def _inside(base: dict[str, Any], name: str) -> Any:
    """The value of an option with dots; None if it has none."""
    here: Any = base
    for part in name.split("."):
        here = here.get("init_args", here) if isinstance(here, dict) else {}
        here = (here or {}).get(part)
    return here


def _first(of: Range | Choices) -> Any:
    return json.loads(of.values[0]) if isinstance(of, Choices) else of.low


def _plain(trial: "optuna.trial.FrozenTrial", name: str) -> Any:
    value, choices = trial.params[name], getattr(trial.distributions[name], "choices", None)
    return value if choices is None else json.loads(value)
