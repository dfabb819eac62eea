"""Finds and reads the runs of a report, and checks that all were evaluated on the same users and targets."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from setrec.errors import ConfigError, DataError
from setrec.evaluation.per_user import per_user_paths
from setrec.evaluation.results import LABELS, MODEL, RESULTS, TRAIN_ALONE, label_of
from setrec.files.hashes import file_hash, read_sealed
from setrec.schemas import GROUPS, EvalSplit

# entries of the protocol that must be equal in all runs
PROTOCOL_FIELDS = ("split", "users", "candidates", "cutoffs", "history", "target", "cold", "ties", "mean")
# options that do not change the method
IGNORED_OPTIONS = {"seed", "root", "raw", "name", "num_workers", "pin_memory", "eval_batch_size", "top_k"}
USER_COLUMNS = ("user_id", "method", "filter_seen", "group", "history")
HIT_COLUMNS = ("user_id", "item_id", "count", "decile", "method", "filter_seen")
PER_SEED_OPTIONS = {"start_from"}  # checkpoints: every seed has its own
Key = tuple[bool, str]  # filter_seen, group


class EvaluationSet(NamedTuple):
    """The users and targets that every run of a report was evaluated on, sorted by own id."""

    users: dict[str, list[str]]  # group -> user ids
    history: dict[str, np.ndarray]  # group -> (n,) items that each user had
    target_user: np.ndarray  # (m,) place of each target's user in users["all"]
    targets: pl.DataFrame  # m rows: user_id, item_id, count, decile


@dataclass
class Method:
    """One row of the tables: a run with its S seeds, or a baseline, which has one.

    Attributes:
        name: Its name in the report.
        baseline: Whether it is a baseline.
        values: (filter_seen, group) -> (S, n, M) float64, by seed, user and metric.
        hits: filter_seen -> (m,) float64, the share of seeds that found each target among the first `k`.
        paths: The results files, one for each seed.
        protocols: The protocols in the results files.
        options: The arguments of model and data, flat; {} for a baseline.
        lists: filter_seen -> for each seed, the figures of the lists themselves by name; {} where the results hold none.
    """

    name: str
    baseline: bool
    values: dict[Key, np.ndarray]
    hits: dict[bool, np.ndarray]
    paths: list[Path]
    protocols: list[dict[str, Any]]
    options: dict[str, Any]
    lists: dict[bool, list[dict[str, float]]]


class RunResult(NamedTuple):
    """The content of a results file and of the files beside it."""

    path: Path
    protocol: dict[str, Any]
    options: dict[str, Any]
    evaluated: EvaluationSet
    values: dict[str, dict[Key, np.ndarray]]  # method -> (n, M)
    hits: dict[str, dict[bool, np.ndarray]]  # method -> (m,)
    lists: dict[bool, dict[str, dict[str, float]]]  # filter_seen -> method -> figures of the lists themselves


def load_runs(
    runs: Mapping[str, list[str]], split: EvalSplit, metrics: list[str], k: int
) -> tuple[list[Method], EvaluationSet]:
    """Load the runs and their baselines.

    Args:
        runs: name -> folders, results files or patterns of them; each results file is a seed.
        split: The split that the runs were evaluated on.
        metrics: M names, e.g. ndcg@10.
        k: Length of the list in which a target counts as found.

    Returns:
        The runs in their order, then the baselines; and what they were evaluated on.

    Raises:
        ConfigError: nothing is found, or the runs were not evaluated on the same users and targets.
        DataError: a file is missing or damaged.
    """
    methods: list[Method] = []
    baselines: list[Method] = []
    first: RunResult | None = None
    for name, patterns in runs.items():
        if name in LABELS.values():
            raise ConfigError(f"--runs.{name}: a baseline has this name; give the run another name.")
        seed_results = [read_results(path, metrics, k) for path in find_results(name, patterns, split)]
        for one in seed_results:
            first = first or one
            check_same_data(first, one)
        check_seeds(name, seed_results)
        for key in (MODEL, MODEL + TRAIN_ALONE):
            if key in seed_results[0].values:
                methods.append(combine_seeds(label_of(key, name), key, seed_results))
        for key in seed_results[0].values:
            if key.removesuffix(TRAIN_ALONE) != MODEL:
                add_baseline(baselines, combine_seeds(label_of(key), key, seed_results[:1]), name)
    if first is None:
        raise ConfigError('A report needs runs: --runs.NAME "FOLDER", once for every name.')
    return methods + baselines, first.evaluated


def find_results(name: str, patterns: list[str], split: EvalSplit) -> list[Path]:
    """The results files of some folders, files and patterns, each once.

    Raises:
        ConfigError: one of them holds no results file.
    """
    file = RESULTS[split]
    found: dict[Path, Path] = {}
    for pattern in patterns:
        here = [Path(path) for path in sorted(glob(pattern, recursive=True))]
        results = [
            result
            for path in here
            for result in (
                [path] if path.name == file else [path / file] if (path / file).is_file() else sorted(path.rglob(file))
            )
        ]
        if not results:
            command = "test" if split == "test" else "validate"
            why = f"no {file} in it; make one with `setrec {command} --ckpt_path PATH`" if here else "no such folder"
            raise ConfigError(f"--runs.{name} {pattern!r}: {why}.")
        found |= {result.resolve(): result for result in results}
    return list(found.values())


def read_results(path: Path, metrics: list[str], k: int) -> RunResult:
    """Read a results file, and the metrics of its users and targets in the files beside it.

    Raises:
        DataError: a file is missing or damaged, or the files are not of one run.
        ConfigError: the files do not hold a metric.
    """
    per_user, hits_file = per_user_paths(path)
    with readable(path):
        results = read_sealed(path)
        check_files(path, results.get("files", {}))
        protocol = results["protocol"]
        columns = [*pl.read_parquet_schema(per_user), *pl.read_parquet_schema(hits_file)]
    unknown = [metric for metric in (*metrics, f"hit@{k}") if metric not in columns]
    if unknown:
        known = ", ".join(column for column in columns if "@" in column)
        raise ConfigError(f"{per_user} and {hits_file.name} hold no {unknown[0]}, but {known}: choose one of these.")
    with readable(path):
        users = pl.read_parquet(per_user, columns=[*USER_COLUMNS, *metrics])
        targets = pl.read_parquet(hits_file, columns=[*HIT_COLUMNS, f"hit@{k}"])
    users, targets = users.sort("user_id"), targets.sort("user_id", "item_id")
    values: dict[str, dict[Key, np.ndarray]] = {}
    for (method, filtered, group), rows in users.partition_by(
        ["method", "filter_seen", "group"], as_dict=True, maintain_order=True
    ).items():
        values.setdefault(str(method), {})[bool(filtered), str(group)] = rows.select(metrics).to_numpy()  # (n, M)
    hits: dict[str, dict[bool, np.ndarray]] = {}
    for (method, filtered), rows in targets.partition_by(
        ["method", "filter_seen"], as_dict=True, maintain_order=True
    ).items():
        hits.setdefault(str(method), {})[bool(filtered)] = rows[f"hit@{k}"].to_numpy().astype(np.float64)  # (m,)
    main = bool(protocol["filter_seen"])
    check_means(path, results, values[MODEL][main, "all"], metrics)
    own_targets = targets.filter(method=MODEL, filter_seen=main).select("user_id", "item_id", "count", "decile")
    own = users.filter(method=MODEL, filter_seen=main)
    by_group = {group: own.filter(group=group) for group in GROUPS}
    everyone = by_group["all"]["user_id"]
    evaluated = EvaluationSet(
        users={group: rows["user_id"].to_list() for group, rows in by_group.items()},
        history={group: rows["history"].to_numpy() for group, rows in by_group.items()},
        target_user=everyone.search_sorted(own_targets["user_id"]).to_numpy(),  # (m,)
        targets=own_targets,
    )
    for by_key in values.values():  # a group may have no targets
        for filtered in (True, False):
            for group in GROUPS:
                by_key.setdefault((filtered, group), np.zeros((0, len(metrics))))
    lists = {main: results.get("lists", {}), not main: results.get("other_filter", {}).get("lists", {})}
    return RunResult(path, protocol, flat_options(results.get("options", {})), evaluated, values, hits, lists)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what can go wrong in reading the results at `path` and the files beside it into a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        missing = Path(error.filename) if error.filename else per_user_paths(path)[0]
        raise DataError(
            f"{missing} is missing beside {path.name}: run `test` or `validate` on the checkpoint again; it writes "
            "this file too."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} or a file beside it is damaged ({str(error).splitlines()[0]}): test again.") from None


def check_files(path: Path, hashes: Mapping[str, str]) -> None:
    """Check that the files beside results are those that were written with them. Earlier versions wrote no hashes.

    Raises:
        ValueError: one was changed.
    """
    for name, expected in hashes.items():
        if file_hash(path.with_name(Path(name).name)) != expected:
            raise ValueError(f"{name} was changed after it was written")


def check_means(path: Path, results: dict[str, Any], values: np.ndarray, metrics: list[str]) -> None:
    """Check that per-user values, (n, M), are of the same run as the results.

    Raises:
        DataError: their means differ.
    """
    for mean, metric in zip(values.mean(axis=0), metrics, strict=True):
        if abs(mean - results["metrics"]["all"][metric]) > 1e-9:
            raise DataError(f"{path} and the per-user figures beside it are of different runs: test again.")


def check_same_data(first: RunResult, other: RunResult) -> None:
    """Check that two runs were evaluated on the same users and targets in the same way.

    Raises:
        ConfigError: they were not; the message names the first difference.
    """
    for what in PROTOCOL_FIELDS:
        one, two = first.protocol[what], other.protocol[what]
        if one != two:
            refuse_run(first, other, f"{what} is {two!r} in the first and {one!r} in the second")
    for group in GROUPS:
        if first.evaluated.users[group] != other.evaluated.users[group]:
            known = set(first.evaluated.users[group])
            strange = [user for user in other.evaluated.users[group] if user not in known]
            refuse_run(
                first, other, f"{len(strange)} users of the first are missing in the second, such as {strange[0]!r}"
            )
    if not first.evaluated.targets.equals(other.evaluated.targets):
        refuse_run(first, other, "the users' targets differ, or how often they occur in training")
    if any((first.evaluated.history[group] != other.evaluated.history[group]).any() for group in GROUPS):
        refuse_run(first, other, "the users' histories differ")


def refuse_run(first: RunResult, other: RunResult, why: str) -> None:
    """Raise the ConfigError of `check_same_data`."""
    names = f"{other.path} ({other.protocol['dataset']}) and {first.path} ({first.protocol['dataset']})"
    raise ConfigError(f"{names} can't be compared in one report, since {why}: leave one of them out.")


def check_seeds(name: str, seed_results: list[RunResult]) -> None:
    """Check that the results of a run are of different seeds and of the same options.

    Raises:
        ConfigError: the same weights were tested twice, or an option differs.
    """
    for i, one in enumerate(seed_results):
        for earlier in seed_results[:i]:
            if all(np.array_equal(one.values[MODEL][key], earlier.values[MODEL][key]) for key in one.values[MODEL]):
                raise ConfigError(
                    f"--runs.{name}: {earlier.path} and {one.path} hold the same figures for every user: one run, tested "
                    "twice, is not two seeds; give one of them."
                )
        changed = option_differences(seed_results[0].options, one.options)
        if changed:
            option, (here, there) = next(iter(changed.items()))
            raise ConfigError(
                f"--runs.{name}: {seed_results[0].path} and {one.path} are not seeds of one run: {option} is {here} in the first "
                f"and {there} in the second; give them different names."
            )


def combine_seeds(name: str, key: str, seed_results: list[RunResult]) -> Method:
    """One method from the results of its seeds."""
    values = {
        at: np.stack([one.values[key][at] for one in seed_results]) for at in seed_results[0].values[key]
    }  # (S, n, M)
    hits = {
        filtered: np.mean([one.hits[key][filtered] for one in seed_results], axis=0)
        for filtered in seed_results[0].hits[key]
    }  # (m,)
    model = key.removesuffix(TRAIN_ALONE) == MODEL
    protocols, options = [one.protocol for one in seed_results], seed_results[0].options if model else {}
    lists = {filtered: [one.lists[filtered].get(key, {}) for one in seed_results] for filtered in (True, False)}
    return Method(name, not model, values, hits, [one.path for one in seed_results], protocols, options, lists)


def add_baseline(baselines: list[Method], found: Method, run: str) -> None:
    """Add a baseline once; with other figures beside another run (other text vectors, for example) it gets its own row."""
    for other in baselines:
        if other.name.split(" [")[0] == found.name and all(
            np.allclose(found.values[key], other.values[key], atol=1e-9) for key in found.values
        ):
            return
    if any(other.name.split(" [")[0] == found.name for other in baselines):
        found.name += f" [{run}]"
    baselines.append(found)


def flat_options(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as names of flags: {"model.backbone.shape": "tiny", ...}, without those that don't change the method."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if not prefix and key not in ("model", "data"):
            continue
        if (prefix == "data" and key in IGNORED_OPTIONS) or (prefix == "model" and key == "top_k"):
            continue
        name = prefix if key == "init_args" else f"{prefix}.{key}".strip(".")
        if isinstance(value, Mapping):
            found |= flat_options(value, name)
        elif key in PER_SEED_OPTIONS:
            found[name] = "given" if value else None
        else:
            found[name.removesuffix(".class_path")] = file_names(value)
    return found


def file_names(value: Any) -> Any:
    """A value in which files have no folders, since the same file may be in another folder."""
    if isinstance(value, list):
        return [file_names(one) for one in value]
    if isinstance(value, Mapping):
        return {key: Path(one).name if key == "file" and one else file_names(one) for key, one in value.items()}
    return value


def option_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The options in which two runs differ: name -> (value in one, value in other); None where it is absent."""
    names = [*one, *(name for name in other if name not in one)]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}
