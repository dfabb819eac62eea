"""A training step and an answer on a GPU: time, memory, tokens a second, and the share of the card's matrix products.

    python tests/benchmarks/accelerator.py [--shapes tiny t5-small qwen-1.5b] [--device cuda] [--json FILE]

Weights are random, the data is made up (world.py, as many items as Toys). T5 trains all weights under bfloat16 autocast;
the language model is held in bfloat16 and trains LoRA of rank 8, as in the paper. FLOPs are counted operation by operation, forward
and backward, so what a shortcut of the method saves is not counted. A shape's first step costs extra: every batch is taken
twice, and the second time counts for tokens a second. An answer: one history, the ten best of all items.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficiency import ALPHA, own_batches
from measure import write_json
from torch.utils.flop_counter import FlopCounterMode
from world import N_TOYS, TEST_LENGTH, made_up_catalogue, made_up_rows

from setrec.backbones import Backbone, DecoderBackbone, T5Backbone
from setrec.backbones.lora import LoRA
from setrec.data.batches import EvalRows
from setrec.files.ragged import Ragged
from setrec.model import SETRec
from setrec.recipe import Recipe
from setrec.schemas import Batch
from setrec.scoring.scorer import Scorer
from setrec.scoring.topk import mask_seen, top_items
from setrec.scoring.weights import Weights

SHAPES: dict[str, tuple[Callable[[], Backbone], Recipe]] = {
    "tiny": (lambda: DecoderBackbone(family="qwen2", shape="tiny", token_dropout=0.1), Recipe(n_sem=4, n_cf=1)),
    "t5-small": (lambda: T5Backbone(shape="small"), Recipe(n_sem=4, n_cf=1)),
    "qwen-1.5b": (
        lambda: DecoderBackbone(family="qwen2", shape="1.5b", dtype="bfloat16", lora=LoRA()),
        Recipe(n_sem=6, n_cf=1),
    ),
}
STEPS, WARM_UP, ANSWERS = 30, 8, 200


def moved(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(tensor.to(device) for tensor in batch))


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds until the device has done it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_peak(device: torch.device, size: int) -> float:
    """FLOP/s of bfloat16 matrix products, the best of ten."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / min(seconds_of(lambda: torch.mm(a, b)) for _ in range(10))


def training(shape: str, device: torch.device, compiled: bool, peak: float) -> dict[str, Any]:
    """Steps of 512 prefixes."""
    make, recipe = SHAPES[shape]
    torch.manual_seed(0)
    with torch.device(device):  # billions of weights are drawn there
        model = SETRec(made_up_catalogue(N_TOYS), make(), recipe).to(device).train()
    if compiled:
        model.backbone.compile(dynamic=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, batches = torch.optim.AdamW(trained, lr=1e-5), own_batches(made_up_rows(4000, N_TOYS))

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            sums = model.losses(batch, each_slot=False)
        (sums.ranking / sums.n_prefix + ALPHA * sums.reconstruction / sums.n_reconstructed.clamp(min=1e-6)).backward()
        optimizer.step()

    begin = time.perf_counter()
    for _ in range(WARM_UP):
        step(moved(next(batches), device))
    warm_up = time.perf_counter() - begin
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    some = [moved(next(batches), device) for _ in range(STEPS)]
    each = [seconds_of(lambda batch=batch: step(batch)) for batch in some]
    again = [seconds_of(lambda batch=batch: step(batch)) for batch in some]  # every shape was seen before
    prefixes = sum(len(batch.valid) for batch in some)
    slots = recipe.n_cf + recipe.n_sem
    tokens = slots * (prefixes + sum(int((batch.history >= 0).sum()) for batch in some))
    found: dict[str, Any] = {
        "shape": shape, "compiled": compiled, "weights": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in trained), "step_ms_median": 1000 * float(np.median(each)),
        "step_ms_median_again": 1000 * float(np.median(again)), "prefixes_per_second": prefixes / sum(again),
        "tokens_per_second": tokens / sum(again), "warm_up_s": warm_up,
    }  # fmt: skip
    if device.type == "cuda":
        found["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if not compiled:
        counter = FlopCounterMode(display=False)
        with counter:
            step(some[0])
        found["tflop_per_step"] = counter.get_total_flops() / 1e12
        found["utilisation"] = counter.get_total_flops() / again[0] / peak
    return found


@torch.inference_mode()
def answering(shape: str, device: torch.device) -> dict[str, Any]:
    """One history at a time: forward pass and ten best items."""
    make, recipe = SHAPES[shape]
    with torch.device(device):
        model = SETRec(made_up_catalogue(N_TOYS), make(), recipe).to(device).eval()
    scorer = Scorer(model)
    scorer.refresh()
    shown = made_up_rows(ANSWERS, N_TOYS, TEST_LENGTH, seed=1)
    rows = EvalRows(shown, Ragged.from_rows([[]] * len(shown)), 50)

    def answer(user: int) -> None:
        batch = moved(rows[np.array([user])], device)
        (scores,) = scorer.scores(batch, [Weights(beta=0.5)])  # (1, N)
        top_items(mask_seen(scores, batch.seen), 10).tolist()

    for user in range(20):
        answer(user)
    each = [1000 * seconds_of(lambda user=user: answer(user)) for user in range(ANSWERS)]
    return {"shape": shape, "answer_ms_p50": float(np.median(each)), "answer_ms_p99": float(np.quantile(each, 0.99))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", nargs="*", choices=list(SHAPES), default=["tiny", "t5-small"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    peak = matmul_peak(device, 8192 if device.type == "cuda" else 1024)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    results: dict[str, Any] = {"device": name, "torch": torch.__version__, "peak_tflops": peak / 1e12, "runs": []}
    print({key: value for key, value in results.items() if key != "runs"}, flush=True)
    for shape in options.shapes:
        for compiled in (False, True) if shape in options.compile else (False,):
            try:
                results["runs"].append(training(shape, device, compiled, peak))
            except Exception as error:
                if not compiled:
                    raise
                said = f"{type(error).__name__}: {str(error).strip()[:500]}"  # inductor refuses some graphs
                results["runs"].append({"shape": shape, "compiled": True, "failed": said})
            print(results["runs"][-1], flush=True)
        results["runs"].append(answering(shape, device))
        print(results["runs"][-1], flush=True)
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
