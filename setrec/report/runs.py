"""The runs of a report: found, read, and checked to have answered the same questions."""

import json
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
from setrec.evaluation.results import LABELS, MODEL, RESULTS
from setrec.schemas import GROUPS, EvalSplit

SAME = ("split", "users", "candidates", "cutoffs", "history", "target", "cold", "ties", "mean")  # of the protocol
FREE = {"seed", "root", "raw", "name", "num_workers", "pin_memory", "eval_batch_size", "top_k"}  # change no method
USER_COLUMNS = ("user_id", "method", "filter_seen", "group", "history")
HIT_COLUMNS = ("user_id", "item_id", "count", "decile", "method", "filter_seen")
SEEDS_OWN = {"start_from"}  # checkpoints, which each seed has of its own
Key = tuple[bool, str]  # filter_seen, group


class Questions(NamedTuple):
    """What every run of a report was asked: users and targets, each sorted by own id."""

    users: dict[str, list[str]]  # group -> user ids
    history: dict[str, np.ndarray]  # group -> (n,) items that each user had
    target_user: np.ndarray  # (m,) place of each target's user in users["all"]
    targets: pl.DataFrame  # m rows: user_id, item_id, count, decile


@dataclass
class Method:
    """One row of the tables: a run with its seeds, or a baseline, which has one.

    Attributes:
        name: what it is called.
        baseline: it was not trained.
        values: under (filter_seen, group): (S, n, M) float64, every seed's, user's and metric's.
        hits: under filter_seen: (m,) float64, the share of seeds that had each target among the first `k`.
        paths: the results files, one a seed.
        protocols: theirs.
        options: the arguments of model and data, flat; {} for a baseline.
    """

    name: str
    baseline: bool
    values: dict[Key, np.ndarray]
    hits: dict[bool, np.ndarray]
    paths: list[Path]
    protocols: list[dict[str, Any]]
    options: dict[str, Any]


class One(NamedTuple):
    """A results file and what lies beside it."""

    path: Path
    protocol: dict[str, Any]
    options: dict[str, Any]
    questions: Questions
    values: dict[str, dict[Key, np.ndarray]]  # method -> (n, M)
    hits: dict[str, dict[bool, np.ndarray]]  # method -> (m,)


def load(runs: Mapping[str, list[str]], split: EvalSplit, metrics: list[str], k: int) -> tuple[list[Method], Questions]:
    """Runs first, in their order, then the baselines.

    Args:
        runs: name -> folders, results files or patterns of them; each results file is a seed.
        split: what they answered.
        metrics: M names, e.g. ndcg@10.
        k: length of the list in which targets count as found.

    Raises:
        ConfigError: nothing found, or runs that answered different questions.
        DataError: a file that is missing or damaged.
    """
    methods: list[Method] = []
    baselines: list[Method] = []
    first: One | None = None
    for name, patterns in runs.items():
        if name in LABELS.values():
            raise ConfigError(f"--runs.{name}: a baseline is called that; give the run another name.")
        ones = [read(path, metrics, k) for path in find(name, patterns, split)]
        for one in ones:
            first = first or one
            check_same(first, one)
        check_seeds(name, ones)
        methods.append(gathered(name, MODEL, ones))
        for key in ones[0].values:
            if key != MODEL:
                add_baseline(baselines, gathered(LABELS.get(key, key), key, ones[:1]), name)
    if first is None:
        raise ConfigError('A report needs runs: --runs.NAME "FOLDER", once for every name.')
    return methods + baselines, first.questions


def find(name: str, patterns: list[str], split: EvalSplit) -> list[Path]:
    """The results files that folders, files and patterns lead to, each once.

    Raises:
        ConfigError: one of them leads to none.
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
            why = (
                f"no {file} in it; make one with `python main.py {command} --ckpt_path PATH`"
                if here
                else "no such folder"
            )
            raise ConfigError(f"--runs.{name} {pattern!r}: {why}.")
        found |= {result.resolve(): result for result in results}
    return list(found.values())


def read(path: Path, metrics: list[str], k: int) -> One:
    """One results file with the figures of its users and targets.

    Raises:
        DataError: files that are missing, damaged, or not of one run.
        ConfigError: a metric that was not written.
    """
    per_user, hits_file = per_user_paths(path)
    with readable(path):
        results = json.loads(path.read_text())
        protocol = results["protocol"]
        there = [*pl.read_parquet_schema(per_user), *pl.read_parquet_schema(hits_file)]
    unknown = [metric for metric in (*metrics, f"hit@{k}") if metric not in there]
    if unknown:
        known = ", ".join(column for column in there if "@" in column)
        raise ConfigError(f"{per_user} and {hits_file.name} hold no {unknown[0]}, but {known}: choose among those.")
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
    asked = targets.filter(method=MODEL, filter_seen=main).select("user_id", "item_id", "count", "decile")
    own = users.filter(method=MODEL, filter_seen=main)
    by_group = {group: own.filter(group=group) for group in GROUPS}
    everyone = by_group["all"]["user_id"]
    questions = Questions(
        users={group: rows["user_id"].to_list() for group, rows in by_group.items()},
        history={group: rows["history"].to_numpy() for group, rows in by_group.items()},
        target_user=everyone.search_sorted(asked["user_id"]).to_numpy(),  # (m,)
        targets=asked,
    )
    for of in values.values():  # a group that nobody has a target in
        for filtered in (True, False):
            for group in GROUPS:
                of.setdefault((filtered, group), np.zeros((0, len(metrics))))
    return One(path, protocol, flat(results.get("options", {})), questions, values, hits)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say in one sentence what can't be read of the results at `path` and the files beside it."""
    try:
        yield
    except FileNotFoundError as error:
        missing = Path(error.filename) if error.filename else per_user_paths(path)[0]
        raise DataError(
            f"{missing} is missing beside {path.name}: run test or validate on the checkpoint again, which writes every "
            "user's figures."
        ) from None
    except (OSError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} or a file beside it is damaged ({str(error).splitlines()[0]}): test again.") from None


