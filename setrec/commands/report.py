"""The command `report`."""

from pathlib import Path
from typing import Literal

from setrec.errors import ConfigError
from setrec.evaluation.results import write_results
from setrec.report.answers import answers_report, print_answers
from setrec.report.figure import draw_report
from setrec.report.runs import load_runs
from setrec.report.study import ReportSettings, make_report
from setrec.report.table import print_report


def report(
    runs: dict[str, list[str] | str] | None = None,
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
    log: str | None = None,
) -> Path:
    """Compare runs: means over seeds, intervals over users, paired tests, breakdowns, ablations.

    Prints tables and writes report.json and report.png.

    Args:
        runs: Names of runs and the folders of their results: --runs.best "folder" --runs.paper "[folder, folder]". A folder is
            searched for results files, and * matches any name (keep the quotes); each results file is a seed. Later runs are
            compared with the first, and runs with the baselines.
        output: Folder for report.json and report.png; it is made if it does not exist.
        split: test reads results.json, which `test` writes; validation reads validation_results.json, which `validate` writes.
        filter_seen: Tests and breakdowns use the ranking without the user's own items; false: with them. The tables of means show
            both.
        metrics: Columns of the tables; recall, ndcg, precision or mrr at 5, 10 or 20.
        tested: The metric of the paired tests.
        against_baselines: Which runs are tested against the baselines; later runs are always tested against the first. With fewer
            tests, each has more power.
        k: Length of the list in which a target counts as found, in the breakdown by popularity; 5, 10 or 20.
        history_edges: The longest history of each bucket, in items, ascending; one more bucket holds longer histories.
        confidence: Confidence of the intervals.
        resamples: Resamples of the bootstrap.
        permutations: Random sign flips in a paired test; p is never below 1 / (permutations + 1), before Holm.
        seed: Seed of all random draws.
        log: Report how the answers of a server did, instead of runs: its --database, a file or a URL.

    Returns:
        The path of report.json.

    Raises:
        ConfigError: an option is not valid, or the runs were not evaluated on the same users and targets.
        DataError: a file is missing or damaged.
    """
    if log is not None:
        return report_log(log, Path(output), seed)
    if not runs:
        raise ConfigError("report needs runs: --runs.NAME FOLDER, or --log DATABASE.")
    if not 0 < confidence < 1 or min(resamples, permutations) < 100:
        raise ConfigError(
            f"confidence is {confidence}, resamples {resamples}, permutations {permutations}: give a confidence between 0 "
            "and 1, and at least 100 for the others."
        )
    if sorted(set(history_edges)) != history_edges:
        raise ConfigError(f"history_edges is {history_edges}: give the edges in ascending order.")
    shown = tuple(dict.fromkeys([*metrics, tested]))
    wanted = {name: [where] if isinstance(where, str) else where for name, where in runs.items()}
    methods, evaluated = load_runs(wanted, split, list(shown), k)
    settings = ReportSettings(
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
    content = make_report(methods, evaluated, settings)
    folder = Path(output)
    print_report(content)
    draw_report(content, folder / "report.png")
    path = write_results(folder / "report.json", content)
    print(f"report: {path}, {folder / 'report.png'}")
    return path


def report_log(database: str, folder: Path, seed: int) -> Path:
    """Print how the logged answers of a server did, and write it as answers.json.

    Raises:
        ConfigError: there is no such database, or the extra is not installed.
    """
    try:
        from setrec.shop.answers import AnswerStore  # here: the extra may be missing
        from setrec.shop.database import Database
    except ModuleNotFoundError as error:
        raise ConfigError(f"report --log needs {error.name}: pip install 'setrec[shop]'.") from None
    if "://" not in database and not Path(database).is_file():
        raise ConfigError(f"--log {database}: no such file; give the --database of the server.")
    opened = Database(database)
    try:
        answers, feedback = AnswerStore(opened).read()
    finally:
        opened.close()
    if not len(answers):
        raise ConfigError(f"--log {opened.shown}: no answer is logged there.")
    content = answers_report(answers, feedback, seed)
    print_answers(content)
    return write_results(folder / "answers.json", content)
