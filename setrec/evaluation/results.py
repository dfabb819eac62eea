"""The results of a test: results.json with its protocol, and the printed table."""

import json
import platform
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from setrec.errors import SETRecError
from setrec.evaluation.ranking_table import RankingTable
from setrec.files.hashes import sealed
from setrec.files.whole import whole_file
from setrec.schemas import GROUPS, EvalSplit, FitOn

MODEL = "model"  # the model's name among the methods; the others are baselines
RESULTS: dict[EvalSplit, str] = {"test": "results.json", "validation": "validation_results.json"}
LABELS = {
    "popularity": "popularity",
    "item_cf": "item CF",
    "text": "text",
    "item_cf_text": "item CF + text",
    "item_cf_ngrams": "item CF + text + n-grams",
    "item_cf_letters": "item CF + text + n-grams",  # its name in version 0.1.0
    "transitions": "transitions",
    "ease": "EASE",
    "ials": "iALS",
}
TRAIN_ALONE = (
    "_train"  # ending of the name of a row that is counted in train alone, beside one that counts validation too
)
LEAVE_ONE_OUT = (
    "leave-one-out: training holds what other users did after a user's test item, so all figures are higher than a system at work "
    "would reach; published figures train and count on all but a user's last two items, as the rows counted in train alone do"
)
COLUMNS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
LIST_COLUMNS = ("coverage@10", "gini@10", "novelty@10", "diversity@10", "popularity@10", "calibration@10")
NOT_CHOSEN = "default"  # `beta_from` of weights that no validation chose
PACKAGES = ("setrec", "torch", "lightning", "transformers", "torchmetrics", "numpy")


def label_of(name: str, model: str = MODEL) -> str:
    """What a row is called in a table. model: the model's own name."""
    base = name.removesuffix(TRAIN_ALONE)
    label = model if base == MODEL else LABELS.get(base, base)
    return label if base == name else f"{label}, counted in train"


