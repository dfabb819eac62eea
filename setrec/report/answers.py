"""How the answers of a server did: `setrec report --log`.

A hit is an answer of which an item was taken, as feedback or an event that names the answer says. All answers in the log
count, whether or not anything was said of them. The reciprocal rank of an answer is 1 / the rank of the first item that was
taken, 0 if none was. A shadow's answer is judged by what was taken of the shown one; that favours the shown one.

With exploration on, every item of a list has the probability p with which it got there. For the lists of another policy,

    IPS   = sum of taken / p over the shown items that the policy lists, divided by the answers: items taken per answer
    SNIPS = that sum divided by the sum of 1 / p over the same items: the share of listed items that is taken

estimate how they would do, if an item is taken or not whatever its place and its neighbours. `support` is the sum of 1 / p divided
by the listed items; far below 1, the policy lists items that were never shown, and IPS is too low.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from setrec.report.statistics import bootstrap, interval

SHADOW = "shadow"
_DAY = 86_400_000_000
RESAMPLES = 2_000


def wilson(hits: int, n: int, z: float = 1.959963985) -> tuple[float, float]:
    """Wilson's interval of a share, 95% by default; (0, 1) for n = 0."""
    if not n:
        return 0.0, 1.0
    share, middle = hits / n, z * z / n
    half = z * np.sqrt(share * (1 - share) / n + middle / (4 * n))
    return float((share + middle / 2 - half) / (1 + middle)), float((share + middle / 2 + half) / (1 + middle))


def propensity_estimates(
    shown: Sequence[Sequence[str]],
    propensities: Sequence[Sequence[float]],
    taken: Sequence[set[str]],
    policy: Sequence[Sequence[str]],
) -> dict[str, float]:
    """IPS, SNIPS and support of a policy, see above; an answer a row.

    Args:
        shown: the items of each answer.
        propensities: of each of them.
        taken: the items of each answer that were taken.
        policy: the items that the policy lists.
    """
    reward = weight = listed = 0.0
    for items, p, hits, others in zip(shown, propensities, taken, policy, strict=True):
        wanted = set(others)
        listed += len(wanted)
        for item, chance in zip(items, p, strict=True):
            if item in wanted:
                weight += 1 / chance
                reward += (item in hits) / chance
    n = len(shown)
    return {
        "ips": reward / n if n else 0.0, "snips": reward / weight if weight else 0.0, "support": weight / listed if listed else 0.0
    }  # fmt: skip


