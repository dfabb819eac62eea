"""Reading a history on, from what was kept of its beginning, equals reading it at once."""

from typing import Any

import pytest
import torch

from setrec.backbones import DecoderBackbone, T5Backbone
from setrec.backbones.base import Backbone
from setrec.backbones.lora import LoRA
from setrec.backbones.past import past_of

BACKBONES: dict[str, Any] = {
    "t5": lambda: T5Backbone(shape="nano", n_prompt=3),
    "t5-recency": lambda: T5Backbone(shape="nano", recency_bias=True, max_recency=4),
    "t5-items": lambda: T5Backbone(shape="nano", mask="items", isolate_queries=False),
    "qwen2": lambda: DecoderBackbone(shape="nano", n_prompt=2, n_response=2),
    "qwen3": lambda: DecoderBackbone(shape="nano", family="qwen3", mask="items", isolate_queries=False),
    "llama": lambda: DecoderBackbone(shape="nano", family="llama", mask="causal", lora=LoRA(r=2)),
}


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    made: Backbone = BACKBONES[request.param]()
    made.build()
    for parameter in made.parameters():  # biases and adapters start at zero: give them something to say
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


@torch.no_grad()
def test_reading_on_equals_reading_at_once(backbone: Backbone) -> None:
    n_slots, lengths = 3, torch.tensor([5, 0, 3, 1])
    items = torch.randn(4, 5, n_slots, backbone.width)
    queries = torch.randn(n_slots, backbone.width)
    real = torch.arange(5) < lengths[:, None]
    whole = backbone(items, real, lengths[:, None], queries)[:, 0]  # (B, K, D)
    text = backbone.read_text()

    def read(start: list[int], stop: list[int], kept: list[Any]) -> tuple[torch.Tensor, list[Any]]:
        n = max(b - a for a, b in zip(start, stop, strict=True))
        padded = torch.zeros(4, n, n_slots, backbone.width)
        for row, (a, b) in enumerate(zip(start, stop, strict=True)):
            padded[row, : b - a] = items[row, a:b]
        new = torch.tensor(stop) - torch.tensor(start)
        outputs, states = backbone.read(padded, new, queries, past_of(text, kept, n_slots))
        more = [state[:, :, :, : k * n_slots] for state, k in zip(states, new.tolist(), strict=True)]
        joined = [m if old is None else torch.cat([old, m], dim=3) for old, m in zip(kept, more, strict=True)]
        return outputs, joined

    none, ends = [0, 0, 0, 0], lengths.tolist()
    at_once, _ = read(none, ends, [None] * 4)
    scale = whole.abs().max()
    torch.testing.assert_close(at_once, whole, atol=float(1e-5 * scale), rtol=0)
    first, kept = read(none, [3, 0, 1, 1], [None] * 4)
    prefix = torch.tensor([[3], [0], [1], [1]])
    torch.testing.assert_close(first, backbone(items, real, prefix, queries)[:, 0], atol=float(1e-5 * scale), rtol=0)
    last, kept = read([3, 0, 1, 1], ends, kept)
    torch.testing.assert_close(last, whole, atol=float(1e-5 * scale), rtol=0)
    again, _ = read(ends, ends, kept)  # nothing new at all
    torch.testing.assert_close(again, whole, atol=float(1e-5 * scale), rtol=0)


def test_a_history_token_that_sees_later_ones_cannot_read_on() -> None:
    assert not T5Backbone(mask="bidirectional", shape="nano").reads_on