def package_versions() -> dict[str, str]:
    """Versions of Python and of the main packages; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Protocol:
    """How figures were computed, so that a reader sees whether two of them can be compared.

    Args:
        dataset: Name of the prepared data.
        method: Name of the model in the table.
        filter_seen: Items of the user's own history were left out of the ranking.
        users: Users with at least one target, by group.
        candidates: Items that are ranked, by group.
        max_history: Items of the history that the model reads, the newest ones.
        beta: Weight of the semantic slots in the score.
        cutoffs: Lengths of the lists.
        baselines: Each baseline's rule, by name.
        seed: Seed of the training run, if known.
        beta_from: How beta was chosen; "" for a method without beta, "default" where nothing chose it.
        weights: The other weights of the score, by name.
        fitted_to: The splits that the model was fitted to.
        split: The split that was evaluated.
        history: The splits that the history holds.
        target: The items that the ranking should find.
        cold: What a cold item is.
        ties: How equal scores are ranked.
        mean: What is averaged.
        versions: Versions of Python and of the main packages.
        date: UTC, ISO 8601.
        caution: What a reader must know of the split; "" if there is nothing.
    """

    dataset: str
    method: str
    filter_seen: bool
    users: dict[str, int]
    candidates: dict[str, int]
    max_history: int
    beta: float
    cutoffs: tuple[int, ...]
    baselines: dict[str, str]
    seed: int | None = None
    beta_from: str = "validation Recall@10 (All)"
    weights: dict[str, float] = field(default_factory=dict)
    fitted_to: str = "train"
    split: str = "test"
    history: str = "train + validation items, oldest first"
    target: str = "all test items of a user, each distinct item once"
    cold: str = "absent from the training split"
    ties: str = "by score, then by lower item id; popularity: expected value under random order"
    mean: str = "over users with at least one target in the group; candidates and targets restricted to the group"
    versions: dict[str, str] = field(default_factory=package_versions)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    caution: str = ""

    @classmethod
    def of(
        cls, split: EvalSplit, fit_on: FitOn, chosen: bool | None, read: str = "", predicted: str = "", **fields: Any
    ) -> "Protocol":
        """The protocol of a run over a split.

        Args:
            split: The split that was evaluated.
            fit_on: The split that the model was fitted to last.
            chosen: Whether validation chose the weights; None: there are none to choose.
            read: The kinds of events that the model reads, in words, such as "kind buy"; "": all.
            predicted: The kinds of events that are targets, in words; "": all.
            **fields: The other fields of `Protocol`.
        """
        return cls(
            beta_from="" if chosen is None else "validation Recall@10 (All)" if chosen else NOT_CHOSEN,
            split=split,
            history=f"{'train + validation' if split == 'test' else 'train'} items, oldest first",
            target=f"all {split} items of a user{predicted and f' of {predicted}'}, each distinct item once"
            + (predicted and f"; seen items are those of {predicted}"),
            fitted_to=("train" if fit_on == "train" else f"train, then {fit_on}") + (read and f", events of {read}"),
            **fields,
        )

    def lines(self) -> list[str]:
        """The protocol in a few readable lines."""
        counts = [f"{g} {self.users[g]:,} users, {self.candidates[g]:,} candidates" for g in GROUPS]
        weights = {"beta": self.beta} | {name: weight for name, weight in self.weights.items() if weight}
        named = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
        source = (
            "the default: no validation chose it" if self.beta_from == NOT_CHOSEN else f"chosen by {self.beta_from}"
        )
        chosen = f"{named}, {source}; " if self.beta_from else ""
        rules = [f"{label_of(name)}: {rule}" for name, rule in self.baselines.items()]
        return [
            f"{self.dataset}, {self.split} split: {'; '.join(counts)}",
            f"history: {self.history}, the last {self.max_history} for {self.method}; targets: {self.target}",
            *([self.caution] if self.caution else []),
            f"means are {self.mean}",
            f"cold: {self.cold}; ties: {self.ties}",
            f"fitted to {self.fitted_to}; {chosen}seed {'unknown' if self.seed is None else self.seed}",
            *rules,
        ]


def make_results(
    protocol: Protocol,
    tables: dict[bool, dict[str, RankingTable]],
    options: dict[str, Any] | None = None,
    lists: dict[bool, dict[str, dict[str, float]]] | None = None,
    run: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        protocol: Its filter_seen selects the main tables.
        tables: filter_seen (True and False, or one of them) -> name ("model" or a baseline) -> table.
        options: Arguments of the model and of the data, {"model": {...}, "data": {...}}, in plain types.
        lists: filter_seen -> name -> figures of the lists themselves, see list_metrics.py.
        run: See `provenance`.

    Returns:
        {"protocol": {...}, "beta": b, "metrics": {"all": {"recall@5": x, ...}, "warm": ..., "cold": ...},
        "baselines": {name: {"all": ...}}, "lists": {name: {"coverage@10": x, ...}}, "other_filter": {"filter_seen": ...,
        "metrics": ..., "baselines": ..., "lists": ...}, "options": {...}, "run": {...}}
    """

    def figures(filtered: bool) -> dict[str, Any]:
        rows = {name: table.table() for name, table in tables[filtered].items()}
        held = {} if lists is None else {"lists": lists[filtered]}
        return {"metrics": rows.pop(MODEL), "baselines": rows, **held}

    main = protocol.filter_seen
    results = {"protocol": asdict(protocol), "beta": protocol.beta, **figures(main)}
    if (not main) in tables:
        results["other_filter"] = {"filter_seen": not main, **figures(not main)}
    if options is not None:
        results["options"] = options
    if run is not None:
        results["run"] = run
    return results


def write_results(path: str | Path, results: dict[str, Any]) -> Path:
    """Write results as JSON with their own hash (see `sealed`), whole or not at all.

    Raises:
        SETRecError: the file can't be written (a full disk, a missing permission).
        ValueError: a figure is NaN or infinite, which JSON can't hold.
    """
    path = Path(path)
    text = json.dumps(sealed(results), indent=2, allow_nan=False) + "\n"
    try:
        with whole_file(path) as hidden:
            hidden.write_text(text, encoding="utf8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise SETRecError(
            f"The results can't be written to {path} ({reason}): free some space or choose another folder."
        ) from None
    return path


