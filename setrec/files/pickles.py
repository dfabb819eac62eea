"""Reading the pickles of the official release without trusting them.

An unpickler calls whatever its input names. This one knows a handful of names, and answers each with a stand-in of its
own that only holds data: numpy is never asked to rebuild an array, torch never to load a storage freely, and every
opcode that could make an object in another way is refused. What comes out is int, str, list, tuple, set, dict, numpy
integers' values, numeric numpy arrays, or one float tensor.
"""

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch

from setrec.errors import DataError

_SAFE_OPCODES = """
    MARK STOP POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS
    EMPTY_SET ADDITEMS FROZENSET GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE PROTO FRAME
    GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_CODES = {getattr(pickle, name)[0] for name in _SAFE_OPCODES.split()}
_BROKEN = (EOFError, struct.error, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError)


class _RefusedError(Exception):
    """The pickle asks for something that data does not need."""


class _DType:
    """Stands for numpy.dtype: remembers the code ("i8", "O8") and nothing else."""

    def __init__(self, code: str, *_: Any):
        self.code, self.order = str(code), "<"

    def set_state(self, state: tuple) -> None:
        self.order = state[1]

    def real(self) -> np.dtype:
        if self.code[:1] not in "iufb":
            raise _RefusedError(f"a numpy array of type {self.code!r}")
        return np.dtype(self.code).newbyteorder(">" if self.order == ">" else "<")


class _Array:
    """Stands for a numpy array that is being rebuilt; `value` is what it turned out to hold."""

    value: Any = None

    def set_state(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        if dtype.code[:1] == "O":  # a box around Python objects; shape () holds one
            self.value = content[0] if shape == () else content
        else:
            self.value = np.frombuffer(content, dtype.real()).reshape(shape, order="F" if fortran else "C")


class _NumpyArrayClass:
    """Stands for the class numpy.ndarray where a pickle names it as an argument."""


def _scalar(dtype: _DType, content: bytes) -> int | float:
    return np.frombuffer(content, dtype.real()).item()


def _storage(content: bytes) -> torch.Tensor:
    """torch.storage._load_from_bytes, which itself unpickles, replaced by a weights-only load: a flat tensor."""
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here, and each of them means no
        raise _RefusedError("something other than numbers inside a tensor") from error
    if not isinstance(loaded, torch.storage.TypedStorage):
        raise _RefusedError(f"a {type(loaded).__name__} where a tensor's numbers belong")
    return torch.tensor([], dtype=loaded.dtype).set_(loaded)  # (numbers,)


def _tensor(flat: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    """torch._utils._rebuild_tensor_v2, refusing to look past the storage's end (torch would enlarge it instead)."""
    if any(number < 0 for number in (offset, *size, *stride)) or len(size) != len(stride):
        raise _RefusedError("a tensor of negative size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= flat.numel():
        raise _RefusedError("a tensor larger than its numbers")
    return flat.as_strided(size, stride, offset).clone()


def _bytes(text: str, encoding: str) -> bytes:
    """How pickle protocols 0 to 2 spell bytes."""
    if encoding != "latin1":
        raise _RefusedError(f"encoding {encoding!r}")
    return text.encode("latin1")


_NUMPY = {
    (f"numpy.{core}.multiarray", name): stand_in
    for core in ("core", "_core")  # numpy 1 and numpy 2
    for name, stand_in in (("_reconstruct", lambda *_: _Array()), ("scalar", _scalar))
} | {("numpy", "ndarray"): _NumpyArrayClass, ("numpy", "dtype"): _DType}
_ALLOWED: dict[tuple[str, str], Any] = _NUMPY | {
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # written by Python 2 or protocol 2
    ("builtins", "frozenset"): frozenset,
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
}


def _refuse(unpickler: Any) -> None:
    raise _RefusedError("an operation that makes objects")


_PYTHON: Any = pickle._Unpickler  # type: ignore[attr-defined]  # not the C one: its opcodes cannot be limited


class RestrictedUnpickler(_PYTHON):  # type: ignore[valid-type, misc]
    """Rebuilds data and nothing else; refuses a dict whose stream holds a key twice.

    Args:
        file: open binary file, standing at the start of the pickle.
    """

    stack: list[Any]
    pop_mark: Callable[[], list]
    dispatch: ClassVar[dict] = {code: run if code in _CODES else _refuse for code, run in _PYTHON.dispatch.items()}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _RefusedError(f"{module}.{name}")
        return _ALLOWED[module, name]

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not any(function is allowed for allowed in _ALLOWED.values()):
            raise _RefusedError(f"a call of {type(function).__name__}")
        self.stack[-1] = function(*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Array | _DType):
            target.set_state(state)
        elif not (isinstance(target, OrderedDict) and not state):
            raise _RefusedError(f"state for a {type(target).__name__}")

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._add([key], [value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._add(items[::2], items[1::2])

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._add(items[::2], items[1::2])

    dispatch[pickle.DICT[0]] = load_dict

    def _add(self, keys: list, values: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise _RefusedError(f"items for a {type(target).__name__}")
        for key, value in zip(keys, values, strict=True):
            key = unboxed(key)
            if key in target:
                raise _TwiceError(key)
            target[key] = unboxed(value)


class _TwiceError(Exception):
    """A dict's stream holds a key twice; a plain unpickler would silently keep the last."""


def unboxed(value: Any) -> Any:
    """What an array stand-in holds; anything else as it is."""
    return value.value if isinstance(value, _Array) else value


def load_pickle(file: BinaryIO, name: str) -> Any:
    """Unpickle data, restricted.

    Args:
        file: open binary file, standing at the start of the pickle.
        name: the file's name for messages.

    Raises:
        DataError: the pickle is truncated, asks for code, or holds a dict key twice.
    """
    try:
        return unboxed(RestrictedUnpickler(file).load())
    except _TwiceError as error:
        raise DataError(
            f"{name}: user {error.args[0]!r} is there twice; each user may have one list in a split, so merge the two."
        ) from None
    except _RefusedError as error:
        raise DataError(
            f"{name} is refused: the pickle asks for {error}, which data does not need and which could run code; "
            "get the file from a source you trust, or save it as .npy or .safetensors."
        ) from None
    except pickle.UnpicklingError as error:
        raise DataError(f"{name} is not a readable pickle ({error}); download it again.") from None
    except _BROKEN as error:
        raise DataError(f"{name} is truncated or damaged ({type(error).__name__}); download it again.") from None


def load_object_npy(path: Path) -> Any:
    """Read a .npy file that may hold a Python object, as numpy.save writes a dict or a set.

    Args:
        path: the file.

    Returns:
        For a 0-d object array what is inside it, otherwise the numeric array.

    Raises:
        DataError: missing, truncated, damaged or refused (see `load_pickle`).
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            _, _, dtype = read_header(file)
            if dtype.hasobject:
                return load_pickle(file, path.name)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; download the whole release into {path.parent}.") from None
    except DataError:
        raise
    except (*_BROKEN, OSError) as error:
        raise DataError(f"{path.name} is not a readable .npy file ({error}); download it again.") from None
