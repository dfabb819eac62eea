"""A figure of validation metrics over beta, the weight of the semantic slots."""

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from setrec.evaluation.ranking_table import RankingTable
from setrec.schemas import GROUPS


def beta_curve(table: RankingTable, line: Sequence[int], best: int) -> Figure:
    """Draw Recall@10 and NDCG@10 over beta, one line a group, for TensorBoard.

    Args:
        table: Metrics of validation, one variant for each value of beta.
        line: Places of the variants to draw.
        best: Place of the chosen variant.
    """
    # without pyplot there is no global state and no window
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    chosen, betas = table.variants[best], [table.variants[place] for place in line]
    for axes, metric in zip(figure.subplots(1, 2), ("recall@10", "ndcg@10"), strict=True):
        for group in GROUPS:
            curve = table.curve(metric, group)
            axes.plot(betas, [curve[place] for place in line], marker="o", markersize=3, label=group)
        axes.axvline(chosen, color="grey", linestyle=":", label=f"chosen: {chosen:g}")
        axes.set(xlabel="beta: weight of the semantic slots", title=f"validation {metric}", ylim=(0, None))
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure
