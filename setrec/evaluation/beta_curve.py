"""The picture of beta: Recall@10 on validation over the weight of the semantic slots."""

from collections.abc import Mapping

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def beta_curve(recall: Mapping[float, float], chosen: float) -> Figure:
    """Recall@10 (All) over beta, for TensorBoard. No pyplot, so no global state and no window.

    Args:
        recall: under each beta, the other weights as chosen.
        chosen: the beta to mark.
    """
    figure = Figure(figsize=(4.5, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(list(recall), list(recall.values()), marker="o", markersize=3, label="all items")
    axes.axvline(chosen, color="grey", linestyle=":", label=f"chosen: {chosen:g}")
    axes.set(xlabel="beta: weight of the semantic slots", title="validation recall@10", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure
