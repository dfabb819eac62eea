"""Computes a report, one dictionary in plain types: means, intervals, paired tests and breakdowns."""

from typing import Any, Literal, NamedTuple

import numpy as np
from rich.progress import track

from setrec.evaluation.per_user import DECILES
from setrec.report.runs import EvaluationSet, Method, option_differences
from setrec.report.statistics import bootstrap, holm, interval, sign_flip_p, wilcoxon_p
from setrec.schemas import GROUPS, EvalSplit

Key = tuple[object, ...]  # the name of a column: method, then what is measured


class ReportSettings(NamedTuple):
    """The options of a report; see `setrec.commands.report.report`."""

    split: EvalSplit
    filter_seen: bool
    metrics: tuple[str, ...]
    tested: str  # the metric of the tests, one of `metrics`
    against_baselines: Literal["every", "first", "none"]  # which runs are tested against the baselines
    k: int  # length of the list in which a target counts as found
    history_edges: tuple[int, ...]
    confidence: float
    resamples: int
    permutations: int
    seed: int


class Samples:
    """Columns that are bootstrapped together; they are added one by one and read by name.

    Args:
        n: Number of users.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.columns: dict[Key, tuple[np.ndarray, np.ndarray]] = {}
        self.resampled: dict[Key, np.ndarray] = {}

    def add(self, key: Key, numerator: np.ndarray, denominator: np.ndarray | None = None) -> None:
        """Add a column of ratios: numerator and denominator, (n,) float64; without a denominator, of means."""
        self.columns[key] = (numerator, np.ones(self.n) if denominator is None else denominator)

    def draw(self, settings: ReportSettings, what: str) -> None:
        """Bootstrap all columns."""
        numerator, denominator = (
            np.stack([pair[i] for pair in self.columns.values()], axis=1) for i in (0, 1)
        )  # (n, C)
        samples = bootstrap(numerator, denominator, settings.resamples, settings.seed, what)  # (resamples, C)
        self.resampled = dict(zip(self.columns, samples.T, strict=True))

    def value(self, key: Key) -> float:
        """The value of a column without resampling."""
        numerator, denominator = self.columns[key]
        return float(numerator.sum() / denominator.sum()) if denominator.sum() else float("nan")


def make_report(methods: list[Method], evaluated: EvaluationSet, settings: ReportSettings) -> dict[str, Any]:
    """The content of report.json.

    Args:
        methods: The runs, then the baselines; see `load_runs`.
        evaluated: The users and targets that they were evaluated on.
        settings: The options.

    Returns:
        {"settings", "dataset", "users", "runs", "figures", "lists", "tests", "popularity", "history"}; the last five are lists of
        flat rows. A figure of several seeds is the mean over users of the mean over seeds; "sd" is the standard deviation of the
        seeds' figures (null for one seed); "low" and "high" are the interval over users.
    """
    figures: list[dict[str, Any]] = []
    tests: list[dict[str, Any]] = []
    breakdowns: dict[str, list[dict[str, Any]]] = {"popularity": [], "history": []}
    for group in GROUPS:
        n = len(evaluated.users[group])
        if not n:
            continue
        samples = Samples(n)
        for method in methods:
            for filtered in (True, False):
                for m, metric in enumerate(settings.metrics):
                    samples.add((method.name, filtered, metric), method.values[filtered, group][:, :, m].mean(axis=0))
        if group == "all":
            add_popularity(samples, methods, evaluated, settings)
            add_history(samples, methods, evaluated, settings)
        samples.draw(settings, f"bootstrap over {n:,} users ({group})")
        figures += figure_rows(samples, methods, group, settings)
        tests += test_rows(samples, methods, group, settings)
        if group == "all":
            breakdowns["popularity"] = popularity_rows(samples, methods, evaluated, settings)
            breakdowns["history"] = history_rows(samples, methods, settings)
    for row, corrected in zip(tests, holm([row["p"] for row in tests]), strict=True):
        row["p_holm"] = corrected
    protocol = methods[0].protocols[0]
    return {
        "settings": settings._asdict(),
        "dataset": protocol["dataset"],
        "users": {group: len(users) for group, users in evaluated.users.items()},
        "runs": run_rows(methods),
        "figures": figures,
        "lists": list_rows(methods),
        "tests": tests,
        **breakdowns,
    }


def run_rows(methods: list[Method]) -> list[dict[str, Any]]:
    """Where each run comes from, and which options it changes against the first run."""
    runs = [method for method in methods if not method.baseline]
    first = runs[0]
    rows = []
    for run in runs:
        changed = option_differences(first.options, run.options)
        # two classes have other options too; only the shared ones can be compared
        shared = [option for option in changed if option in first.options and option in run.options]
        rows.append(
            {
                "run": run.name,
                "model": run.protocols[0]["method"],
                "results": [str(path) for path in run.paths],
                "seeds": [protocol["seed"] for protocol in run.protocols],
                "beta": [protocol["beta"] for protocol in run.protocols],
                "changed": {option: changed[option][1] for option in shared},
            }
        )
    return rows


def figure_rows(samples: Samples, methods: list[Method], group: str, settings: ReportSettings) -> list[dict[str, Any]]:
    """Every method's figures in a group, under both filters."""
    rows = []
    for method in methods:
        for filtered in (True, False):
            for m, metric in enumerate(settings.metrics):
                seeds = method.values[filtered, group][:, :, m].mean(axis=1)  # (S,)
                row = {"method": method.name, "baseline": method.baseline, "filter_seen": filtered, "group": group}
                row |= {"metric": metric, "seeds": seeds.tolist(), "mean": float(seeds.mean())}
                row["sd"] = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
                rows.append(row | interval_columns(samples, (method.name, filtered, metric), settings))
    return rows


