"""Memory-mapped data: vectors and histories stay in their files, as float32 or float16, and the numbers are the same."""

import dataclasses
import os

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open

from setrec.backbones import T5Backbone
from setrec.data import Catalogue, catalogue, prepare
from setrec.data.batches import TrainRows
from setrec.data.catalogue import HISTORIES, TEXT, USERS, Histories
from setrec.errors import DataError
from setrec.files.ragged import Ragged
from setrec.layers.grounding import part_scores
from setrec.model import SETRec
from setrec.recipe import Recipe
from tests.raw_data import official


def prepared(tiny_release, root, **changed):
    folder = root / "tiny"
    prepare.prepare("tiny", folder, official(tiny_release, **changed), tiny_release)
    return folder


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor is that of a file."""
    address = tensor.data_ptr()
    with open("/proc/self/maps") as maps:
        for line in maps:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            if begin <= address < end:
                return line.rstrip().endswith(".safetensors")
    return False


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux only")
def test_vectors_and_histories_stay_in_their_files_up_to_the_batch(tiny_release, tmp_path) -> None:
    folder = prepared(tiny_release, tmp_path)
    items, users = Catalogue.load(folder), Histories.load(folder)
    assert items.text is not None
    assert is_mapped(items.text)
    assert is_mapped(items.cf[0])
    assert is_mapped(torch.from_numpy(users.train.items))
    assert TrainRows(users.train, 50).train.items is users.train.items
    cold = ~items.present[0]  # already zero, so "zero" changes nothing
    zero = dataclasses.replace(items, cf=(items.cf[0] * ~cold[:, None],))
    for data, missing in ((items, "as_is"), (zero, "zero")):
        model = SETRec(data, T5Backbone(shape="nano"), Recipe(missing_cf=missing, sampled=4))
        assert model.text.data_ptr() == items.text.data_ptr()
        assert model.cf[0].data_ptr() == data.cf[0].data_ptr()
    if cold.any():
        other = dataclasses.replace(items, cf=(torch.ones_like(items.cf[0]),))
        changed = SETRec(other, T5Backbone(shape="nano"), Recipe(missing_cf="zero"))
        assert changed.cf[0][cold].eq(0).all()


def test_mapped_histories_are_those_of_the_table(tiny_release, tmp_path) -> None:
    folder = prepared(tiny_release, tmp_path)
    users = Histories.load(folder)
    table = pl.read_parquet(folder / USERS)
    for split in ("train", "validation", "test"):
        rows = Ragged.from_series(table[split])
        assert np.array_equal(rows.items, getattr(users, split).items)
        assert np.array_equal(rows.offsets, getattr(users, split).offsets)
    (folder / HISTORIES).unlink()  # as version 0.2.0 left it
    before = Histories.load(folder)
    assert np.array_equal(before.test.items, users.test.items)
    assert before.ids == users.ids


def test_a_catalogue_that_did_not_change_is_known_without_reading_its_vectors(
    tiny_release, tmp_path, monkeypatch
) -> None:
    folder = prepared(tiny_release, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "identify", lambda *_: pytest.fail("read"))
        known = Catalogue.load(folder).identity
    os.utime(folder / TEXT, (1, 1))  # another time of change: the content decides
    assert Catalogue.load(folder).identity == known
    content = bytearray((folder / TEXT).read_bytes())
    content[-1] ^= 1
    (folder / TEXT).write_bytes(content)
    changed = Catalogue.load(folder).identity
    assert changed is not None
    assert known is not None
    assert changed.fingerprint != known.fingerprint


def test_float16_halves_the_files_and_computes_in_float32(tiny_release, tmp_path) -> None:
    single = Catalogue.load(prepared(tiny_release, tmp_path / "a"))
    half = Catalogue.load(prepared(tiny_release, tmp_path / "b", vector_dtype="float16"))
    assert half.text is not None
    assert half.text.dtype == half.cf[0].dtype == torch.float16
    with safe_open(tmp_path / "b" / "tiny" / TEXT, framework="pt") as file:
        assert file.get_tensor("vectors").dtype == torch.float16
    assert half.fingerprint != single.fingerprint
    users = Histories.load(tmp_path / "b" / "tiny")
    rows = TrainRows(users.train, 20)
    batch = rows[np.arange(8)]
    recipes = [
        Recipe(n_sem=2, bottleneck=8, trunk=(12,)),
        Recipe(n_sem=2, bottleneck=8, trunk=(12,), objective="score", memory=True, sampled=10, negatives="warm"),
        Recipe(n_sem=2, bottleneck=8, trunk=(12,), objective="score", memory=True, missing_cf="zero"),
    ]
    for recipe in recipes:
        found = []
        for data in (single, half):
            torch.manual_seed(0)
            model = SETRec(data, T5Backbone(shape="nano"), recipe).eval()
            torch.manual_seed(1)  # of the sample
            sums = model.losses(batch)
            (sums.ranking + sums.reconstruction).backward()
            with torch.no_grad():
                index = model.index()
                user = model.user_vectors(batch, index)
                assert index.cf.dtype == index.sem.dtype == torch.float32
                found.append((sums.ranking.detach(), *part_scores(user, index).values()))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * float(one.abs().max()))


def test_the_type_of_the_vectors_is_an_option_of_the_data(tiny_release, tmp_path) -> None:
    folder = prepared(tiny_release, tmp_path)
    assert not prepare.prepare("tiny", folder, official(tiny_release), tiny_release)
    assert prepare.prepare("tiny", folder, official(tiny_release, vector_dtype="float16"), tiny_release)
    vectors = np.load(tiny_release / "text.npy")
    vectors[3] = 1e5
    np.save(tiny_release / "text.npy", vectors)
    with pytest.raises(DataError, match=r"item .* holds a number above 65,504, which float16 cannot store; use"):
        prepare.prepare("tiny", folder, official(tiny_release, vector_dtype="float16"), tiny_release)
