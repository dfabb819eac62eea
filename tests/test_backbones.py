"""What every backbone guarantees (setrec/backbones/base.py), shown on random weights in evaluation mode."""

import pytest
import torch
from torch import Tensor

from setrec.backbones import Backbone, DecoderBackbone, LoRA, T5Backbone

B, L, K = 3, 5, 3


def make(name: str) -> Backbone:
    """A small backbone from random weights, its zero-initialised parts shaken so that they matter."""
    torch.manual_seed(7)
    backbones = {
        "t5": lambda: T5Backbone(shape="nano"),
        "t5 recency": lambda: T5Backbone(shape="nano", recency_bias=True, max_recency=3, n_prompt=2),
        "qwen2": lambda: DecoderBackbone(family="qwen2", shape="nano"),
        "qwen3": lambda: DecoderBackbone(family="qwen3", shape="nano", n_prompt=2, n_response=2),
        "llama": lambda: DecoderBackbone(family="llama", shape="nano", n_response=1, attention="eager"),
        "lora": lambda: DecoderBackbone(family="qwen2", shape="nano", n_response=2, lora=LoRA(r=2, dropout=0.0)),
        "t5, own item seen": lambda: T5Backbone(shape="nano", mask="items"),
        "t5, open queries": lambda: T5Backbone(shape="nano", isolate_queries=False),
        "qwen2, own item seen": lambda: DecoderBackbone(shape="nano", mask="items", n_response=1),
        "qwen2, causal": lambda: DecoderBackbone(shape="nano", mask="causal"),
        "qwen2, open queries": lambda: DecoderBackbone(shape="nano", isolate_queries=False, n_response=1),
    }
    backbone = backbones[name]()
    backbone.build()
    for parameter in backbone.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter)
    return backbone.eval().double()


ALL = ["t5", "t5 recency", "qwen2", "qwen3", "llama", "lora"]
RELAXED = ["t5, own item seen", "t5, open queries", "qwen2, own item seen", "qwen2, causal", "qwen2, open queries"]


@pytest.fixture(params=ALL)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return make(request.param)


