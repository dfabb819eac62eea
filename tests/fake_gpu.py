"""A device that isn't there: tensors that compute on the CPU but refuse every mixture with CPU tensors, as a GPU does.

`torch.device("fakegpu")` works in `to`, in factories and in `with torch.device(...)` while `FakeGPU()` is entered. Numbers are
real, so whatever reads them (`tolist`, `if`, `nonzero`) works too. A 0-dim CPU tensor may meet a tensor of any size, as on a GPU.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("fakegpu")
torch.fakegpu.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # type: ignore[attr-defined]
_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # autocast changes nothing here
DEVICE = torch.device("fakegpu:0")
MOVES = {"aten::_to_copy", "aten::copy_", "aten::is_same_size", "aten::equal"}  # may see both devices
INDEX = {"aten::index", "aten::index_put_", "aten::index_put"}  # a GPU takes indices on the CPU


class OnFakeGPU(torch.Tensor):
    """A tensor that says it is on the fake GPU; `raw` has the numbers."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "OnFakeGPU":
        made: OnFakeGPU = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.size(), raw.stride(), raw.storage_offset(), dtype=raw.dtype, device=DEVICE
        )
        made.raw = raw
        return made

    def tolist(self) -> Any:
        return self.raw.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("a tensor of the fake GPU is no NumPy array: call cpu() first.")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """`torch.tensor(numbers, device="fakegpu")`: torch makes it where no dispatch mode sees it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == "fakegpu":
            if isinstance(args[0], OnFakeGPU):
                return args[0]
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


class FakeGPU(TorchDispatchMode):
    """While entered, factories make tensors of the fake GPU where they are asked to."""

    def __enter__(self) -> "FakeGPU":
        self._numbers = _FromNumbers()
        self._numbers.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._numbers.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU; its results are where its arguments are, or where `device` says."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    here = [t for t in tensors if isinstance(t, OnFakeGPU)]
    device = kwargs.get("device")
    target = bool(here) if device is None else torch.device(device).type == "fakegpu"
    name = func._schema.name
    if here and name not in MOVES | INDEX:
        others = [t for t in tensors if not isinstance(t, OnFakeGPU) and t.dim()]
        if others:
            raise RuntimeError(f"{name}: a tensor of the fake GPU meets one of the CPU, {tuple(others[0].shape)}.")
    if name == "aten::copy_":
        target = isinstance(args[0], OnFakeGPU)
    raw_args, raw_kwargs = tree_map(lambda t: t.raw if isinstance(t, OnFakeGPU) else t, (args, kwargs))
    if device is not None:
        raw_kwargs["device"] = torch.device("cpu")
    out = func(*raw_args, **raw_kwargs)
    if not target:
        return out
    wrapped = tree_map(lambda t: OnFakeGPU(t) if isinstance(t, torch.Tensor) else t, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if here else wrapped
