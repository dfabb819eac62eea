"""A million generated items: training with the sampled softmax, then exact and approximate top-10 for 256 users.

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/million.py [--items 1000000] [--json FILE] [--faiss IVF2048,Flat]

The vectors have 512 clusters, as real catalogues do: an approximate index lives on that. Peak memory counts everything: the
libraries, the catalogue (text 384 wide, CF 64 wide), the weights and the optimiser.
"""

import argparse
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import clock, peak, reset_peak, tell
from tqdm import tqdm
from world import TEST_LENGTH, made_up_catalogue, made_up_rows

from setrec.backbones import T5Backbone
from setrec.data.batches import EvalRows, TrainPlan, TrainRows
from setrec.data.catalogue import Catalogue
from setrec.module import SETRecModule
from setrec.scoring.retrieval import ExactSearch, FaissSearch, Retriever, overlap
from setrec.scoring.weights import Weights

ALPHA, BATCH, USERS, K, BETA = 0.7, 512, 256, 10, 0.5


def clustered(catalogue: Catalogue, clusters: int = 512) -> Catalogue:
    """The catalogue's vectors moved towards cluster centres, in place."""
    generator = torch.Generator().manual_seed(1)
    where = torch.randint(clusters, (catalogue.n_items,), generator=generator)  # (N,)
    for table in (*([catalogue.text] if catalogue.text is not None else []), *catalogue.cf):
        centres = 2 * table[torch.randint(catalogue.n_items, (clusters,), generator=generator)]  # (clusters, width)
        for rows in torch.arange(catalogue.n_items).split(65_536):
            table[rows] += centres[where[rows]]
    return replace(catalogue, name=f"{catalogue.name}, clustered")


def train(module: SETRecModule, catalogue: Catalogue, steps: int, cpu: bool) -> tuple[float, list[float]]:
    """Optimiser steps; prefixes a second, and the losses."""
    model = module.model
    assert model is not None
    model.train()
    rows = TrainRows(made_up_rows(20_000, catalogue.n_items), 50)
    plan = TrainPlan(rows.prefixes, rows.history, BATCH, seed=0).batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    now = clock(cpu)
    losses, prefixes, start = [], 0, now()
    for i, chosen in enumerate(tqdm(list(islice(plan, steps + 1)), desc="training", unit="step")):
        if i == 1:  # the first step warms up
            prefixes, start = 0, now()
        batch = rows[chosen]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sums = model.losses(batch)
        loss = sums.ranking / sums.n_prefix + ALPHA * sums.reconstruction / sums.n_reconstructed.clamp(min=1e-6)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        prefixes += len(batch.valid)
    return prefixes / (now() - start), losses


def serve(retriever: Retriever, rows: EvalRows, cpu: bool) -> tuple[float, float, Any]:
    """Seconds to make the index, users a second of one call for 256 users (best of 3), and what it found."""
    now = clock(cpu)
    start = now()
    retriever.refresh()
    made = now() - start
    batch, best, found = rows[np.arange(USERS)], float("inf"), None
    for _ in tqdm(range(3), desc=type(retriever.search).__name__, unit="call"):
        start = now()
        found = retriever.top(batch, Weights(BETA), K)
        best = min(best, now() - start)
    return made, USERS / best, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--sampled", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--faiss", default="IVF2048,Flat", help="what faiss's index_factory builds; empty: none")
    parser.add_argument("--probes", type=int, nargs="+", default=[32, 128, 512], help="lists looked into for a user")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: seconds of this process's computing"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cpu = options.clock == "cpu"
    reset_peak()
    catalogue = clustered(made_up_catalogue(options.items))
    torch.manual_seed(0)
    module = SETRecModule(
        T5Backbone(shape="tiny", attention_dropout=0.0), sampled=options.sampled, sampling="popularity"
    )
    module.model = module.make_model(catalogue)
    rate, losses = train(module, catalogue, options.steps, cpu)
    training_peak = peak()
    module.eval()
    history = made_up_rows(USERS, options.items, TEST_LENGTH, seed=3)
    rows = EvalRows(history, history, 50)
    reset_peak()
    made, users, exact = serve(Retriever(module, ExactSearch()), rows, cpu)
    found = {
        "items": options.items,
        "sampled": options.sampled,
        "clock": options.clock,
        "threads": torch.get_num_threads(),
        "train_prefixes_per_second": rate,
        "first_loss": losses[0],
        "last_loss": float(np.mean(losses[-5:])),
        "train_peak_gib": training_peak / 2**30,
        "exact_index_seconds": made,
        "exact_users_per_second": users,
        "exact_peak_gib": peak() / 2**30,
    }
    for probes in options.probes if options.faiss else []:
        made, users, near = serve(Retriever(module, FaissSearch(options.faiss, probes)), rows, cpu)
        name = f"faiss {options.faiss}, {probes} probes"
        found[name] = {"index_seconds": made, "users_per_second": users, "recall_at_10": overlap(near, exact)}
    tell(found, options.json)


if __name__ == "__main__":
    main()
