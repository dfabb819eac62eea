"""estimate: the memory and time of training and evaluation, without running them: `setrec estimate --workload.items 1000000`.

One training step and one batch of evaluation go through the real model on fake tensors, which have a shape and no content. For
every operation it counts the floating-point operations, the bytes read and written, and the memory held. Time is then operations /
speed + bytes / bandwidth; ranking in evaluation is scores / (scores ranked a second). The speeds are measured on this machine in a
second, or given for another machine. tests/benchmarks/estimates.py compares the estimates with measurements.
"""

import time
import weakref
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jsonargparse import lazy_instance
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import setrec.backbones.decoder  # noqa: F401  (--backbone DecoderBackbone is found by its name)
from setrec.backbones.base import Backbone
from setrec.backbones.t5 import T5Backbone
from setrec.data.batches import EvalRows, TrainRows
from setrec.data.catalogue import Catalogue, Vectors
from setrec.errors import ConfigError
from setrec.files.ragged import Ragged
from setrec.hparams import instantiate_default
from setrec.layers.negatives import SoftmaxItems
from setrec.model import SETRec
from setrec.recipe import Recipe, Tokens
from setrec.schemas import Batch
from setrec.scoring.topk import CUTOFFS, mask_seen, top_groups

_TINY_T5 = lazy_instance(T5Backbone)
_VIEWS = (
    "view",
    "reshape",
    "expand",
    "permute",
    "transpose",
    "slice",
    "select",
    "detach",
    "alias",
    "split",
    "unsqueeze",
    "t.",
)


class Estimate(NamedTuple):
    """Sizes, operations and seconds of one training step and of one batch of evaluation."""

    parameters: int
    trainable: int
    train_flops: float  # of a step, forward and backward
    train_traffic: float  # bytes read and written in a step
    train_bytes: int  # most memory held at once: tables, weights, optimiser, activations; without the libraries
    prefixes: int  # of a step
    step_seconds: float
    evaluation_flops: float  # of a batch, for all betas
    evaluation_bytes: int
    users: int  # of a batch of evaluation
    batch_seconds: float

    @property
    def prefixes_per_second(self) -> float:
        """Speed of training."""
        return self.prefixes / self.step_seconds

    @property
    def users_per_second(self) -> float:
        """Speed of evaluation."""
        return self.users / self.batch_seconds


class Speeds(NamedTuple):
    """What a machine computes in a second."""

    flops: float  # operations of matrix products in the precision of training
    float32_flops: float  # the same in float32, which evaluation runs in
    bandwidth: float  # bytes read or written
    ranked: float  # scores ranked into the lists of the three groups


