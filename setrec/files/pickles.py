"""Reads the pickles of the official release without trusting them.

An ordinary unpickler calls whatever the file names. This one allows a few names, and replaces each by a stand-in that only holds
data: numpy never rebuilds an array, torch never loads a storage freely, and every opcode that could make an object in another way
is refused. The result is made of int, str, list, tuple, set, dict, the values of numpy integers, numeric numpy arrays and
tensors.

Data also stays in proportion to its file. The number of operations is bounded, and what they make and how deep it is nested. Keys
and members of sets are texts and numbers of 64 bits, so no hash of them takes long or is shared by many.
"""

import io
import math
import os
import pickle
import struct
import tokenize
import zipfile
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
_BROKEN = (
    EOFError, struct.error, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError,
    SyntaxError, tokenize.TokenError,  # numpy, about the header of a .npy file
)  # fmt: skip
_MAKERS = "EMPTY_LIST EMPTY_DICT EMPTY_SET LIST DICT FROZENSET TUPLE TUPLE1 TUPLE2 TUPLE3 REDUCE"
MAX_OPERATIONS = 100_000_000  # one or two minutes
MAX_OBJECTS = 10_000_000  # of those that `_MAKERS` make
MAX_DEPTH = 16


class _RefusedError(Exception):
    """The pickle asks for something that data does not need."""


class _TooLargeError(Exception):
    """The pickle makes more than data does."""


