"""DecoderBackbone against the stock Hugging Face models, and its runs: configurations, weights split over processes."""

import json
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import AutoModel, AutoTokenizer

import setrec.backbones.decoder
from setrec.backbones import DecoderBackbone, LoRA
from setrec.backbones.masks import packed_mask
from setrec.cli import run
from setrec.errors import ConfigError
from tests.language_models import FAMILIES, WIDTH, built, history, shaken
from tests.zygote import Zygote

ROOT = Path(__file__).parent.parent


# ------------------------------------------------------------------------------------------------------------ the model
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_the_stock_model_under_a_causal_mask(folders: dict[str, Path], family: str, attention: str) -> None:
    """One slot an item, one query, one prefix: a plain text of tokens at positions 0, 1, 2 ..."""
    backbone = DecoderBackbone(
        pretrained=str(folders[family]), attention=attention, instruction="the user", response="would"
    )
    backbone.build()
    assert backbone.training  # from_pretrained says eval
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}  # the folder is in half precision
    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    words, response_words = tokenizer("the user").input_ids, tokenizer("would", add_special_tokens=False).input_ids
    assert (backbone.n_text, backbone.n_announce) == (len(words), len(response_words))
    assert (len(words), len(response_words)) == (8 + (family == "llama"), 5)  # characters; Llama's text begins with <s>
    backbone.eval()
    stock = AutoModel.from_pretrained(folders[family], dtype=torch.float32)
    items, query = torch.randn(2, 5, 1, WIDTH), torch.randn(1, WIDTH)
    text, response = (stock.embed_tokens(torch.tensor(ids)).expand(2, -1, -1) for ids in (words, response_words))
    with torch.no_grad():
        ours = backbone(items, torch.ones(2, 5, dtype=torch.bool), torch.tensor([[5], [5]]), query)  # (B, 1, 1, D)
        theirs = stock(inputs_embeds=torch.cat([text, items.squeeze(2), response, query.expand(2, 1, -1)], dim=1))
    torch.testing.assert_close(ours[:, 0, 0], theirs.last_hidden_state[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_of_attention_read_the_same_mask(folders: dict[str, Path], family: str) -> None:
    sdpa, eager = (
        built(DecoderBackbone(pretrained=str(folders[family]), attention=name)) for name in ("sdpa", "eager")
    )
    items, real, prefix, queries = history()
    one, other = sdpa(items, real, prefix, queries), eager(items, real, prefix, queries)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    causal = built(DecoderBackbone(pretrained=str(folders[family])))
    with pytest.MonkeyPatch.context() as patch:  # the same model under a causal mask is another function
        patch.setattr(
            setrec.backbones.decoder, "packed_mask", lambda *sizes: torch.ones_like(packed_mask(*sizes)).tril()
        )
        assert (causal(items, real, prefix, queries) - one)[prefix >= 0].abs().max() > 1e-2


def test_half_precision_and_autocast_keep_the_mask(folders: dict[str, Path]) -> None:
    """The lowest float32 becomes -inf in bfloat16: every token sees itself, so no row is empty."""
    items, real, prefix, queries = history()
    exact = built(DecoderBackbone(pretrained=str(folders["qwen2"])))(items, real, prefix, queries)
    for attention in ("sdpa", "eager"):
        half = built(DecoderBackbone(pretrained=str(folders["qwen2"]), attention=attention, dtype="bfloat16"))
        outputs = half(items, real, prefix, queries)
        assert outputs.dtype == torch.float32
        assert (outputs - exact)[prefix >= 0].abs().mean() < 0.03  # of values around 1
        mixed = built(DecoderBackbone(pretrained=str(folders["qwen2"]), attention=attention))
        with torch.autocast("cpu", torch.bfloat16):
            outputs = mixed(items, real, prefix, queries)
        assert outputs.isfinite().all()
        assert (outputs - exact)[prefix >= 0].abs().mean() < 0.03


def test_a_row_of_padding_alone_is_finite() -> None:
    backbone = built(DecoderBackbone(shape="nano", n_response=1))
    none = torch.full((2, 3), -1)
    items = torch.zeros(2, 4, 2, 32, requires_grad=True)
    outputs = backbone(items, torch.zeros(2, 4, dtype=torch.bool), none, torch.randn(2, 32))
    assert outputs.shape == (2, 3, 2, 32)
    outputs.sum().backward()
    assert outputs.isfinite().all()
    assert items.grad is not None
    assert items.grad.isfinite().all()


def test_gradient_checkpointing_changes_no_gradient(folders: dict[str, Path]) -> None:
    items, real, prefix, queries = history()
    gradients = []
    for checkpointing in (False, True):
        backbone = DecoderBackbone(
            pretrained=str(folders["qwen3"]), gradient_checkpointing=checkpointing, lora=LoRA(dropout=0)
        )
        backbone.build()
        torch.manual_seed(0)
        shaken(backbone)
        calls: list[int] = []
        backbone.base.layers[1].mlp.register_forward_pre_hook(lambda *_, into=calls: into.append(1))
        backbone(items, real, prefix, queries).square().sum().backward()
        assert len(calls) == 1 + checkpointing  # computed anew in the backward pass
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.requires_grad})
    assert len(gradients[0]) == 2 * 3 * 2  # layers, targets, A and B
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
        assert gradient.abs().max() > 0


