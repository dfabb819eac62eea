"""T5Backbone against the stock Hugging Face T5, and its own options."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, T5Config, T5Model

from setrec.backbones import T5Backbone
from setrec.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with its tokenizer, saved as the hub saves them."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("t5")
    words = ["<pad>", "</s>", "<unk>", "the", "user", "would", "purchase"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    config = T5Config(vocab_size=7, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3)
    T5Model(config).to(torch.bfloat16).save_pretrained(path)  # half precision on disk must come back as float32
    return path


def test_equals_stock_t5_under_plain_mask_and_positions(folder: Path) -> None:
    """One slot an item and a bidirectional encoder are plain T5: tokens at positions 0, 1, 2 ..., one decoder token."""
    backbone = T5Backbone(
        pretrained=str(folder), mask="bidirectional", instruction="the user", response="would purchase"
    )
    backbone.build()
    assert backbone.training
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert backbone.prompt.shape == (4, 24)  # four words, no end-of-sequence token
    backbone.eval()
    stock = T5Model.from_pretrained(folder, dtype=torch.float32).eval()
    items, query = torch.randn(2, 5, 1, 24), torch.randn(1, 24)
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    with torch.no_grad():
        ours = backbone(items, real, torch.tensor([[5], [3]]), query)  # (B, 1, 1, D)
        text = backbone.prompt.expand(2, -1, -1)
        theirs = stock(
            inputs_embeds=torch.cat([text, items.squeeze(2)], dim=1),
            attention_mask=torch.cat([torch.ones(2, 4, dtype=torch.bool), real], dim=1).long(),
            decoder_inputs_embeds=query.expand(2, 1, 24),
        ).last_hidden_state  # (B, 1, D)
    torch.testing.assert_close(ours.squeeze(2), theirs, rtol=1e-5, atol=1e-5)


def test_set_mask_differs_from_bidirectional(folder: Path) -> None:
    items, query, real = torch.randn(2, 5, 2, 24), torch.randn(2, 24), torch.ones(2, 5, dtype=torch.bool)
    outputs = []
    for mask in ("set", "bidirectional"):
        backbone = T5Backbone(pretrained=str(folder), mask=mask)
        backbone.build()
        outputs.append(backbone.eval()(items, real, torch.tensor([[5], [5]]), query))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_queries_that_are_not_isolated_see_each_other(folder: Path) -> None:
    backbone = T5Backbone(pretrained=str(folder), isolate_queries=False)
    backbone.build()
    backbone.eval()
    items, real, queries = torch.randn(1, 3, 2, 24), torch.ones(1, 3, dtype=torch.bool), torch.randn(2, 24)
    one = backbone(items, real, torch.tensor([[1, 3]]), queries)
    other = backbone(items, real, torch.tensor([[1, 3]]), torch.stack([queries[0], -queries[1]]))
    assert (one[:, :, 0] - other[:, :, 0]).abs().max() > 1e-4


def test_isolated_decoder_equals_self_attention_over_one_key(folder: Path) -> None:
    """The O(V(x)) shortcut against the block's real self-attention, with the diagonal alone left unmasked."""
    short, full = (T5Backbone(pretrained=str(folder), isolate_queries=flag) for flag in (True, False))
    short.build(), full.build()
    short.eval(), full.eval()
    layer, x = full.decoder[0].layer[0], torch.randn(4, 3, 24)
    alone = torch.full((3, 3), torch.finfo(torch.float32).min).fill_diagonal_(0)[None, None]
    stock, _, _ = layer(x, attention_mask=alone, position_bias=torch.zeros(1, 3, 3, 3))
    torch.testing.assert_close(
        short._self_attention(short.decoder[0].layer[0], x, n_queries=3), stock, rtol=1e-5, atol=1e-6
    )


def test_the_whole_mask_reaches_the_attention(folder: Path) -> None:
    """transformers before 5 dropped a mask when a position bias came with it: masked keys must have no influence."""
    backbone = T5Backbone(pretrained=str(folder))
    backbone.build()
    history = torch.randn(1, 4 + 3, 24, requires_grad=True)
    backbone.prompt.data = backbone.prompt.data[:4]
    backbone.eval()._decode(history, torch.tensor([[1]]), torch.randn(1, 24), n_items=3, n_slots=1).sum().backward()
    assert history.grad is not None
    assert history.grad[0, 5:].abs().max() == 0
    assert history.grad[0, :5].abs().min() > 0


def test_unreachable_model_is_one_sentence_with_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model.backbone.pretrained null"):
        T5Backbone(pretrained=str(tmp_path / "nothing")).build()


def test_an_empty_history_needs_something_to_see() -> None:
    with pytest.raises(ConfigError, match="n_prompt is 0"):
        T5Backbone(n_prompt=0)
