"""Two processes against one, one thread each, equal global batches: speed-up and loss curve. Needs two free cores.

    python tests/benchmarks/ddp.py [--steps 30] [--json FILE]

The same optimiser steps in float32 with dropout off, at the learning rates of training's warm-up: the global batch of 512
prefixes is shared out by TrainPlan, the loss is divided by the prefixes of all processes, and DDP takes the mean of the
gradients, as SETRecModule does.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from measure import write_json
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup
from world import N_TOYS, made_up_catalogue, made_up_rows

from setrec.backbones import T5Backbone
from setrec.data.batches import TrainPlan, TrainRows
from setrec.model import SETRec
from setrec.recipe import Recipe
from setrec.schemas import Batch

ALPHA, WARM_UP = 0.7, 2


class Loss(nn.Module):
    """The loss of a batch as DDP wants it: made in forward."""

    def __init__(self, model: SETRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss whose mean gradient over processes is right, and this process's share of the mean loss."""
        sums = self.model.losses(batch)
        counts = torch.stack([sums.n_prefix, sums.n_reconstructed])  # (2,)
        dist.all_reduce(counts)
        n_prefix, n_reconstructed = counts
        share = sums.ranking / n_prefix + ALPHA * sums.reconstruction / n_reconstructed
        return share * dist.get_world_size(), share.detach()


def work(rank: int, world: int, steps: int, n_items: int, folder: str) -> None:
    """One process: trains, and the first one writes the losses and the seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = SETRec(made_up_catalogue(n_items), T5Backbone(shape="tiny", dropout=0.0, attention_dropout=0.0), Recipe())
    both = DistributedDataParallel(Loss(model), broadcast_buffers=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, 1000)  # Adam's first steps magnify rounding
    rows = TrainRows(made_up_rows(4000, n_items), 50)
    plan = TrainPlan(rows.prefixes, rows.history, 512, seed=0).batches()  # this process's share
    losses, start = [], 0.0
    for i in tqdm(range(steps + WARM_UP), desc=f"{world} process(es)", unit="step", disable=rank > 0):
        if i == WARM_UP:
            dist.barrier()
            start = time.perf_counter()
        optimizer.zero_grad()
        loss, share = both(rows[plan[i % len(plan)]])
        loss.backward()
        optimizer.step()
        schedule.step()
        dist.all_reduce(share)
        losses.append(share.item())
    dist.barrier()
    if rank == 0:
        np.savez(f"{folder}/{world}.npz", losses=losses, seconds=time.perf_counter() - start)
    dist.destroy_process_group()


def run(world: int, steps: int, n_items: int, folder: str) -> Any:
    torch.multiprocessing.spawn(work, (world, steps, n_items, folder), nprocs=world)
    return np.load(f"{folder}/{world}.npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--items", type=int, default=N_TOYS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        one, two = (run(world, options.steps, options.items, folder) for world in (1, 2))
    found = {
        "steps": options.steps,
        "seconds": [float(one["seconds"]), float(two["seconds"])],
        "speed_up": float(one["seconds"] / two["seconds"]),
        "max_loss_difference": float(np.abs(one["losses"] - two["losses"]).max()),
        "max_relative_loss_difference": float((np.abs(one["losses"] - two["losses"]) / one["losses"]).max()),
        "first_loss": float(one["losses"][0]),
        "last_loss": float(one["losses"][-1]),
        "cores": len(os.sched_getaffinity(0)),
    }
    for key, value in found.items():
        print(f"{key:22} {value}")
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
