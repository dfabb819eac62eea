"""Model FLOPs utilisation of training against the machine's matrix products, and where the rest of the time goes.

    OMP_NUM_THREADS=1 taskset -c 1 python tests/benchmarks/utilisation.py [--shape tiny|small|qwen_tiny] [--json FILE]

FLOPs are counted operation by operation on a real step (matrix products and attention, forward and backward), so what a
shortcut of the method saves is not counted. With --compile the backbone goes through torch.compile as well.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from efficiency import OWN_STEPS, backbone, own_batches, own_loss
from measure import clock, matmul_peak, write_json
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm
from world import N_TOYS, made_up_catalogue, made_up_rows

from setrec.commands.estimate import StepCounter
from setrec.model import SETRec
from setrec.recipe import Recipe


def utilisation(shape: str, bf16: bool, sampled: int | None, compiled: bool, cpu: bool) -> dict[str, Any]:
    """Prefixes a second, FLOP/s and their share of the peak; the operations that take most of the time."""
    torch.manual_seed(0)
    model = SETRec(made_up_catalogue(N_TOYS), backbone(shape, dropout=0.1), Recipe(sampled=sampled)).train()
    if compiled:
        model.backbone.compile(dynamic=True)
    optimizer, batches, now = torch.optim.AdamW(model.parameters()), own_batches(made_up_rows(4000, N_TOYS)), clock(cpu)
    flops, seconds, prefixes = 0, 0.0, 0

    def step() -> int:
        batch = next(batches)
        optimizer.zero_grad()
        own_loss(model, batch, bf16).backward()
        optimizer.step()
        return len(batch.valid)

    for _ in tqdm(range(2 if not compiled else 6), desc="warm-up", unit="step"):
        step()
    for _ in tqdm(range(OWN_STEPS[shape]), desc="steps", unit="step"):
        start = now()
        prefixes += step()
        seconds += now() - start
    if not compiled:
        repeated = own_batches(made_up_rows(4000, N_TOYS))
        for _ in range(2):
            next(repeated)
        for _ in tqdm(range(OWN_STEPS[shape]), desc="counting", unit="step"):  # the same batches again
            counter, batch = StepCounter(), next(repeated)
            with counter:
                own_loss(model, batch, bf16).backward()
            flops += counter.flops
    peak = matmul_peak(torch.bfloat16 if bf16 else torch.float32, cpu=cpu)
    found: dict[str, Any] = {"shape": shape, "precision": "bf16" if bf16 else "float32", "sampled": sampled}
    found |= {"compiled": compiled, "prefixes_per_second": prefixes / seconds, "peak_gflops": peak / 1e9}
    if compiled:
        return found
    found |= {"gflops": flops / seconds / 1e9, "utilisation": flops / seconds / peak}
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        for _ in range(3):
            step()
    events = sorted(trace.key_averages(), key=lambda e: -e.self_cpu_time_total)
    whole = sum(e.self_cpu_time_total for e in events)
    found["profile"] = {e.key: round(e.self_cpu_time_total / whole, 4) for e in events[:12]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(OWN_STEPS), default="tiny")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too; needs a C++ compiler")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cpu, runs = options.clock == "cpu", [(False, None, False), (True, None, False), (True, 1024, False)]
    if options.compile:
        runs += [(True, None, True)]
    results = []
    for bf16, sampled, compiled in runs:
        results.append(found := utilisation(options.shape, bf16, sampled, compiled, cpu))
        for key, value in found.items():
            if key != "profile":
                print(f"{key:20} {value:.4g}" if isinstance(value, float) else f"{key:20} {value}")
        for name, share in found.get("profile", {}).items():
            print(f"    {share:6.1%}  {name}")
    if options.json:
        write_json(options.json, {"runs": results})


if __name__ == "__main__":
    main()
