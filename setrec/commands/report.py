"""The command `report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from setrec.commands.words import call
from setrec.errors import ConfigError
from setrec.evaluation.results import write_results
from setrec.report.figure import draw
from setrec.report.runs import load
from setrec.report.study import Settings, study
from setrec.report.table import print_report


def report(
    runs: dict[str, list[str] | str],
    output: str = "report",
    split: Literal["test", "validation"] = "test",
    filter_seen: bool = True,
    metrics: list[str] = ["recall@10", "ndcg@10"],  # noqa: B006  (read only; shown by --help)
    tested: str = "ndcg@10",
    against_baselines: Literal["every", "first", "none"] = "every",
    k: int = 10,
    history_edges: list[int] = [5, 10, 20, 50],  # noqa: B006
    confidence: float = 0.95,
    resamples: int = 10_000,
    permutations: int = 100_000,
    seed: int = 2023,
) -> Path:
    """Put runs side by side: means over seeds, intervals over users, paired tests, breakdowns, ablations.

    Prints tables and writes report.json and report.png.

    Args:
        runs: Names and where their results lie: --runs.best "folder" --runs.paper "[folder, folder]". A folder is searched for
            results files, * stands for anything (keep the quotes); each results file is a seed. Later runs are compared with
            the first, and with the baselines.
        output: Folder for report.json and report.png; made if it isn't there.
        split: test reads results.json, which `test` writes; validation reads validation_results.json, which `validate` writes.
        filter_seen: Tests and breakdowns are of the ranking without the user's own items; false: with them. The table of
            means shows both.
        metrics: Columns of the tables; recall, ndcg, precision or mrr at 5, 10 or 20.
        tested: The metric of the paired tests.
        against_baselines: Runs that are tested against the baselines; later runs are tested against the first all the same. Fewer
            tests leave more power to each.
        k: Length of the list in which a target counts as found, in the breakdown by popularity; 5, 10 or 20.
        history_edges: Longest history of each bucket, in items, ascending; one more bucket holds what is longer.
        confidence: Of the intervals.
        resamples: Of the bootstrap.
        permutations: Random flips of sign in a paired test; its p is never below 1 / (permutations + 1), before Holm.
        seed: Of everything that is drawn.

    Returns:
        The path of report.json.

    Raises:
        ConfigError: options that don't fit, or runs that answered different questions.
        DataError: a missing or damaged file.
    """
    if not 0 < confidence < 1 or min(resamples, permutations) < 100:
        raise ConfigError(
            f"confidence is {confidence}, resamples {resamples}, permutations {permutations}: give a confidence between 0 "
            "and 1, and at least 100 of the others."
        )
    if sorted(set(history_edges)) != history_edges:
        raise ConfigError(f"history_edges is {history_edges}: the edges must ascend.")
    shown = tuple(dict.fromkeys([*metrics, tested]))
    wanted = {name: [where] if isinstance(where, str) else where for name, where in runs.items()}
    methods, questions = load(wanted, split, list(shown), k)
    settings = Settings(
        split,
        filter_seen,
        shown,
        tested,
        against_baselines,
        k,
        tuple(history_edges),
        confidence,
        resamples,
        permutations,
        seed,
    )
    made = study(methods, questions, settings)
    folder = Path(output)
    print_report(made)
    draw(made, folder / "report.png")
    path = write_results(folder / "report.json", made)
    print(f"report: {path}, {folder / 'report.png'}")
    return path


def from_words(words: Sequence[str]) -> None:
    """Run `report`."""
    call(report, "report", words)
