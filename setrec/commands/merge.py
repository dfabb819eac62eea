"""merge: add a checkpoint's adapters to their language model, and write it as a plain Hugging Face folder."""

from pathlib import Path

from setrec.backbones.base import Backbone
from setrec.backbones.decoder import DecoderBackbone
from setrec.errors import ConfigError
from setrec.files.checkpoint import read_checkpoint
from setrec.hparams import instantiate


def merge(ckpt_path: str, output: str) -> None:
    """Write the language model of a checkpoint, with LoRA merged, as a plain Hugging Face folder.

    Args:
        ckpt_path: A checkpoint of a run with a pretrained DecoderBackbone.
        output: The folder to write; it must not exist. `--model.backbone.pretrained FOLDER` reads it.

    Raises:
        ConfigError: the checkpoint has another backbone, or the folder exists.
    """
    checkpoint = read_checkpoint(Path(ckpt_path))
    backbone = instantiate(checkpoint.model.get("backbone"), Backbone)
    if not isinstance(backbone, DecoderBackbone):
        raise ConfigError(f"{ckpt_path} has no decoder-only backbone, so it has no adapters to merge.")
    backbone.build()
    backbone.check_origin(checkpoint.origin)
    prefix = "model.backbone."
    weights = {key.removeprefix(prefix): value for key, value in checkpoint.weights.items() if key.startswith(prefix)}
    backbone.load_state_dict(weights)
    backbone.merge(Path(output))
    print(f"merged model: {output}")