class _DType:
    """Stands for numpy.dtype: holds its code ("i8", "O8") and byte order."""

    def __init__(self, code: str, *_: Any):
        self.code, self.order = str(code), "<"

    def set_state(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numeric(self) -> np.dtype[Any]:
        """Return the numpy type, which must be one of numbers."""
        if self.code[:1] not in "iufb":
            raise _RefusedError(f"a numpy array of type {self.code!r}")
        return np.dtype(self.code).newbyteorder(">" if self.order == ">" else "<")


class _Array:
    """Stands for a numpy array. `value` is its content: a numeric array, or what an object array holds."""

    value: Any = None

    def set_state(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        if dtype.code[:1] == "O":  # an array of Python objects; one of shape () holds a single object
            self.value = content[0] if shape == () else content
        else:
            self.value = np.frombuffer(content, dtype.numeric()).reshape(shape, order="F" if fortran else "C")


class _NumpyArrayClass:
    """Stands for the class numpy.ndarray where a pickle names it as an argument."""


def _scalar(dtype: _DType, content: bytes) -> Any:
    """Stands for numpy's scalar: the number as int, float or bool."""
    return np.frombuffer(content, dtype.numeric()).item()


def _storage(content: bytes) -> torch.Tensor:
    """Stands for torch.storage._load_from_bytes, which itself unpickles. Returns the numbers as a flat tensor."""
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if sum(part.file_size for part in archive.infolist()) > len(content):
                    raise _TooLargeError("numbers that are packed")
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _TooLargeError:
        raise
    except Exception as error:  # torch raises many types here; all mean that it refuses
        raise _RefusedError("something other than numbers inside a tensor") from error
    if not isinstance(loaded, torch.storage.TypedStorage):
        raise _RefusedError(f"a {type(loaded).__name__} where a tensor's numbers belong")
    return torch.tensor([], dtype=loaded.dtype).set_(loaded)  # (numbers,)


def _tensor(flat: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> torch.Tensor:
    """Stands for torch._utils._rebuild_tensor_v2. Refuses to read past the storage's end, where torch would enlarge it."""
    if any(number < 0 for number in (offset, *size, *stride)) or len(size) != len(stride):
        raise _RefusedError("a tensor of negative size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if (0 not in size and last >= flat.numel()) or math.prod(size) > flat.numel():
        raise _RefusedError("a tensor larger than its numbers")
    return flat.as_strided(size, stride, offset)


def _bytes(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, by which pickle protocols 0 to 2 write bytes."""
    if encoding != "latin1":
        raise _RefusedError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _hashable(value: Any) -> Any:
    """A key or a member of a set, which must not be a container."""
    if not isinstance(value, int | str | float | bytes | None):
        raise _RefusedError(f"a {type(value).__name__} as a key")
    return value


def _set(values: Any = ()) -> set[Any]:
    """Stands for set."""
    return set(map(_hashable, values))


def _frozenset(values: Any = ()) -> frozenset[Any]:
    """Stands for frozenset."""
    return frozenset(map(_hashable, values))


def _ordered_dict() -> OrderedDict[Any, Any]:
    """Stands for OrderedDict, which pickles make empty and then fill."""
    return OrderedDict()


_NUMPY = {
    (f"numpy.{core}.multiarray", name): stand_in
    for core in ("core", "_core")  # numpy 1 and numpy 2
    for name, stand_in in (("_reconstruct", lambda *_: _Array()), ("scalar", _scalar))
} | {("numpy", "ndarray"): _NumpyArrayClass, ("numpy", "dtype"): _DType}
_ALLOWED: dict[tuple[str, str], Any] = _NUMPY | {
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,  # written by Python 2 or protocol 2
    ("builtins", "frozenset"): _frozenset,
    ("__builtin__", "frozenset"): _frozenset,
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
}


def _refuse(unpickler: Any) -> None:
    raise _RefusedError("an operation that makes objects")


_PYTHON: Any = pickle._Unpickler  # not the one in C, whose opcodes cannot be limited


def _counted(run: Callable[[Any], None]) -> Callable[[Any], None]:
    """An operation that makes an object, counted."""

    def counted(unpickler: Any) -> None:
        unpickler.made += 1
        if unpickler.made > MAX_OBJECTS:
            raise _TooLargeError(f"more than {MAX_OBJECTS:,} objects")
        run(unpickler)

    return counted


def _of_64_bits(run: Callable[[Any], None]) -> Callable[[Any], None]:
    """An operation that reads an integer of any length, which must have 64 bits."""

    def checked(unpickler: Any) -> None:
        run(unpickler)
        if not -(1 << 63) <= unpickler.stack[-1] < 1 << 63:
            raise _RefusedError("a number of more than 64 bits")

    return checked


class RestrictedUnpickler(_PYTHON):  # type: ignore[misc]
    """Rebuilds data and nothing else. Refuses a dict that gets a key twice.

    The load_ methods replace those of Python's own unpickler, one for each opcode.

    Args:
        file: open binary file, at the start of the pickle.
    """

    stack: list[Any]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Any]] = {
        code: run if code in _CODES else _refuse for code, run in _PYTHON.dispatch.items()
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        start = file.tell()
        self.left = file.seek(0, os.SEEK_END) - start  # bytes that calls may still make: no more than the file holds
        file.seek(start)
        self.made = 0

    def load(self) -> Any:
        """Read the pickle: Python's own loop, with a count."""
        self._unframer = pickle._Unframer(self._file_read, self._file_readline)  # type: ignore[attr-defined]
        self.read, self.readinto, self.readline = self._unframer.read, self._unframer.readinto, self._unframer.readline
        self.metastack: list[Any] = []
        self.stack, self.proto = [], 0
        self.append = self.stack.append
        read, dispatch = self.read, self.dispatch
        try:
            for _ in range(MAX_OPERATIONS):
                dispatch[read(1)[0]](self)
        except pickle._Stop as stop:  # type: ignore[attr-defined]
            return stop.value
        raise _TooLargeError(f"more than {MAX_OPERATIONS:,} operations")

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name."""
        if (module, name) not in _ALLOWED:
            raise _RefusedError(f"{module}.{name}")
        return _ALLOWED[module, name]

    def load_reduce(self) -> None:
        """Call a stand-in, and nothing else."""
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not any(function is allowed for allowed in _ALLOWED.values()):
            raise _RefusedError(f"a call of {type(function).__name__}")
        result = function(*arguments)
        if isinstance(result, bytes | set | frozenset):
            self.left -= len(result)
        elif isinstance(result, torch.Tensor) and function is _storage:
            self.left -= result.nbytes
        if self.left < 0:
            raise _TooLargeError("the same data again and again")
        self.stack[-1] = result

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_additems(self) -> None:
        """Add members to a set."""
        items = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise _RefusedError(f"members for a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(map(_hashable, items))

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_frozenset(self) -> None:
        """Make a frozenset."""
        items = self.pop_mark()
        self.stack.append(_frozenset(items))

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def load_build(self) -> None:
        """Give a stand-in its content."""
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Array | _DType):
            target.set_state(state)
        elif not (isinstance(target, OrderedDict) and not state):
            raise _RefusedError(f"state for a {type(target).__name__}")

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitem(self) -> None:
        """Add an entry to a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._add([key], [value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        """Add entries to a dict."""
        items = self.pop_mark()
        self._add(items[::2], items[1::2])

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        """Make a dict of entries."""
        items = self.pop_mark()
        self.stack.append({})
        self._add(items[::2], items[1::2])

    dispatch[pickle.DICT[0]] = load_dict

    def _add(self, keys: list[Any], values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise _RefusedError(f"items for a {type(target).__name__}")
        for key, value in zip(keys, values, strict=True):
            key = _hashable(unboxed(key))
            if key in target:
                raise _TwiceError(key)
            target[key] = unboxed(value)

    for code in (getattr(pickle, name)[0] for name in _MAKERS.split()):
        dispatch[code] = _counted(dispatch[code])
    for code in (getattr(pickle, name)[0] for name in ("INT", "LONG", "LONG1", "LONG4")):
        dispatch[code] = _of_64_bits(dispatch[code])


class _TwiceError(Exception):
    """A dict gets a key twice. An ordinary unpickler would silently keep the last entry."""


def unboxed(value: Any) -> Any:
    """Return the content of an array stand-in, and anything else as it is."""
    return value.value if isinstance(value, _Array) else value


def _check_depth(value: Any) -> None:
    """Refuse what is nested too deep, or holds itself."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inside: dict[int, Any] = {}  # each container once, however often it is held
        for one in level:
            for child in one.values() if isinstance(one, dict) else [one.value] if isinstance(one, _Array) else one:
                if isinstance(child, list | tuple | dict | _Array):
                    inside[id(child)] = child
        level = list(inside.values())
        if not level:
            return
    raise _TooLargeError(f"data that is nested more than {MAX_DEPTH} deep")


def load_pickle(file: BinaryIO, name: str) -> Any:
    """Unpickle data, with `RestrictedUnpickler`.

    Args:
        file: open binary file, at the start of the pickle.
        name: the file's name, for messages.

    Raises:
        DataError: the pickle is truncated, asks for code, makes more than its size allows, or holds a dict key twice.
    """
    try:
        value = unboxed(RestrictedUnpickler(file).load())
        _check_depth([value])
        return value
    except _TwiceError as error:
        raise DataError(
            f"{name}: the entry of {repr(error.args[0])[:60]} is there twice; a user or an item may have one, so merge the two."
        ) from None
    except _RefusedError as error:
        raise DataError(
            f"{name} is refused: the pickle asks for {error}, which data does not need and which could run code; "
            "get the file from a source you trust, or save it as .npy or .safetensors."
        ) from None
    except _TooLargeError as error:
        raise DataError(
            f"{name} is refused: the pickle makes {error}, which data does not need and which could fill the memory; get the file "
            "from a source you trust, or save it as .npy or .safetensors."
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
        The object inside an object array of shape (), else the numeric array: memory-mapped, not to be written to.

    Raises:
        DataError: the file is missing, truncated, damaged or refused (see `load_pickle`).
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(file)
            if dtype.hasobject:
                return load_pickle(file, path.name)
            if math.prod(shape) * dtype.itemsize > path.stat().st_size - file.tell():
                raise ValueError("it is shorter than its header says")
            if 0 in shape:  # nothing cannot be mapped
                return np.empty(shape, dtype)
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; download the whole release into {path.parent}.") from None
    except DataError:
        raise
    except (*_BROKEN, OSError) as error:
        raise DataError(f"{path.name} is not a readable .npy file ({error}); download it again.") from None