def inputs(backbone: Backbone) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three histories of 5, 3 and 0 items, every prefix of each, and K queries."""
    torch.manual_seed(1)
    items = torch.randn(B, L, K, backbone.width, dtype=torch.float64)
    length = torch.tensor([5, 3, 0])
    real = torch.arange(L) < length[:, None]
    prefix = torch.arange(L + 1).expand(B, -1).masked_fill(torch.arange(L + 1) > length[:, None], -1)
    return items, real, prefix, torch.randn(K, backbone.width, dtype=torch.float64)


def test_all_prefixes_at_once_equal_one_row_per_prefix(backbone: Backbone) -> None:
    items, real, prefix, queries = inputs(backbone)
    together = backbone(items, real, prefix, queries)
    # language models take their norms in float32, whatever the weights are: a last bit may round the other way
    close = 1e-9 if isinstance(backbone, T5Backbone) else 1e-6
    for b in range(B):
        for p in range(L + 1):
            t = int(prefix[b, p])
            if t < 0:
                continue
            # the row holds no more than the prefix: nothing of what comes later is even there
            alone = backbone(items[b : b + 1, :t], real[b : b + 1, :t], torch.tensor([[t]]), queries)
            torch.testing.assert_close(together[b, p], alone[0, 0], rtol=close, atol=close)


def test_gradients_of_all_prefixes_equal_one_row_per_prefix(backbone: Backbone) -> None:
    items, real, prefix, queries = inputs(backbone)
    pull = torch.randn(B, L + 1, K, backbone.width, dtype=torch.float64) * (prefix >= 0)[..., None, None]

    def gradients(rows: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> list[Tensor]:
        backbone.zero_grad()
        sum((backbone(i, r, p, queries) * g).sum() for i, r, p, g in rows).backward()
        return [q.grad.clone() for q in backbone.parameters() if q.grad is not None]

    packed = gradients([(items, real, prefix, pull)])
    single = gradients(
        [
            (items[b : b + 1, :p], real[b : b + 1, :p], torch.tensor([[p]]), pull[b : b + 1, p : p + 1])
            for b in range(B)
            for p in range(L + 1)
            if prefix[b, p] >= 0
        ]
    )
    assert len(packed) == len(single) > 5
    for one, other in zip(packed, single, strict=True):
        # T5's norm takes its variance in float32, whatever the weights are
        assert (one - other).abs().max() < 1e-5 * one.abs().max()


def test_slots_of_a_history_item_are_a_set(backbone: Backbone) -> None:
    items, real, prefix, queries = inputs(backbone)
    shuffled = items.clone()
    for b in range(B):
        for i in range(L):
            shuffled[b, i] = items[b, i, torch.randperm(K)]
    assert not torch.equal(shuffled, items)
    torch.testing.assert_close(backbone(shuffled, real, prefix, queries), backbone(items, real, prefix, queries))


def test_order_of_items_matters(backbone: Backbone) -> None:
    items, real, _, queries = inputs(backbone)
    last = torch.full((B, 1), 3)
    flipped = items.clone()
    flipped[:, :3] = items[:, :3].flip(1)
    assert (backbone(flipped, real, last, queries) - backbone(items, real, last, queries)).abs().max() > 1e-4


def test_queries_are_isolated(backbone: Backbone) -> None:
    items, real, prefix, queries = inputs(backbone)
    whole = backbone(items, real, prefix, queries)
    other = queries.clone()
    other[1] = torch.randn(backbone.width)  # another query 1: its answer changes, no other does
    changed = backbone(items, real, prefix, other)
    torch.testing.assert_close(changed[:, :, [0, 2]], whole[:, :, [0, 2]])
    assert (changed[:, :, 1] - whole[:, :, 1]).abs().max() > 1e-4


def test_removing_a_query_leaves_the_others(backbone: Backbone) -> None:
    items, real, prefix, queries = inputs(backbone)
    whole = backbone(items, real, prefix, queries)
    fewer = backbone(items, real, prefix, queries[[0, 2]])
    torch.testing.assert_close(fewer, whole[:, :, [0, 2]], rtol=1e-6, atol=1e-6)


def test_permuting_queries_permutes_answers(backbone: Backbone) -> None:
    items, real, prefix, queries = inputs(backbone)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        backbone(items, real, prefix, queries[order]), backbone(items, real, prefix, queries)[:, :, order]
    )


def test_no_query_sees_its_target_or_anything_later(backbone: Backbone) -> None:
    items, real, prefix, queries = inputs(backbone)
    items.requires_grad_()
    outputs = backbone(items, real, prefix, queries)
    for t in range(L + 1):
        (gradient,) = torch.autograd.grad(outputs[0, t].sum(), items, retain_graph=True)
        assert gradient[0, t:].abs().max() == 0 if t < L else True
        assert gradient[1:].abs().max() == 0  # nor other rows
        for i in range(t):
            assert gradient[0, i].abs().max() > 0  # every slot of every earlier item does matter
    with torch.no_grad():
        future = items.clone()
        future[0, 3:] += 100.0
        again = backbone(future, real, prefix, queries)
        torch.testing.assert_close(again[0, :4], outputs[0, :4], rtol=0, atol=1e-12)
        assert (again[0, 4:] - outputs[0, 4:]).abs().max() > 1e-4


def test_padding_and_batch_composition_change_nothing(backbone: Backbone) -> None:
    items, real, prefix, queries = inputs(backbone)
    whole = backbone(items, real, prefix, queries)
    garbage = items.clone()
    garbage[~real] = 1e3
    torch.testing.assert_close(backbone(garbage, real, prefix, queries)[prefix >= 0], whole[prefix >= 0])
    for b in range(B):
        alone = backbone(items[b : b + 1], real[b : b + 1], prefix[b : b + 1], queries)
        torch.testing.assert_close(alone, whole[b : b + 1])


def test_every_parameter_gets_a_gradient(backbone: Backbone) -> None:
    """Plain DDP refuses parameters without one."""
    items, real, prefix, queries = inputs(backbone)
    backbone(items, real, prefix, queries).square().sum().backward()
    without = [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


# ------------------------------------------------------------------------------------------------------------ ablations
@pytest.mark.parametrize("name", RELAXED)
def test_without_a_part_of_the_mask_prefixes_stay_apart(name: str) -> None:
    """What is given up is one guarantee; no later item is seen all the same, and a history still trains in one row."""
    backbone = make(name)
    test_all_prefixes_at_once_equal_one_row_per_prefix(backbone)
    test_no_query_sees_its_target_or_anything_later(backbone)
    test_padding_and_batch_composition_change_nothing(backbone)
    test_permuting_queries_permutes_answers(backbone)
    test_every_parameter_gets_a_gradient(backbone)
    isolated, a_set = "open queries" not in name, "causal" not in name
    for kept, guarantee in ((isolated, test_queries_are_isolated), (a_set, test_slots_of_a_history_item_are_a_set)):
        if kept:
            guarantee(backbone)
        else:
            with pytest.raises(AssertionError):
                guarantee(backbone)
