"""What a tracker is told beside plain figures, in the form that it has: the curve of beta, and the table of results.

    tracker      curve                      table
    TensorBoard  picture                    text
    CSV          a column for every beta    -
    MLflow       picture, an artifact       text and results.json, artifacts; figures without the @ in their names
    W&B          picture                    table

results.json stands in the run's folder with every tracker. Lightning's other loggers get the plain figures.
"""

import warnings
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from setrec.evaluation.beta_curve import beta_curve
from setrec.evaluation.results import COLUMNS, Protocol, label_of, print_table
from setrec.schemas import GROUPS


def accept_renaming(loggers: Iterable[Logger]) -> None:
    """MLflow takes no @ in a name: recall@10 is recall10 there. Lightning would warn of every figure of every epoch."""
    if any(isinstance(logger, MLFlowLogger) for logger in loggers):
        warnings.filterwarnings("ignore", "MLFlow only allows")


@rank_zero_only
def log_figures(loggers: Iterable[Logger], figures: Mapping[str, float], step: int) -> None:
    """Log plain figures to every tracker."""
    for logger in loggers:
        logger.log_metrics(dict(figures), step=step)


@rank_zero_only
def log_beta_curve(loggers: Iterable[Logger], recall: Mapping[float, float], chosen: float, step: int) -> None:
    """Log Recall@10 on validation over beta. Arguments: see `beta_curve`."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure("validation/beta curve", beta_curve(recall, chosen), step)
        elif isinstance(logger, CSVLogger):
            logger.log_metrics({f"validation/recall@10, beta {beta:g}": value for beta, value in recall.items()}, step)
        elif isinstance(logger, MLFlowLogger):
            name = f"validation/beta_curve_{step:06d}.png"
            logger.experiment.log_figure(logger.run_id, beta_curve(recall, chosen), name)
        elif isinstance(logger, WandbLogger):
            logger.log_image("validation/beta curve", [beta_curve(recall, chosen)], step=step)


@rank_zero_only
def log_results(loggers: Iterable[Logger], results: dict[str, Any], path: Path | None, step: int) -> None:
    """Log the table of results. path: of results.json; None: it was not written."""
    text = StringIO()
    print_table(results, text)
    name = f"{results['protocol']['split']}/table"
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            block = "\n".join(f"    {line}" for line in text.getvalue().splitlines())  # as code, in Markdown
            logger.experiment.add_text(name, block, step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, text.getvalue(), f"{name}.txt")
            if path is not None:
                logger.experiment.log_artifact(logger.run_id, str(path))
        elif isinstance(logger, WandbLogger):
            columns, rows = rows_of(results)
            logger.log_table(name, columns=columns, data=rows, step=step)


def rows_of(results: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The columns and the rows of the main table."""
    method = Protocol(**results["protocol"]).method
    rows = {method: results["metrics"]}
    rows |= {label_of(name, method): row for name, row in results["baselines"].items()}
    columns = [(group, name) for group in GROUPS for name in COLUMNS]
    table = [[label, *(row[group][name] for group, name in columns)] for label, row in rows.items()]
    return ["method", *(f"{group}/{name}" for group, name in columns)], table