def list_rows(methods: list[Method]) -> list[dict[str, Any]]:
    """Every method's figures of the lists themselves, under both filters; those that every seed has."""
    rows = []
    for method in methods:
        for filtered, by_seed in method.lists.items():
            for metric in by_seed[0]:
                seeds = np.array([one[metric] for one in by_seed if metric in one])  # (S,)
                if len(seeds) == len(by_seed):
                    row = {
                        "method": method.name,
                        "baseline": method.baseline,
                        "filter_seen": filtered,
                        "metric": metric,
                    }
                    sd = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
                    rows.append(row | {"seeds": seeds.tolist(), "mean": float(seeds.mean()), "sd": sd})
    return rows


def test_rows(samples: Samples, methods: list[Method], group: str, settings: ReportSettings) -> list[dict[str, Any]]:
    """Tests paired over users: the chosen runs against every baseline, and every later run against the first."""
    metric, filtered = settings.tested, settings.filter_seen
    runs, baselines = ([one for one in methods if one.baseline is kind] for kind in (False, True))
    facing = {"every": runs, "first": runs[:1], "none": []}[settings.against_baselines]
    pairs = [(run, baseline) for run in facing for baseline in baselines] + [(run, runs[0]) for run in runs[1:]]
    rows = []
    for one, other in track(pairs, f"paired tests ({group})", transient=True):
        keys = [(method.name, filtered, metric) for method in (one, other)]
        difference = samples.columns[keys[0]][0] - samples.columns[keys[1]][0]  # (n,)
        difference[np.abs(difference) < 1e-12] = 0  # means over seeds may differ by rounding only
        low, high = interval(samples.resampled[keys[0]] - samples.resampled[keys[1]], settings.confidence)
        rows.append(
            {
                "run": one.name,
                "against": other.name,
                "baseline": other.baseline,
                "group": group,
                "metric": metric,
                "difference": float(difference.mean()),
                "low": low,
                "high": high,
                "better": int((difference > 0).sum()),  # users
                "worse": int((difference < 0).sum()),
                "p": sign_flip_p(difference, settings.permutations, settings.seed),
                "p_wilcoxon": wilcoxon_p(difference),
            }
        )
    return rows


def add_popularity(samples: Samples, methods: list[Method], evaluated: EvaluationSet, settings: ReportSettings) -> None:
    """Add the recall of targets by popularity decile of the target (0: cold)."""
    n = samples.n
    place = evaluated.target_user * (DECILES + 1) + evaluated.targets["decile"].to_numpy()  # (m,)

    def per_user(weight: np.ndarray) -> np.ndarray:
        return np.bincount(place, weight, n * (DECILES + 1)).reshape(n, DECILES + 1)  # (n, deciles)

    total = per_user(np.ones(len(place)))
    for method in methods:
        found = per_user(method.hits[settings.filter_seen])
        for decile in range(DECILES + 1):
            samples.add((method.name, "decile", decile), found[:, decile], total[:, decile])


def popularity_rows(
    samples: Samples, methods: list[Method], evaluated: EvaluationSet, settings: ReportSettings
) -> list[dict[str, Any]]:
    """The recall of targets in every decile that has targets."""
    count, decile = evaluated.targets["count"].to_numpy(), evaluated.targets["decile"].to_numpy()  # (m,), (m,)
    rows = []
    for d in sorted(set(decile.tolist())):
        for method in methods:
            key = (method.name, "decile", d)
            row = {"method": method.name, "baseline": method.baseline, "decile": d}
            row |= {"least": int(count[decile == d].min()), "most": int(count[decile == d].max())}
            row |= {"targets": int((decile == d).sum()), "recall": samples.value(key)}
            rows.append(row | interval_columns(samples, key, settings))
    return rows


def buckets(edges: tuple[int, ...]) -> list[tuple[int, int | None]]:
    """The buckets of some edges, from and to, both included: 5, 10 -> (0, 5), (6, 10), (11, None)."""
    starts = [0, *(edge + 1 for edge in edges)]
    return list(zip(starts, [*edges, None], strict=True))


def add_history(samples: Samples, methods: list[Method], evaluated: EvaluationSet, settings: ReportSettings) -> None:
    """Add the metrics of users by length of history."""
    length = evaluated.history["all"]  # (n,)
    for b, (start, end) in enumerate(buckets(settings.history_edges)):
        inside = ((length >= start) & (length <= (length.max() if end is None else end))).astype(np.float64)  # (n,)
        for method in methods:
            for metric in settings.metrics:
                values = samples.columns[method.name, settings.filter_seen, metric][0]  # (n,)
                samples.add((method.name, "history", b, metric), values * inside, inside)


def history_rows(samples: Samples, methods: list[Method], settings: ReportSettings) -> list[dict[str, Any]]:
    """The metrics in every bucket that has users."""
    rows = []
    for b, (start, end) in enumerate(buckets(settings.history_edges)):
        for method in methods:
            for metric in settings.metrics:
                key = (method.name, "history", b, metric)
                users = int(samples.columns[key][1].sum())
                if users:
                    row = {"method": method.name, "baseline": method.baseline, "from": start, "to": end, "users": users}
                    row |= {"metric": metric, "mean": samples.value(key)}
                    rows.append(row | interval_columns(samples, key, settings))
    return rows


def interval_columns(samples: Samples, key: Key, settings: ReportSettings) -> dict[str, float]:
    """The interval of a column as entries of a row."""
    low, high = interval(samples.resampled[key], settings.confidence)
    return {"low": low, "high": high}
