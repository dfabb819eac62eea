"""A trained checkpoint as a product, measured: python tests/benchmarks/recommend.py CHECKPOINT [seconds] [ENCODER_FOLDER]

1. Seconds from nothing to the first answer, and users a second for batches of 1, 32 and 512 test users.
2. recommend() against the ranking of the test step, for every test user, seen items masked and not.
3. 300 random items held out of the catalogue and added afterwards, as vectors and, with ENCODER_FOLDER (the sentence-transformers
   model that made the data's vectors), as texts; against the same weights over a catalogue that held them from the start.
"""

import time

START = time.perf_counter()

import dataclasses  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import polars as pl  # noqa: E402
import torch  # noqa: E402

from setrec import Recommender  # noqa: E402
from setrec.data import Histories  # noqa: E402
from setrec.data.batches import BatchLoader, EvalPlan, EvalRows  # noqa: E402
from setrec.encoders import SentenceTransformerText  # noqa: E402
from setrec.inference.answers import batches, make_snapshot  # noqa: E402
from setrec.inference.restore import rebuild  # noqa: E402
from setrec.inference.versions import NO_CHANGES  # noqa: E402
from setrec.scoring.topk import mask_seen, top_groups  # noqa: E402

HELD_OUT, K = 300, 10


def users_of(recommender: Recommender, histories: Histories) -> list[list[str]]:
    """The histories of the test users, as `test` shows them, in own ids."""
    ids = recommender._snapshot.catalogue.ids
    rows = histories.train.joined(histories.validation)
    return [[ids[item] for item in rows.row(u)] for u in np.flatnonzero(histories.test.lengths)]


def speed(recommender: Recommender, users: list[list[str]], seconds: float) -> None:
    """Users a second, for batches of test users in random order."""
    rng = np.random.default_rng(0)
    for size in (1, 32, 512):
        for explain in (False, True):
            done, begin, cpu = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() - begin < seconds:
                recommender.recommend([users[u] for u in rng.integers(len(users), size=size)], K, explain=explain)
                done += size
            rate, work = done / (time.perf_counter() - begin), done / (time.process_time() - cpu)
            what = f"batches of {size:3d}{', explained' * explain}"
            print(f"{what}: {rate:,.0f} users/s ({work:,.0f} a second of CPU time), {1000 * size / rate:.1f} ms each")


@torch.inference_mode()
def same_as_test(recommender: Recommender, histories: Histories, users: list[list[str]]) -> None:
    """Every test user's list from recommend, all at once and one by one, against that of the test step."""
    state = recommender._snapshot
    restored, catalogue = state.restored, state.catalogue
    tested = np.flatnonzero(histories.test.lengths)
    rows = EvalRows(histories.train.joined(histories.validation), histories.test, state.max_history)
    loader = BatchLoader(rows, EvalPlan(tested, rows.shown[tested], 256))
    for masked in (True, False):
        answers = recommender.recommend(users, K, exclude_seen=masked)
        found = dict(zip(tested.tolist(), answers, strict=True))
        equal = alike = 0
        for batch in loader:
            (scores,) = restored.scorer.scores(batch, [restored.weights])  # (B, N)
            scores = mask_seen(scores, batch.seen) if masked else scores  # (B, N)
            lists = top_groups(scores, catalogue.warm, 20)[0][:, :K]  # (B, K): all items
            for user, items in zip(batch.user.tolist(), lists.tolist(), strict=True):
                equal += [item.id for item in found[user].items] == [catalogue.ids[item] for item in items]
        some = range(0, len(users), 10)
        for u in some:
            (alone,) = recommender.recommend([users[u]], K, exclude_seen=masked)
            alike += [item.id for item in alone.items] == [item.id for item in answers[u].items]
        what = "masked" if masked else "not masked"
        print(f"seen {what}: {equal} of {len(tested)} test users get the test step's list, item by item", end="; ")
        print(f"asked one by one, {alike} of {len(some)} get the same list")