def test_no_vocabulary_is_kept_and_half_precision_reaches_the_base(folders: dict[str, Path]) -> None:
    backbone = built(DecoderBackbone(pretrained=str(folders["llama"]), dtype="bfloat16", lora=LoRA()))
    assert not any("embed" in name or "head" in name for name in backbone.state_dict())
    assert {p.dtype for p in backbone.base.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}  # small steps must count


@pytest.mark.parametrize("train_prompt", [False, True])
def test_texts_train_only_when_asked(folders: dict[str, Path], train_prompt: bool) -> None:
    backbone = built(DecoderBackbone(pretrained=str(folders["qwen2"]), train_prompt=train_prompt, lora=LoRA()))
    assert backbone.prompt.requires_grad is train_prompt


# ------------------------------------------------------------------------------------------------------------------ runs
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


def world(folder: Path) -> list[str]:
    """A small made-up world in place of the data; everything is written inside `folder`."""
    return [
        *("--data.name=tiny", f"--data.root={folder / 'data'}", f"--trainer.default_root_dir={folder}"),
        *(
            "--data.reader=SyntheticWorld",
            "--data.reader.users=120",
            "--data.reader.items=60",
            "--data.cleaning.k_core=2",
        ),
        *("--data.text=TfidfSVD", "--data.cf=[CooccurrenceSVD]", *QUIET),
    ]


def outcome(folder: Path, version: int = 0) -> dict:
    return json.loads((folder / f"lightning_logs/version_{version}/results.json").read_text())


@pytest.mark.process
def test_weights_split_over_two_processes_are_one_run(folders: dict[str, Path], zygote: Zygote, tmp_path: Path) -> None:
    """The same steps as one process; the checkpoint is a folder without the base, and `test` needs nothing else."""
    lora = [f"--model.backbone.pretrained={folders['llama']}", "--model.backbone.lora={r: 2, dropout: 0}"]
    start = ["fit", "--model.backbone=DecoderBackbone", *lora, "--model.n_sem=2", "--trainer.max_epochs=1"]
    start += ["--trainer.limit_train_batches=4", "--trainer.num_sanity_val_steps=0"]
    one, two = tmp_path / "one", tmp_path / "two"
    run([*start, *world(one)])
    split = ["--trainer.devices=2", "--trainer.strategy=ModelParallelStrategy"]
    split += ["--trainer.strategy.data_parallel_size=2", "--trainer.strategy.tensor_parallel_size=1"]

    zygote.together([*start, *world(two), *split], 2, tmp_path)
    folder = two / "lightning_logs/version_0/checkpoints/last.ckpt"
    dcp_to_torch_save(folder, tmp_path / "flat.pt")
    state = torch.load(tmp_path / "flat.pt", weights_only=True)["state_dict"]
    single = torch.load(one / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == single.keys()
    for name, value in single.items():
        assert (state[name] - value).abs().max() < 1e-3 * max(float(value.abs().max()), 1e-2), name
    zygote.together(
        ["test", "--ckpt_path", str(folder), f"--trainer.default_root_dir={two}", *QUIET, *split], 2, tmp_path
    )
    assert outcome(two, 1)["metrics"]["all"]["recall@20"] > 0
    for part in (*folder.glob("*.distcp"), folder / ".metadata", folder / "meta.pt", folder / "files.json"):
        whole = part.read_bytes()
        part.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
        for word in ("test", "fit"):
            with pytest.raises(ConfigError, match=f"last.ckpt: its part {part.name} is missing, or was changed"):
                run([word, "--ckpt_path", str(folder), *QUIET])
        part.write_bytes(whole)
    with pytest.raises(ConfigError, match="last.ckpt is a sharded checkpoint: give one file"):
        run([*start, *world(two), f"--model.start_from={folder}"])
