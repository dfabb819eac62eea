"""How events.csv and items.csv beside this file were made: `python tests/files/generate.py` makes the same again."""

import csv
from pathlib import Path

import numpy as np
import polars as pl

from setrec.data import Cleaning, SyntheticWorld
from setrec.data.split import TimeRatioSplit


def main() -> None:
    """A made-up shop: 160 customers, 90 products, a year; a few rows of the kind that real exports have."""
    log = SyntheticWorld(users=160, items=90, events=10, new_share=0.4, seed=7).read(None)
    folder = Path(__file__).parent
    events = log.events.sort("time", "user", "item")
    rng = np.random.default_rng(7)
    when = pl.from_epoch("time").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    rows = events.select("user", "item", when=when, stars=pl.Series(rng.integers(2, 6, len(events)))).rows()
    rows.insert(400, ("user00003", "", "2020-12-01T10:00:00Z", 5))  # no product: the run reports it and goes on
    rows.insert(900, rows[899])  # exported twice
    with (folder / "events.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("customer", "product", "bought_at", "stars"), *rows])
    items = log.items.sort("id").select("id", "title", "category", "brand")
    items.write_csv(folder / "items.csv", line_terminator="\n")
    left = TimeRatioSplit().apply(Cleaning(k_core=3).apply(events.with_row_index("row")))
    print(f"{len(rows)} events, {len(items)} products; after cleaning {len(left)} events")


if __name__ == "__main__":
    main()