@torch.inference_mode()
def held_out(checkpoint: str, users: list[list[str]], encoder: SentenceTransformerText | None) -> None:
    """Add items that were held out, and compare with a catalogue that held them from the start."""
    for how in ("vectors", "texts") if encoder is not None else ("vectors",):
        recommender = Recommender.load(checkpoint)
        trained, state = recommender._trained, recommender._snapshot
        catalogue = state.catalogue
        assert catalogue.text is not None
        rows = np.sort(np.random.default_rng(1).choice(catalogue.n_items, HELD_OUT, replace=False)).tolist()
        count, present = catalogue.count.clone(), [there.clone() for there in catalogue.present]
        count[rows] = 0  # from the start, but never bought
        for there in present:
            there[rows] = False
        cf = tuple(vectors * there[:, None] for vectors, there in zip(catalogue.cf, present, strict=True))
        whole = dataclasses.replace(catalogue, count=count, present=tuple(present), cf=cf)
        from_start = rebuild(state.restored, trained, whole)
        expected = make_snapshot(from_start, whole, NO_CHANGES, trained.items, trained.max_history)

        held = [catalogue.ids[i] for i in rows]
        recommender.remove_items(held)
        table = trained.items[rows]
        if how == "vectors":
            table = table.select("id", "title", "text").with_columns(pl.Series("vector", catalogue.text[rows].tolist()))
        begin = time.perf_counter()
        recommender.add_items(table, encoder if how == "texts" else None)
        first = time.perf_counter() - begin
        recommender.remove_items(held)
        begin = time.perf_counter()
        recommender.add_items(table)
        again = time.perf_counter() - begin

        now = recommender._snapshot
        assert now.catalogue.text is not None
        at = [now.row[own] for own in catalogue.ids]  # where each item of the old order is now
        vectors = float((now.catalogue.text[at] - catalogue.text).abs().max())
        codes = float((now.restored.scorer.index.codes[-1][at] - from_start.scorer.index.codes[-1]).abs().max())
        worst = scale = 0.0
        own = [[state.row[own] for own in user] for user in users]  # in the order from the start
        moved = [[at[item] for item in user] for user in own]
        pairs = zip(batches(expected, own), batches(now, moved), strict=True)
        for (places, one), (same, two) in pairs:
            assert places == same
            (wanted,) = from_start.scorer.scores(one, [from_start.weights])  # (B, N)
            (got,) = now.restored.scorer.scores(two, [from_start.weights])  # (B, N)
            worst = max(worst, float((got[:, at] - wanted).abs().max()))
            scale = max(scale, float(wanted.abs().max()))
        listed = recommender.recommend(users[::10], K)
        known = sum(item.id in set(held) for answer in listed for item in answer.items)
        print(
            f"{HELD_OUT} items held out and added as {how}: vectors differ by {vectors:.1e}, codes by {codes:.1e}, scores of "
            f"{len(users):,} users by {worst:.1e} (largest {scale:.1f}); {known} times in the first {K} of {len(listed)}. "
            f"{first:.2f} s the first time, then {again:.2f} s: {again / HELD_OUT * 1000:.1f} s a thousand items"
        )


def main() -> None:
    checkpoint = sys.argv[1]
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 5.0
    imported = time.perf_counter()
    recommender = Recommender.load(checkpoint)
    loaded = time.perf_counter()
    recommender.recommend([[recommender._snapshot.catalogue.ids[0]]], K)
    answered = time.perf_counter()
    print(f"import {imported - START:.1f} s, load {loaded - imported:.2f} s, first answer {answered - loaded:.3f} s")
    assert recommender._trained.data is not None
    histories = Histories.load(recommender._trained.data)
    users = users_of(recommender, histories)
    print(
        f"{len(users):,} test users, {recommender._snapshot.catalogue.n_items:,} items, {torch.get_num_threads()} thread(s)"
    )
    speed(recommender, users, seconds)
    same_as_test(recommender, histories, users)
    encoder = None
    if len(sys.argv) > 3:
        encoder = SentenceTransformerText(str(Path(sys.argv[3])), template="{title}. {keywords}", max_tokens=48)
    held_out(checkpoint, users, encoder)


if __name__ == "__main__":
    main()
