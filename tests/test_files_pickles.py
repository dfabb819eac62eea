"""Small pickles, without a forbidden name, that would take all memory or all time: refused with one sentence, at once."""

import io
import pickle
import struct
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from setrec.errors import DataError
from setrec.files import pickles
from setrec.files.pickles import load_object_npy, load_pickle

ENCODE = b"c_codecs\nencode\n"  # by which protocol 2 writes bytes


def chain(levels: int, width: int) -> bytes:
    """[[..], [..]] of a few bytes a level: each list holds the one below it several times."""
    content = b"]q\x000"  # memo 0: an empty list; off the stack
    for level in range(levels):
        content += b"](" + b"j" + struct.pack("<I", level) * 1
        content += (b"j" + struct.pack("<I", level)) * (width - 1) + b"er" + struct.pack("<I", level + 1) + b"0"
    return content + b"j" + struct.pack("<I", levels)


def storage(content: bytes) -> bytes:
    """A tensor's numbers, as torch pickles them."""
    return b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(content)) + content + b"\x85R"


def numbers(n: int) -> torch.TypedStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the authors' pickles hold is deprecated
        return torch.zeros(n).storage()


def packed_storage() -> bytes:
    """Zeros in a zip archive that is compressed, which torch itself never writes."""
    whole, small = io.BytesIO(), io.BytesIO()
    torch.save(numbers(1 << 20), whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    return storage(small.getvalue())


def small_storage() -> bytes:
    old = io.BytesIO()
    torch.save(numbers(4), old, _use_new_zipfile_serialization=False)
    return storage(old.getvalue())


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n("
BOMBS = {
    "nested tuples": (b")" + b"\x85" * 300_000, "nested more than 16 deep"),
    "nested lists": (b"(" * 300_000 + b"l" * 300_000, "nested more than 16 deep"),
    "a list that doubles": (chain(60, 2), "nested more than 16 deep"),
    "a list that holds itself": (b"]q\x00h\x00a", "nested more than 16 deep"),
    "a tuple as a key": (b"}" + b")\x85" + b"K\x01s", "a tuple as a key"),
    "a tuple in a set": (b"\x8f(" + b")\x85" + b"\x90", "a tuple as a key"),
    "a tuple in a frozenset": (b"()\x85\x91", "a tuple as a key"),
    "a set of tuples": (b"cbuiltins\nset\n](" + b")\x85" + b"e\x85R", "a tuple as a key"),
    "keys of one hash": (b"}\x8a\x14" + b"\xff" * 19 + b"\x01K\x01s", "more than 64 bits"),
    "a number of a megabyte": (b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20), "more than 64 bits"),
    "a text that is not there": (b"\x8d" + struct.pack("<Q", 1 << 60) + b"x", "truncated or damaged"),
    "bytes that are not there": (b"\x8e" + struct.pack("<Q", 1 << 40) + b"x", "truncated or damaged"),
    "a frame that is not there": (b"\x95" + struct.pack("<Q", 1 << 50), "not a readable pickle|damaged"),
    "the same bytes again and again": (
        ENCODE + b"q\x00X" + struct.pack("<I", 1000) + b"x" * 1000 + b"q\x01X\x06\x00\x00\x00latin1\x86q\x02R"
        + (b"h\x00h\x02R") * 1000, "the same data again and again",
    ),
    "the same set again and again": (
        b"](" + b"".join(b"M" + struct.pack("<H", i) for i in range(3000)) + b"e\x85q\x000"
        + b"cbuiltins\nset\nq\x010" + b"h\x01h\x00R0" * 1000 + b"N", "the same data again and again",
    ),
    "a tensor of one number": (
        TENSOR + small_storage() + b"K\x00" + b"J\xff\xff\xff\x7f\x85" + b"K\x00\x85" + b"\x89}tR", "larger than its numbers",
    ),
    "a packed tensor": (packed_storage(), "numbers that are packed"),
    "an OrderedDict of something": (b"ccollections\nOrderedDict\n](" + b"K\x01K\x02\x86e\x85R", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs(kind: str, tmp_path: Path) -> None:
    content, said = BOMBS[kind]
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x04" + content + b".")
    start = time.perf_counter()
    with path.open("rb") as file, pytest.raises(DataError, match=said) as caught:
        load_pickle(file, path.name)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 3


def test_operations_and_objects_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    many = pickle.dumps([[] for _ in range(2000)], 4)
    assert len(load_pickle(io.BytesIO(many), "x")) == 2000
    monkeypatch.setattr(pickles, "MAX_OBJECTS", 1999)
    with pytest.raises(DataError, match="more than 1,999 objects"):
        load_pickle(io.BytesIO(many), "x")
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 500)
    with pytest.raises(DataError, match="more than 500 operations"):
        load_pickle(io.BytesIO(pickle.dumps([[] for _ in range(2000)], 4)), "x")


@pytest.mark.parametrize("protocol", range(6))
def test_honest_data_comes_back(protocol: int) -> None:
    shared = [1, 2, 3]
    data = {
        1: shared, 2: shared, 3: (4, 2**62, -(2**63)), "é": {5, 6}, 4: frozenset({7}), 5: [[["deep"]]], 6: None, 7: 1.5,
        8: [True, False], 9: b"bytes" * 100,
    }  # fmt: skip
    if protocol in (0, 1):
        del data[4]  # they make a frozenset in a way that is refused, as before
    assert load_pickle(io.BytesIO(pickle.dumps(data, protocol)), "x") == data


def test_a_matrix_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((4, 4), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(4, 4), }      ", b"(4, 4000000000)"))
    with pytest.raises(DataError, match="shorter than its header says|not a readable"):
        load_object_npy(path)
