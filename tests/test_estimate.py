"""The estimator against the model it speaks of."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from setrec.backbones import Backbone, DecoderBackbone, LoRA, T5Backbone
from setrec.cli import main
from setrec.commands.estimate import Speeds, StepCounter, Workload, _batches, estimate_workload
from setrec.data.catalogue import Catalogue, Vectors
from setrec.errors import ConfigError
from setrec.model import SETRec
from setrec.recipe import Recipe, Tokens

SPEEDS = Speeds(flops=1e9, float32_flops=1e9, bandwidth=1e9, ranked=1e9)
SMALL = Workload(items=500, history=6, n_sem=2, cf_width=8, text_width=24, batch_size=48, eval_batch_size=8)


def real_model(w: Workload, backbone: Backbone) -> SETRec:
    generator = torch.Generator().manual_seed(0)
    seen = torch.ones(w.items, dtype=torch.bool)
    catalogue = Catalogue(
        name="real",
        ids=[str(i) for i in range(w.items)],
        titles=[""] * w.items,
        text=torch.randn(w.items, w.text_width, generator=generator),
        cf=tuple(torch.randn(w.items, w.cf_width, generator=generator) for _ in range(w.n_cf)),
        present=(seen,) * w.n_cf,
        count=seen.long(),
        fingerprint="",
        vectors={name: Vectors(torch.randn(w.items, w.source_width), seen) for name in w.tokens},
    )
    return SETRec(catalogue, backbone, Recipe(n_cf=w.n_cf, n_sem=w.n_sem, tokens=w.tokens, sampled=w.sampled))


@pytest.mark.slow
@pytest.mark.parametrize("sampled", [None, 64])
@pytest.mark.parametrize("kind", ["t5", "decoder", "lora", "sources"])
def test_parameters_operations_and_memory_are_those_of_a_real_step(kind: str, sampled: int | None) -> None:
    tokens = {"image": Tokens(2, "autoencoder"), "price": Tokens()} if kind == "sources" else {}
    w = Workload(**{**SMALL.__dict__, "sampled": sampled, "tokens": tokens, "source_width": 40})

    def backbone() -> Backbone:
        if kind in ("t5", "sources"):
            return T5Backbone(shape="nano")
        return DecoderBackbone(shape="nano", lora=LoRA(r=2) if kind == "lora" else None)

    found = estimate_workload(w, backbone(), bf16=False, speeds=SPEEDS)
    model = real_model(w, backbone())
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    counter = StepCounter()
    for held in (*model.parameters(), *model.buffers()):
        counter.hold(held)
    with FlopCounterMode(display=False) as flops, counter:
        sums = model.losses(_batches(w)[0])
        (sums.ranking + sums.reconstruction).backward()
    assert found.train_flops == pytest.approx(flops.get_total_flops(), rel=0.02)
    moments = 8 * found.trainable
    assert found.train_bytes == pytest.approx(counter.most + moments, rel=0.1)
    assert found.step_seconds == pytest.approx((found.train_flops + found.train_traffic) / 1e9)


@pytest.mark.slow
def test_work_grows_as_it_should() -> None:
    def seen(**changes: int) -> tuple[float, int]:
        found = estimate_workload(Workload(**{**SMALL.__dict__, **changes}), T5Backbone(shape="nano"), False, SPEEDS)
        return found.train_flops, found.train_bytes

    base, doubled, sampled = seen(), seen(items=1000), seen(items=1000, sampled=50)
    assert base[0] < doubled[0] < 2 * base[0]
    assert base[1] < doubled[1]
    assert sampled[0] < base[0]
    assert seen(history=24)[0] > base[0]


@pytest.mark.slow
def test_the_command_prints_what_it_will_take(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["estimate", "--workload.items=300", "--backbone.shape=nano", "--tflops=0.1", "--gigabytes_per_second=10"]
    main([*words, '--workload.tokens={"image": {"slots": 2}}'])
    said = capsys.readouterr().out
    assert "prefixes a second" in said
    assert "100 GFLOP/s (" in said
    assert " 10 GB/s and " in said


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        estimate_workload(Workload(items=0), T5Backbone(shape="nano"), False, SPEEDS)
