"""The user tower as a program of its own: item ids of histories -> what the item table is multiplied with.

It is all of a model that answers need, in one graph of array operations that torch.export and ONNX can hold: item tokens,
backbone, projection, memories. The vectors of the items are constants in it.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from setrec.backbones.plain import plain_attention
from setrec.errors import ConfigError, ModelError
from setrec.layers.grounding import Index
from setrec.model import SETRec
from setrec.schemas import PAD, Batch, mask_of

NEEDED = ("onnx", "onnxruntime", "onnxscript")  # the packages of the extra `export`
HISTORY, USER = "history", "user"  # names of the program's input and output
CLOSE = 1e-3  # largest difference from the model, as a share of the largest number


class UserTower(nn.Module):
    """Histories -> user vectors; in evaluation mode.

    Args:
        model: the layers, over a catalogue.
        index: the model's, of the same catalogue.
        constants: columns of ones at the end, one where the item table has a column that is the same for every user.
    """

    def __init__(self, model: SETRec, index: Index, constants: int) -> None:
        super().__init__()
        self.model, self.index, self.constants = model, index, constants
        self.eval()

    def forward(self, history: Tensor) -> Tensor:
        """History (B, L) int64, item ids, oldest first, padded with -1 at the end -> (B, W) float32."""
        model, n_batch = self.model, history.shape[0]
        real, items = mask_of(history), history.clamp(min=0)  # (B, L), (B, L)
        prefix = real.sum(dim=1, keepdim=True)  # (B, 1)
        tokens = model.tokens_of(items, self.index)  # (B, L, K, D)
        outputs = model.backbone(tokens, real, prefix, model.queries)[:, 0]  # (B, K, D)
        everyone = torch.arange(n_batch, device=history.device)  # (B,)
        place = torch.arange(history.numel(), device=history.device).view(history.shape)  # (B, L)
        batch = Batch(  # `unique` holds every item as often as it occurs: which are distinct is no matter here
            everyone, history, prefix, prefix, history, everyone, items.flatten(), place, real.flatten().float()
        )
        user = model.user_vectors_of(outputs, batch)
        ones = user.cf.new_ones(n_batch, self.constants)  # (B, 0 or more)
        return torch.cat([*user.parts.values(), ones], dim=1).float()  # (B, W)


def torch_program(tower: UserTower) -> torch.export.ExportedProgram:
    """The tower as a program for any number of histories of any length from 1 on.

    Raises:
        ConfigError: the backbone can't be written as one graph.
    """
    sizes = {HISTORY: {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    try:
        with torch.no_grad(), _quiet(), plain_attention(tower.model.backbone):
            return torch.export.export(
                tower,
                (_examples(tower, 3, 5),),
                dynamic_shapes=sizes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,  # it can't prove that T * 32 <= T * 64
            )
    except Exception as error:  # a backbone of anyone's may hold anything
        kind = type(tower.model.backbone).__name__
        raise ConfigError(f"{kind} can't be exported: torch.export says: {_first_line(error)}") from error


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write the program as an ONNX file; weights above 2 GB stand in a file beside it.

    Raises:
        ConfigError: ONNX can't express it.
    """
    try:
        with torch.no_grad(), _quiet():
            found = torch.onnx.export(
                program, (), dynamo=True, input_names=[HISTORY], output_names=[USER], verbose=False
            )
    except Exception as error:  # torch and onnxscript have many
        raise ConfigError(f"ONNX can't express this backbone ({_first_line(error)})") from error
    assert found is not None
    found.save(path)


def run_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The program in an ONNX file, by onnxruntime: (B, L) int64 -> (B, W) float32.

    Raises:
        ConfigError: onnxruntime can't run it.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path)
    except Exception as error:  # onnxruntime's are not of one family
        raise ConfigError(f"onnxruntime can't run this backbone ({_first_line(error)})") from error

    def call(history: np.ndarray) -> np.ndarray:
        found: list[np.ndarray] = session.run(None, {HISTORY: history})
        return found[0]

    return call


def run_torch(program: torch.export.ExportedProgram) -> Callable[[np.ndarray], np.ndarray]:
    """The program, by torch: (B, L) int64 -> (B, W) float32."""
    module = program.module()

    def call(history: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = module(torch.from_numpy(history)).numpy()
        return found

    return call


def largest_difference(tower: UserTower, call: Callable[[np.ndarray], np.ndarray], max_history: int) -> float:
    """The largest difference between the program and the model, as a share of the largest number; several shapes are tried.

    Raises:
        ModelError: it is more than rounding.
    """
    found = []
    for n_batch, length in ((1, 1), (2, 3), (1, max_history), (5, max_history)):
        history = _examples(tower, n_batch, length)  # (B, L)
        with torch.no_grad():
            meant = tower(history).numpy()  # (B, W)
        found.append(np.abs(call(history.numpy()) - meant).max() / np.abs(meant).max())
    most = float(np.max(found))  # NaN stays
    if not most <= CLOSE:
        raise ModelError(f"the exported program differs from the model by {most:.1e}: nothing was written.")
    return most


def check_packages() -> None:
    """Check that ONNX files can be written and run.

    Raises:
        ConfigError: a package is missing.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f'an ONNX file needs the package {missing[0]}, which is not installed: pip install "setrec[export]", or give '
            "--formats [torch]."
        )


def _examples(tower: UserTower, n_batch: int, length: int) -> Tensor:
    """Histories of items by chance, the first as long as the row, the last empty where there are several; (B, L) int64."""
    generator = torch.Generator().manual_seed(0)
    history = torch.randint(len(tower.index.cf), (n_batch, length), generator=generator)  # (B, L)
    last = length - torch.arange(n_batch) * length // max(n_batch - 1, 1)  # (B,)
    return history.masked_fill(torch.arange(length) >= last[:, None], PAD)  # (B, L)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporters say of torchvision, of torch's own classes, and of what they do not fold."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before: list[Any] = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`?isinstance.treespec, LeafSpec", FutureWarning)
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
