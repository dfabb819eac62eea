"""Loading pretrained language models: what is missing or does not go together is one sentence."""

from pathlib import Path

import pytest

import setrec.backbones.lora
import setrec.backbones.pretrained
from setrec.backbones import DecoderBackbone, LoRA
from setrec.errors import ConfigError
from tests.language_models import save_model


def refused(sentence: str, **options: object) -> None:
    with pytest.raises(ConfigError, match=sentence) as raised:
        DecoderBackbone(**options).build()  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_what_is_missing_is_one_sentence(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused("neither a folder here .* --model.backbone.pretrained", pretrained=str(tmp_path / "nothing"))
    folder = str(folders["qwen2"])
    refused("file 'none.gguf' is neither|gguf, which is not installed", pretrained=folder, gguf_file="none.gguf")
    refused("no layer of Qwen2Model has such a name; its layers are .*'q_proj'", lora=LoRA(target_modules=["query"]))
    refused("needs a GPU", pretrained=folder, lora=LoRA(), quantize=4)
    for module, package in ((setrec.backbones.pretrained, "gguf"), (setrec.backbones.lora, "peft")):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        refused(
            f"package {package}, which is not installed",
            pretrained=folder,
            lora=LoRA(),
            gguf_file=None if package == "peft" else "a.gguf",
        )


def test_a_base_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    """transformers would fill them with random numbers and only warn."""
    from safetensors.torch import load_file, save_file

    path = save_model(tmp_path / "half", "llama")
    weights = load_file(path / "model.safetensors")
    save_file(
        {name: w for name, w in weights.items() if "layers.1" not in name}, path / "model.safetensors", {"format": "pt"}
    )
    refused("lacks 9 weights of a LlamaModel, layers.1", pretrained=str(path))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_prompt": 0}, "n_prompt is 0"),
        ({"quantize": 4}, "only a frozen base"),
        ({"gguf_file": "a.gguf"}, "the folder that holds it"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], sentence: str) -> None:
    refused(sentence, **options)