def print_table(results: dict[str, Any], file: TextIO | None = None) -> None:
    """Print the main table, what its lists hold, the table of the other filter if there is one, and the protocol.

    Args:
        results: What `make_results` returns, or the content of results.json.
        file: Where to print; None: standard output.
    """
    protocol = Protocol(**results["protocol"])
    parts = [format_table(results, protocol, protocol.filter_seen)]
    if "lists" in results:
        parts.append(format_lists(results["lists"], protocol))
    if "other_filter" in results:
        parts.append(format_table(results["other_filter"], protocol, results["other_filter"]["filter_seen"]))
    parts.append("\n".join(protocol.lines()))
    print("\n\n".join(parts), file=file or sys.stdout)


def format_table(figures: dict[str, Any], protocol: Protocol, filter_seen: bool) -> str:
    """The table of Recall and NDCG @5 and @10 of every method, for all, warm and cold; the best of a column has a star.

    Args:
        figures: {"metrics": {group: {name: value}}, "baselines": {method: the same}}.
        protocol: How the figures were computed.
        filter_seen: Whether seen items are masked in these figures.
    """
    rows = {protocol.method: figures["metrics"]}
    rows |= {label_of(name, protocol.method): row for name, row in figures["baselines"].items()}
    left = max(map(len, rows)) + 2
    title = f"{protocol.dataset}, {protocol.split}: seen items {'masked' if filter_seen else 'not masked'}"
    heads = [" ".join(f"{group.capitalize():27}" for group in GROUPS), " ".join([f"{'Recall':14}{'NDCG':13}"] * 3)]
    heads.append(" ".join(" ".join(f"{'@' + name.split('@')[1]:6}" for name in COLUMNS) for _ in GROUPS))
    lines = [title, *(f"{'':{left}}{head}".rstrip() for head in heads)]
    for label, row in rows.items():
        groups = []
        for group in GROUPS:
            cells = []
            for name in COLUMNS:
                if protocol.users[group] == 0:
                    cells.append(f"{'-':6}")
                    continue
                best = max(other[group][name] for other in rows.values())
                cells.append(_short(row[group][name]) + ("*" if row[group][name] == best > 0 else " "))
            groups.append(" ".join(cells))
        lines.append(f"{label:{left}}{' '.join(groups)}".rstrip())
    return "\n".join([*lines, "* best of its column"])


def format_lists(lists: dict[str, dict[str, float]], protocol: Protocol) -> str:
    """The table of what the lists hold; - where a figure can't be had.

    Args:
        lists: method -> figure -> value.
        protocol: How the figures were computed.
    """
    rows = {label_of(name, protocol.method): row for name, row in lists.items()}
    left = max(map(len, rows)) + 2
    seen = "masked" if protocol.filter_seen else "not masked"
    lines = [f"{protocol.dataset}, {protocol.split}: what the first 10 hold, seen items {seen}"]
    heads = [name.split("@")[0] for name in LIST_COLUMNS]
    lines.append(f"{'':{left}}{' '.join(f'{head:11}' for head in heads)}".rstrip())
    for label, row in rows.items():
        cells = [f"{row[name]:.4g}" if name in row else "-" for name in LIST_COLUMNS]
        lines.append(f"{label:{left}}{' '.join(f'{cell:11}' for cell in cells)}".rstrip())
    notes = (
        "coverage: share of all items; gini: 0 even, 1 uneven; novelty: bits; diversity: 1 - cosine of texts; popularity: count in",
        "training; calibration: how far the lists' popularity is from the histories', 0 best",
    )
    return "\n".join([*lines, *notes])


def _short(value: float) -> str:
    """A figure in five characters: .0189, 1.000."""
    text = f"{value:.4f}"
    return text[1:] if text.startswith("0") else text[:5]