class StepCounter(TorchDispatchMode):
    """Counts the operations, the bytes that they read and write, and the memory that is held."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops, self.traffic, self.held, self.most = 0, 0, 0, 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        made_here = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not any(word in f"{func}" for word in _VIEWS):
            touched = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            self.traffic += sum(t.numel() * t.element_size() for t in (*touched, *made_here))
        for tensor in made_here:
            self.hold(tensor)
        return out

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's memory for as long as the tensor is in use."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = storage.nbytes()
        self._storages.add(key)
        self.held += size
        self.most = max(self.most, self.held)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.held -= size


class _FixedNegatives(nn.Module):
    """In place of `Negatives`: the right number of columns, without drawing."""

    def __init__(self, drawn: int) -> None:
        super().__init__()
        self.drawn = drawn

    def forward(self, target: Tensor, distinct: int) -> SoftmaxItems:
        """Columns for the targets, (M, A) int64, of which `distinct` differ, and `drawn` other columns."""
        items = target.new_zeros(distinct + self.drawn)  # (distinct + drawn,)
        return SoftmaxItems(items, torch.zeros_like(target), torch.zeros(len(items)))


@dataclass(frozen=True)
class Workload:
    """The sizes of data and batches. Lengths are those of a typical user; longer ones take more.

    Args:
        items: Items in the catalogue, N.
        history: Items in a training history, L.
        n_cf: Collaborative slots.
        n_sem: Semantic slots.
        cf_width: Width of a CF vector, E.
        text_width: Width of a text vector, F.
        tokens: Slots of further sources by name, see --model.tokens of fit.
        source_width: Width of their vectors, W.
        batch_size: Prefixes in a training step.
        eval_batch_size: Users in a batch of evaluation.
        sampled: Items drawn by the sampled softmax; null: the softmax over all items.
        objective: See the option of fit, --model.objective.
        betas: Values of beta that evaluation tries.
    """

    items: int = 12_000
    history: int = 8
    n_cf: int = 1
    n_sem: int = 4
    cf_width: int = 64
    text_width: int = 384
    tokens: dict[str, Tokens] = field(default_factory=dict)
    source_width: int = 512
    batch_size: int = 512
    eval_batch_size: int = 256
    sampled: int | None = None
    objective: Literal["slots", "score"] = "slots"
    betas: int = 11


def estimate_workload(workload: Workload, backbone: Backbone, bf16: bool, speeds: Speeds) -> Estimate:
    """The estimate for a backbone that is not built yet, with the speeds of a machine.

    Raises:
        ConfigError: a size is below 1.
    """
    w = workload
    if min(w.items, w.history, w.batch_size, w.eval_batch_size) < 1:
        raise ConfigError("items, history, batch_size and eval_batch_size must be 1 or more.")
    train, evaluation = _batches(w)
    model = _shapes_only(w, backbone)
    if w.sampled is not None:
        model.recipe = replace(model.recipe, sampled=w.sampled)
        model.negatives = _FixedNegatives(w.sampled)  # type: ignore[assignment]
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    fresh = torch.empty(weight.shape, dtype=weight.dtype)
                    module._parameters[name] = nn.Parameter(fresh, requires_grad=weight.requires_grad)
            for name, table in module._buffers.items():
                if table is not None:
                    module._buffers[name] = torch.empty(table.shape, dtype=table.dtype)
        weights = list(model.parameters())
        trained = [p for p in weights if p.requires_grad]
        batch = Batch(*(fake.from_tensor(t) for t in train))
        counter = StepCounter()
        for held in (*weights, *model.buffers()):
            counter.hold(held)
        for parameter in trained:  # AdamW holds two moments for every weight
            counter.held += 2 * parameter.numel() * 4
        with counter:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                sums = model.losses(batch)
                loss = sums.ranking + sums.reconstruction
            loss.backward()
        train_flops, traffic = counter.flops, counter.traffic + 7 * 4 * sum(p.numel() for p in trained)
        most = counter.most
        model.zero_grad()
        model.eval()
        eval_counter = StepCounter()
        for held in (*weights, *model.buffers()):
            eval_counter.hold(held)
        batch = Batch(*(fake.from_tensor(t) for t in evaluation))
        with torch.no_grad():
            index = model.index()
            for table in (*index.parts.values(), *index.codes):
                eval_counter.hold(table)
            with eval_counter:
                user = model.user_vectors(batch, index)
                first, *others = (user.parts[part] @ table.T for part, table in index.parts.items())  # (B, N) each
                for _ in range(w.betas):
                    for other in others:
                        torch.lerp(first, other, 0.5).clone()  # (B, N); the time of ranking comes from `Speeds.ranked`
    evaluation_flops = eval_counter.flops
    ranking_seconds = w.eval_batch_size * w.items * w.betas / speeds.ranked
    return Estimate(
        parameters=sum(p.numel() for p in weights),
        trainable=sum(p.numel() for p in trained),
        train_flops=train_flops,
        train_traffic=traffic,
        train_bytes=most,
        prefixes=len(train.valid),
        step_seconds=train_flops / speeds.flops + traffic / speeds.bandwidth,
        evaluation_flops=evaluation_flops,
        evaluation_bytes=eval_counter.most,
        users=len(evaluation.user),
        batch_seconds=evaluation_flops / speeds.float32_flops
        + eval_counter.traffic / speeds.bandwidth
        + ranking_seconds,
    )


def _shapes_only(w: Workload, backbone: Backbone) -> SETRec:
    """The model on the meta device: shapes without content."""
    with torch.device("meta"):
        absent = torch.zeros(w.items, dtype=torch.bool)  # (N,)
        catalogue = Catalogue(
            name="estimate",
            ids=[""] * w.items,
            titles=[],
            text=torch.zeros(w.items, w.text_width) if w.n_sem else None,
            cf=tuple(torch.zeros(w.items, w.cf_width) for _ in range(w.n_cf)),
            present=(absent,) * w.n_cf,
            count=absent.long(),
            fingerprint="",
            vectors={name: Vectors(torch.zeros(w.items, w.source_width), absent) for name in w.tokens},
        )
        recipe = Recipe(n_cf=w.n_cf, n_sem=w.n_sem, tokens=w.tokens, objective=w.objective)
        return SETRec(catalogue, backbone, recipe)


def _batches(w: Workload) -> tuple[Batch, Batch]:
    """A training batch and a batch of evaluation, with histories of one length."""
    n_rows = max(1, round(w.batch_size / w.history))
    rng = np.random.default_rng(0)

    def rows(n: int, length: int) -> Ragged:
        return Ragged.from_lengths(np.full(n, length), rng.integers(0, w.items, n * length))

    train = TrainRows(rows(n_rows, w.history), w.history)
    evaluation = EvalRows(rows(w.eval_batch_size, w.history), rows(w.eval_batch_size, 1), w.history)
    return train[np.arange(n_rows)], evaluation[np.arange(w.eval_batch_size)]


def measured_speeds(device: str, bf16: bool) -> Speeds:
    """Measure the speeds of this machine, in about a second."""
    a = torch.randn(1024, 1024, device=device)
    narrow = a.to(torch.bfloat16 if bf16 else torch.float32)
    block = torch.randn(4 * 1024 * 1024, device=device)  # 16 MiB
    scores, seen = torch.randn(64, 12_000, device=device), torch.zeros(64, 8, dtype=torch.int64, device=device)
    warm = torch.arange(12_000, device=device) < 11_400  # (N,): about as many warm items as in Toys

    def best(work: Any, times: int = 12) -> float:
        shortest = float("inf")
        for _ in range(times):
            if device != "cpu":
                torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            if device != "cpu":
                torch.cuda.synchronize()
            shortest = min(shortest, time.perf_counter() - start)
        return shortest

    out = torch.empty_like(block)
    return Speeds(
        flops=2 * 1024**3 / best(lambda: narrow @ narrow),
        float32_flops=2 * 1024**3 / best(lambda: a @ a),
        bandwidth=2 * block.numel() * 4 / best(lambda: out.copy_(block)),
        ranked=scores.numel() / best(lambda: top_groups(mask_seen(scores, seen), warm, max(CUTOFFS))),
    )


def estimate(
    workload: Workload = Workload(),
    backbone: Backbone = _TINY_T5,
    device: Literal["cpu", "cuda"] = "cpu",
    precision: Literal["32", "bf16-mixed"] = "bf16-mixed",
    tflops: float | None = None,
    float32_tflops: float | None = None,
    gigabytes_per_second: float | None = None,
) -> None:
    """Print the memory and time of training and evaluation, without running them.

    Args:
        workload: Sizes of the catalogue, the histories and the batches.
        backbone: T5Backbone or DecoderBackbone, from random weights of a shape.
        device: Device of the run; its speeds are measured, unless they are given.
        precision: Precision of training; evaluation is in float32.
        tflops: Speed of matrix products in the precision of training, in 10^12 operations a second; null: measure this machine.
        float32_tflops: The same in float32; null: measure this machine.
        gigabytes_per_second: Memory bandwidth; null: measure this machine. The measured speed of ranking is scaled in proportion
            to it.
    """
    bf16 = precision == "bf16-mixed"
    here = measured_speeds(device, bf16)
    bandwidth = here.bandwidth if gigabytes_per_second is None else gigabytes_per_second * 1e9
    speeds = Speeds(
        here.flops if tflops is None else tflops * 1e12,
        here.float32_flops if float32_tflops is None else float32_tflops * 1e12,
        bandwidth,
        here.ranked * bandwidth / here.bandwidth,
    )
    found = estimate_workload(workload, instantiate_default(backbone), bf16, speeds)
    print(f"parameters      {found.parameters:,}, {found.trainable:,} of them trained")
    print(
        f"training step   {found.train_flops / 1e9:.4g} GFLOP, {found.step_seconds:.3g} s for {found.prefixes} prefixes:"
    )
    print(
        f"                about {found.prefixes_per_second:.3g} prefixes a second, {found.train_bytes / 2**30:.3g} GiB"
    )
    print(
        f"evaluation      about {found.users_per_second:.3g} users a second, {found.evaluation_bytes / 2**30:.3g} GiB"
    )
    print(f"at              {speeds.flops / 1e9:.4g} GFLOP/s ({speeds.float32_flops / 1e9:.4g} in float32),")
    print(f"                {bandwidth / 1e9:.3g} GB/s and {speeds.ranked / 1e6:.3g} million scores ranked a second;")
    print("                libraries and allocator need 0.2 to 0.8 GiB more")