def check_means(path: Path, results: dict[str, Any], values: np.ndarray, metrics: list[str]) -> None:
    """Refuse per-user figures (n, M) of another run than the results beside them."""
    for mean, metric in zip(values.mean(axis=0), metrics, strict=True):
        if abs(mean - results["metrics"]["all"][metric]) > 1e-9:
            raise DataError(f"{path} and the per-user figures beside it are of different runs: test again.")


def check_same(first: One, other: One) -> None:
    """Refuse runs that answered different questions, in one sentence."""
    for what in SAME:
        one, two = first.protocol[what], other.protocol[what]
        if one != two:
            refuse(first, other, f"{what} is {one!r} there and {two!r} here")
    for group in GROUPS:
        if first.questions.users[group] != other.questions.users[group]:
            there = set(first.questions.users[group])
            strange = [user for user in other.questions.users[group] if user not in there]
            refuse(first, other, f"{len(strange)} users are not among those there, {strange[0]!r} first")
    if not first.questions.targets.equals(other.questions.targets):
        refuse(first, other, "the users' targets, or how often they occur in training, are others")
    if any((first.questions.history[group] != other.questions.history[group]).any() for group in GROUPS):
        refuse(first, other, "the users' histories are others")


def refuse(first: One, other: One, why: str) -> None:
    """Say what keeps two runs out of one report."""
    names = f"{other.path} ({other.protocol['dataset']}) and {first.path} ({first.protocol['dataset']})"
    raise ConfigError(f"{names} can't stand in one report, as they answered different questions: {why}.")


def check_seeds(name: str, ones: list[One]) -> None:
    """Refuse, as seeds of one run, the same weights tested twice, or runs with other options."""
    for i, one in enumerate(ones):
        for earlier in ones[:i]:
            if all(np.array_equal(one.values[MODEL][key], earlier.values[MODEL][key]) for key in one.values[MODEL]):
                raise ConfigError(
                    f"--runs.{name}: {earlier.path} and {one.path} hold the same figures for every user: one run, tested "
                    "twice, is not two seeds; name one of them."
                )
        changed = differences(ones[0].options, one.options)
        if changed:
            option, (here, there) = next(iter(changed.items()))
            raise ConfigError(
                f"--runs.{name}: {ones[0].path} and {one.path} are not seeds of one run: {option} is {here} in the first "
                f"and {there} in the second; give them different names."
            )


def gathered(name: str, key: str, ones: list[One]) -> Method:
    """The seeds of one method side by side."""
    values = {at: np.stack([one.values[key][at] for one in ones]) for at in ones[0].values[key]}  # (S, n, M)
    hits = {
        filtered: np.mean([one.hits[key][filtered] for one in ones], axis=0) for filtered in ones[0].hits[key]
    }  # (m,)
    protocols, options = [one.protocol for one in ones], ones[0].options if key == MODEL else {}
    return Method(name, key != MODEL, values, hits, [one.path for one in ones], protocols, options)


def add_baseline(known: list[Method], found: Method, run: str) -> None:
    """Add a baseline once; one that gives other figures beside another run (other text vectors, say) is a row of its own."""
    for other in known:
        if other.name.split(" [")[0] == found.name and all(
            np.allclose(found.values[key], other.values[key], atol=1e-9) for key in found.values
        ):
            return
    if any(other.name.split(" [")[0] == found.name for other in known):
        found.name += f" [{run}]"
    known.append(found)


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as the flags of the command line: {"model.backbone.shape": "tiny", ...}; those that change no method out."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        if not prefix and key not in ("model", "data"):
            continue
        if (prefix == "data" and key in FREE) or (prefix == "model" and key == "top_k"):
            continue
        name = prefix if key == "init_args" else f"{prefix}.{key}".strip(".")
        if isinstance(value, Mapping):
            found |= flat(value, name)
        elif key in SEEDS_OWN:
            found[name] = "given" if value else None
        else:
            found[name.removesuffix(".class_path")] = named(value)
    return found


def named(value: Any) -> Any:
    """A value with files by their names alone: the same file may lie elsewhere."""
    if isinstance(value, list):
        return [named(one) for one in value]
    if isinstance(value, Mapping):
        return {key: Path(one).name if key == "file" and one else named(one) for key, one in value.items()}
    return value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options that two runs differ in: name -> (the one's, the other's); absent ones are None."""
    names = [*one, *(name for name in other if name not in one)]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}
