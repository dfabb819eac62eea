"""merge: the adapters of a checkpoint added into their language model, as a plain Hugging Face folder."""

from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from setrec.backbones import Backbone, DecoderBackbone
from setrec.errors import ConfigError


@rank_zero_only
def merge(ckpt_path: str, output: str) -> None:
    """Write the language model of a checkpoint, LoRA merged, as a plain model folder.

    Args:
        ckpt_path: A checkpoint of a run with a pretrained DecoderBackbone.
        output: The folder to make; it must not exist. `--model.backbone.pretrained FOLDER` reads it.

    Raises:
        ConfigError: the checkpoint has another backbone, or the folder exists.
    """
    checkpoint = torch.load(ckpt_path, weights_only=True, map_location="cpu")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Backbone, "backbone")
    given = parser.parse_object({"backbone": checkpoint["hyper_parameters"].get("backbone")})
    backbone = parser.instantiate_classes(given).backbone
    if not isinstance(backbone, DecoderBackbone):
        raise ConfigError(f"{ckpt_path} has no decoder-only backbone: there are no adapters to merge.")
    backbone.build()
    backbone.check_origin(checkpoint.get("backbone", {}))
    prefix = "model.backbone."
    weights = {
        key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)
    }
    backbone.load_state_dict(weights)
    backbone.merge(Path(output))
    print(f"merged model: {output}")
