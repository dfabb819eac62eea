"""LoRA: adapters, checkpoints without the frozen base, and the merged model."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel

from setrec.backbones import DecoderBackbone, LoRA
from setrec.cli import main, run
from setrec.errors import ConfigError
from tests.language_models import built, history, save_model, shaken
from tests.test_decoder import QUIET, outcome, world


def test_adapters_begin_as_nothing_and_alone_train(folders: dict[str, Path]) -> None:
    items, real, prefix, queries = history()
    plain = built(DecoderBackbone(pretrained=str(folders["qwen2"])))
    adapted = built(DecoderBackbone(pretrained=str(folders["qwen2"]), lora=LoRA(r=2)))
    torch.testing.assert_close(adapted(items, real, prefix, queries), plain(items, real, prefix, queries))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 3 * 2
    assert all(name.split(".lora_")[0].endswith(("q_proj", "v_proj", "o_proj")) for name in trained)


def test_checkpoints_leave_the_frozen_base_out_and_load_strictly(folders: dict[str, Path]) -> None:
    items, real, prefix, queries = history()

    def fresh(seed: int) -> DecoderBackbone:
        torch.manual_seed(seed)
        backbone = built(DecoderBackbone(pretrained=str(folders["qwen2"]), lora=LoRA(r=2), train_prompt=True))
        return shaken(backbone)

    trained, other = fresh(1), fresh(2)
    whole = nn.ModuleDict({"backbone": trained})  # a prefix before every name, as in a run
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    assert set(state) == {f"backbone.{name}" for name, p in trained.named_parameters() if p.requires_grad}
    assert len(state) == 12 + 1
    outputs = trained(items, real, prefix, queries)
    assert (other(items, real, prefix, queries) - outputs).abs().max() > 1e-2
    frozen = other.base.layers[0].mlp.up_proj.weight.clone()
    nn.ModuleDict({"backbone": other}).load_state_dict(state, strict=True)
    assert torch.equal(other(items, real, prefix, queries), outputs)
    assert torch.equal(other.base.layers[0].mlp.up_proj.weight, frozen)
    missing = next(name for name in state if "lora_A" in name)
    with pytest.raises(RuntimeError, match="Missing key"):
        nn.ModuleDict({"backbone": other}).load_state_dict({n: v for n, v in state.items() if n != missing})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        nn.ModuleDict({"backbone": other}).load_state_dict({**state, "backbone.extra": torch.zeros(1)})


def test_another_base_under_the_same_name_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    def at(path: Path, **options: str) -> DecoderBackbone:
        return built(DecoderBackbone(pretrained=str(path), lora=LoRA(), **options))

    origin = at(folders["qwen2"]).origin()
    at(folders["qwen2"]).check_origin(origin)
    at(folders["qwen2"], dtype="bfloat16").check_origin(origin)  # the same weights in half precision
    with pytest.raises(ConfigError, match=r"were trained on .* not those found .*--model.backbone.pretrained"):
        at(save_model(tmp_path / "other", "qwen2", seed=4)).check_origin(origin)


def test_everything_that_cannot_be_found_again_is_in_the_checkpoint(folders: dict[str, Path]) -> None:
    """A random base, and a pretrained one that trains whole."""
    for backbone in (DecoderBackbone(shape="nano", lora=LoRA()), DecoderBackbone(pretrained=str(folders["llama"]))):
        state = built(backbone).state_dict()
        assert set(state) == {name for name, _ in backbone.named_parameters()}
        assert backbone.origin() == {}


@pytest.mark.parametrize("lora", [LoRA(r=2), None])
def test_merge_writes_a_plain_model_that_answers_the_same(
    folders: dict[str, Path], tmp_path: Path, lora: LoRA | None
) -> None:
    items, real, prefix, queries = history()
    adapted = shaken(built(DecoderBackbone(pretrained=str(folders["qwen3"]), lora=lora)))
    if lora is None:
        nn.init.normal_(adapted.base.layers[0].mlp.up_proj.weight)
    adapted.merge(tmp_path / "merged")
    merged = built(DecoderBackbone(pretrained=str(tmp_path / "merged")))
    assert not any("lora" in name for name in merged.state_dict())
    outputs = adapted(items, real, prefix, queries)
    torch.testing.assert_close(merged(items, real, prefix, queries), outputs, rtol=1e-4, atol=1e-4)
    plain = built(DecoderBackbone(pretrained=str(folders["qwen3"])))
    assert (plain(items, real, prefix, queries) - outputs).abs().max() > 1e-2
    with pytest.raises(ConfigError, match="exists already"):
        adapted.merge(tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_run_with_lora_from_its_checkpoint_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    lora = [f"--model.backbone.pretrained={folders['qwen3']}", "--model.backbone.lora.r=2", "--model.n_sem=2"]
    start = ["fit", *world(tmp_path), "--model.backbone=DecoderBackbone", *lora, "--trainer.max_epochs=1"]
    run([*start, "--test_after_fit=true", "--model.lr=1e-2"])
    path = next((tmp_path / "lightning_logs/version_0/checkpoints").glob("epoch-*.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if ".base." in name and ".lora_" not in name]
    assert checkpoint["backbone"]["pretrained"] == str(folders["qwen3"])
    again = ["test", "--ckpt_path", str(path), f"--trainer.default_root_dir={tmp_path}", *QUIET]
    run(again)
    assert outcome(tmp_path, 1)["metrics"] == outcome(tmp_path)["metrics"]
    other = save_model(tmp_path / "other", "qwen3", seed=9)
    with pytest.raises(ConfigError, match="adapters were trained on"):
        run([*again, f"--model.backbone.pretrained={other}"])
    with pytest.raises(ConfigError, match="neither a folder here"):
        run([*again, f"--model.backbone.pretrained={tmp_path / 'nowhere'}"])
    main(["merge", "--ckpt_path", str(path), "--output", str(tmp_path / "merged")])
    adapted = [name for name in checkpoint["state_dict"] if ".lora_B" in name]
    assert any(checkpoint["state_dict"][name].any() for name in adapted)
    plain, merged = (AutoModel.from_pretrained(folder) for folder in (folders["qwen3"], tmp_path / "merged"))
    changed = [n for n, p in plain.named_parameters() if not torch.equal(p, merged.get_parameter(n))]
    assert len(changed) == len(adapted)
    assert all(name.split(".")[-2] in ("q_proj", "v_proj", "o_proj") for name in changed)