def answers_report(answers: pl.DataFrame, feedback: pl.DataFrame, seed: int = 2023) -> dict[str, Any]:
    """The figures of a log, see `AnswerStore.read`: per model and variant, per day, and of exploration."""
    taken: dict[str, set[str]] = {}
    for answer, item in feedback.select("answer", "item").iter_rows():
        taken.setdefault(answer, set()).add(item)
    groups, days = [], []
    for (model, variant), rows in answers.group_by("model", "variant", maintain_order=True):
        groups.append({"model": model, "variant": variant, **_figures(rows, taken, seed)})
    shown = answers.filter(pl.col("variant") != SHADOW).with_columns(day=pl.col("time") // _DAY)
    for (day, model, variant), rows in shown.group_by("day", "model", "variant", maintain_order=True):
        hits = sum(
            any(item in taken.get(own, ()) for item in items) for own, items in rows.select("id", "items").iter_rows()
        )
        clicks = sum(len(taken.get(own, set()) & set(items)) for own, items in rows.select("id", "items").iter_rows())
        date = str(np.datetime64(day, "D"))
        days.append(
            {"day": date, "model": model, "variant": variant, "answers": len(rows), "hits": hits, "taken": clicks}
        )
    logged = set(answers["id"])
    return {
        "groups": groups,
        "days": days,
        "exploration": _exploration(answers, taken),
        "feedback_without_answer": sum(answer not in logged for answer in taken),
    }


def _figures(rows: pl.DataFrame, taken: dict[str, set[str]], seed: int) -> dict[str, Any]:
    """The figures of some answers. Intervals are over users, since two answers to one user are not independent."""
    reciprocal, seen = [], set()
    for own, items in rows.select("id", "items").iter_rows():
        hits = taken.get(own, set())
        seen.update(items)
        reciprocal.append(next((1 / rank for rank, item in enumerate(items, 1) if item in hits), 0.0))
    hits_n = sum(value > 0 for value in reciprocal)
    # an answer to nobody known is a user of its own
    users = rows.select(
        pl.coalesce(pl.col("user").cast(pl.String), pl.col("id")).alias("user"), pl.Series("rr", reciprocal)
    )
    per_user = users.group_by("user", maintain_order=True).agg(pl.col("rr").sum(), n=pl.len())
    numerator, n = per_user["rr"].to_numpy()[:, None], per_user["n"].to_numpy().astype(np.float64)[:, None]
    return {
        "answers": len(rows),
        "hit_rate": hits_n / len(rows),
        "hit_rate_interval": wilson(hits_n, len(rows)),
        "reciprocal_rank": float(np.mean(reciprocal)),
        "reciprocal_rank_interval": interval(bootstrap(numerator, n, RESAMPLES, seed)[:, 0], 0.95),
        "coverage": len(seen) / max(*rows["n_items"].to_list(), 1),
    }


def _exploration(answers: pl.DataFrame, taken: dict[str, set[str]]) -> list[dict[str, Any]]:
    """Estimates for the lists without exploration, and for the shadow's."""
    explored = answers.filter(pl.col("propensities").is_not_null() & (pl.col("variant") != SHADOW))
    shadows = dict(answers.filter(pl.col("variant") == SHADOW).select("id", "items").iter_rows())
    found = []
    for (model, variant), rows in explored.group_by("model", "variant", maintain_order=True):
        ids, items, chances = rows["id"].to_list(), rows["items"].to_list(), rows["propensities"].to_list()
        hits = [taken.get(own, set()) for own in ids]
        # of lists of two and more, an item that came from behind the list is there with at most 1/2, the others with more
        best = [[item for item, p in zip(*both, strict=True) if p > 0.5] for both in zip(items, chances, strict=True)]
        of = {"model": model, "variant": variant}
        found.append(
            of | {"policy": "no exploration", "answers": len(ids)} | propensity_estimates(items, chances, hits, best)
        )
        both = [place for place, own in enumerate(ids) if own in shadows]
        if both:
            figures = propensity_estimates(
                [items[place] for place in both], [chances[place] for place in both],
                [hits[place] for place in both], [shadows[ids[place]] for place in both],
            )  # fmt: skip
            found.append(of | {"policy": SHADOW, "answers": len(both)} | figures)
    return found


def print_answers(content: dict[str, Any], console: Console | None = None) -> None:
    """Print a report of answers as tables."""
    console = console or Console()
    table = Table("model", "variant", "answers", "hit rate", "reciprocal rank", "coverage", title="answers")
    for row in content["groups"]:
        figures = [
            f"{row[name]:.4f} [{row[f'{name}_interval'][0]:.4f}, {row[f'{name}_interval'][1]:.4f}]"
            for name in ("hit_rate", "reciprocal_rank")
        ]
        table.add_row(row["model"], row["variant"], f"{row['answers']:,}", *figures, f"{row['coverage']:.3f}")
    console.print(table)
    table = Table("day", "model", "variant", "answers", "hits", "items taken", title="by day (UTC)")
    for row in content["days"]:
        table.add_row(
            row["day"], row["model"], row["variant"], *[f"{row[name]:,}" for name in ("answers", "hits", "taken")]
        )
    console.print(table)
    if content["exploration"]:
        table = Table(
            "model", "variant", "policy", "answers", "IPS", "SNIPS", "support", title="estimates from exploration"
        )
        for row in content["exploration"]:
            figures = [f"{row[name]:.4f}" for name in ("ips", "snips", "support")]
            table.add_row(row["model"], row["variant"], row["policy"], f"{row['answers']:,}", *figures)
        console.print(table)
    if content["feedback_without_answer"]:
        console.print(f"{content['feedback_without_answer']:,} answers that feedback names are not in the log.")
