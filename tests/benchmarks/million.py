"""A million generated items, from raw files to the served answer: seconds and memory of every step.

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/million.py [--items 1000000] [--folder DIR] [--json FILE]

Raw files: items with a text (a brand, words of their cluster), and events of users who keep to a few clusters. Then, each in a
process of its own: `prepare` (TfidfSVD, CooccurrenceSVD), `graphs` (text graphs, kept with the data), `fit` (model/best with the
sampled softmax, one epoch), `validate` and `test` (a few users, without baselines), `answer` (one user's top 10: exact, faiss).

Memory: `peak` counts everything that the process had in memory at once, memory-mapped files included; `own` leaves out what the
system can drop at any time because it is in a file.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import OwnMemory, peak, tell, write_json

BRAND, CLUSTER, WORDS = 50, 500, 30_000  # items of a brand, items of a cluster; words of the language
FAVOURITES = 3  # clusters that a user keeps to
STAGES = ("prepare", "graphs", "fit", "validate", "test", "answer")


def write_raw(folder: Path, n_items: int, n_users: int) -> None:
    """Write items.csv and events.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "events.csv").exists():
        return
    rng = np.random.default_rng(0)
    consonants, vowels = list("bcdfghklmnprstvz"), list("aeiou")
    letters = [rng.choice(part, WORDS) for part in (consonants, vowels) * 3]
    words = ["".join(parts) for parts in zip(*letters, strict=True)]
    n_clusters = max(FAVOURITES, n_items // CLUSTER)
    spoken = rng.integers(0, WORDS, (n_clusters, 40))  # words of a cluster
    cluster = rng.integers(0, n_clusters, n_items)  # (N,)
    # a brand sells in a few clusters; its name has a number, as series have
    brand = (cluster // 4 * 4 * CLUSTER // BRAND + rng.integers(0, 4 * CLUSTER // BRAND, n_items)) % WORDS
    with (folder / "items.csv").open("w") as file:
        file.write("item_id,title,brand\n")
        for i in range(n_items):
            chosen = spoken[cluster[i], rng.integers(0, 40, 6)]
            title = " ".join([words[w] for w in chosen] + [words[int(rng.integers(0, WORDS))]])
            file.write(f"{i:08d},{title},{words[brand[i]]}{cluster[i] // 16}\n")
    order = np.argsort(cluster, kind="stable")
    start = np.searchsorted(cluster[order], np.arange(n_clusters + 1))
    with (folder / "events.csv").open("w") as file:
        file.write("user_id,item_id,timestamp\n")
        for user in range(n_users):
            favourites = rng.integers(0, n_clusters, FAVOURITES)
            length = 3 + int(rng.lognormal(1.3, 1.0))
            places = (rng.random(length) ** 3, rng.integers(0, FAVOURITES, length))  # the first of a cluster sell most
            times = 1_600_000_000 + np.sort(rng.integers(0, 50_000_000, length))
            for when, share, which in zip(times, *places, strict=True):
                first, end = start[favourites[which]], start[favourites[which] + 1]
                if end > first:
                    file.write(f"u{user},{order[first + int(share * (end - first))]:08d},{when}\n")


def the_data(folder: Path, prepared_only: bool = True) -> Any:
    from setrec.cf import CooccurrenceSVD
    from setrec.data import SETRecDataModule
    from setrec.data.clean import Cleaning
    from setrec.data.readers.table import TableFiles
    from setrec.text import TfidfSVD

    return SETRecDataModule(
        "million",
        TableFiles("events.csv", "items.csv", text_fields=["title", "brand"], keep_unreviewed=True),
        TfidfSVD(),
        [CooccurrenceSVD()],
        cleaning=Cleaning(k_core=0),
        raw=str(folder),
        root=str(folder / "data"),
        eval_batch_size=16,
        prepared_only=prepared_only,
    )


def the_model(sampled: int) -> Any:
    from setrec.backbones import DecoderBackbone
    from setrec.module import SETRecModule

    return SETRecModule(
        DecoderBackbone(family="qwen2", shape="tiny", token_dropout=0.1),
        2e-3,
        n_sem=4,
        n_cf=1,
        objective="score",
        negatives="warm",
        missing_cf="zero",
        cf_dropout=0.2,
        cf_score_dropout=0.5,
        memory=True,
        neighbours=True,
        pairs="history",
        sampled=sampled,
        sampling="popularity",
    )


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    data = the_data(options.folder, prepared_only=False)
    data.prepare_data()
    return json.loads((data.folder / "manifest.json").read_text())["counts"]


def graphs(options: argparse.Namespace) -> dict[str, Any]:
    """The text graphs, and how many of the true neighbours they hold."""
    from setrec.scoring.graphs import PAIRS, history_statistics
    from setrec.scoring.text_graphs import exact_lists, rank_of, text_neighbours

    data = the_data(options.folder)
    data.setup()
    catalogue = data.catalogue
    start = time.process_time()
    history_statistics(data.past_events("test"), catalogue.n_items, PAIRS["history"])
    found: dict[str, Any] = {"co-occurrence and transitions, seconds of computing": time.process_time() - start}
    start = time.process_time()
    with OwnMemory() as own:  # the check below needs more
        made = text_neighbours(catalogue, data.folder, keep=True)
    found["text, seconds of computing"], found["text, own GiB"] = time.process_time() - start, own.most / 2**30
    some = torch.from_numpy(np.random.default_rng(1).choice(catalogue.n_items, 256, replace=False))
    by_rank = rank_of(catalogue).argsort()
    cold = by_rank[~catalogue.warm[by_rank]]
    for graph, candidates, name in ((made.graphs.all, by_rank, "all"), (made.graphs.cold, cold, "cold")):
        parts = [exact_lists(made.similarity, part, [(candidates, graph.item.shape[1])])[0] for part in some.split(32)]
        item, weight = (torch.cat([getattr(part, field) for part in parts]) for field in ("item", "weight"))
        there = weight > 0
        hit = (item[:, :, None] == graph.item[some][:, None, :]).any(dim=2) & there
        found[f"neighbours found, {name}"] = float(hit.sum() / there.sum())
        found[f"weight found, {name}"] = float((hit * weight).sum() / weight.sum())
    return found


def fit(options: argparse.Namespace) -> dict[str, Any]:
    from lightning.pytorch import Callback

    found: dict[str, Any] = {}

    class Clock(Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            self.start = time.perf_counter()

        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            found["training epoch, seconds"] = time.perf_counter() - self.start
            found["steps"], found["loss"] = trainer.global_step, float(trainer.callback_metrics["train/loss"])
            found["peak GiB so far"] = peak() / 2**30

    data, trainer = the_data(options.folder), the_trainer(options, callbacks=[Clock()], limit_val_batches=0)
    trainer.fit(the_model(options.sampled), datamodule=data)
    trainer.save_checkpoint(options.folder / "trained.ckpt")
    return found


def validate(options: argparse.Namespace) -> dict[str, Any]:
    """Choose the weights on a few users, and keep them."""
    return evaluate(options, "validate", "trained.ckpt")


def test(options: argparse.Namespace) -> dict[str, Any]:
    return evaluate(options, "test", "chosen.ckpt")


def evaluate(options: argparse.Namespace, what: str, checkpoint: str) -> dict[str, Any]:
    from setrec.evaluation import comparison
    from setrec.module import SETRecModule

    comparison.fit_baselines = lambda *_, **__: {}  # each would rank all validation users
    module = SETRecModule.load_from_checkpoint(options.folder / checkpoint, datamodule=the_data(options.folder))
    batches = -(-options.evaluated // module.data.eval_batch_size)
    trainer = the_trainer(options, limit_val_batches=batches, limit_test_batches=batches)
    start = time.perf_counter()
    getattr(trainer, what)(module, datamodule=module.data)
    if what == "validate":
        trainer.save_checkpoint(options.folder / "chosen.ckpt")
    return {"users": options.evaluated, "seconds": time.perf_counter() - start}


def the_trainer(options: argparse.Namespace, **more: Any) -> Any:
    from lightning.pytorch import Trainer

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    return Trainer(
        accelerator="cpu", max_epochs=1, precision="bf16-mixed", default_root_dir=options.folder, **quiet, **more
    )


def answer(options: argparse.Namespace) -> dict[str, Any]:
    """One user's top 10, again and again: exactly, and by faiss."""
    from setrec import Recommender
    from setrec.data.catalogue import Histories

    histories = Histories.load(options.folder / "data/million")
    start = time.perf_counter()
    recommender = Recommender.load(options.folder / "chosen.ckpt")
    found: dict[str, Any] = {"loading, seconds": time.perf_counter() - start}
    ids = recommender._snapshot.catalogue.ids
    users = np.random.default_rng(2).choice(len(histories.ids), options.asked, replace=False)
    asked = [[ids[i] for i in histories.train.row(u).tolist()] for u in users]
    exact = timed(recommender, asked, "exact", found)
    for factory in options.faiss:
        del recommender  # one at a time in memory
        start = time.perf_counter()
        recommender = Recommender.load(options.folder / "chosen.ckpt", index=factory)
        found[f"faiss {factory}: loading, seconds"] = time.perf_counter() - start
        lists = timed(recommender, asked, f"faiss {factory}", found)
        hits = sum(len(a & b) for a, b in zip(lists, exact, strict=True))
        found[f"faiss {factory}: recall@10"] = hits / sum(map(len, exact))
    return found


def timed(recommender: Any, asked: list[list[str]], name: str, found: dict[str, Any]) -> list[set[str]]:
    """Answer histories one by one; p50 and p99 in milliseconds. Returns the lists."""
    lists, seconds = [], []
    recommender.recommend(asked[:1])
    for history in asked:
        start = time.perf_counter()
        (one,) = recommender.recommend([history])
        seconds.append(time.perf_counter() - start)
        lists.append({item.id for item in one.items})
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99])
    found[f"{name}: p50 ms"], found[f"{name}: p99 ms"] = float(p50), float(p99)
    return lists


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--sampled", type=int, default=2048)
    parser.add_argument("--evaluated", type=int, default=512, help="users of validate and of test")
    parser.add_argument("--asked", type=int, default=200, help="users who are answered one by one")
    parser.add_argument("--faiss", nargs="*", default=["PQ"], help="indexes, see FaissSearch")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/million"), help="for everything that is written")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.stage:
        with OwnMemory() as own:
            start = time.perf_counter()
            found = globals()[options.stage](options)
            found |= {"seconds in all": time.perf_counter() - start, "of computing": time.process_time()}
        found |= {"peak GiB": peak() / 2**30, "own GiB": own.most / 2**30}
        write_json(options.folder / f"{options.stage}.json", found)
        return
    write_raw(options.folder, options.items, options.users)
    everything: dict[str, Any] = {}
    for stage in options.stages:
        print(f"--- {stage}", flush=True)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--stage", stage], check=True)
        found = json.loads((options.folder / f"{stage}.json").read_text())
        tell(found, None)
        sys.stdout.flush()
        everything[stage] = found
        if options.json:
            write_json(options.json, everything)


if __name__ == "__main__":
    main()
