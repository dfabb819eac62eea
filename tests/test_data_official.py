"""The official release: what is read from it, and what is refused."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from setrec.data import Catalogue, Histories, OfficialRelease
from setrec.errors import DataError
from setrec.files.pickles import load_object_npy, load_pickle
from setrec.files.vectorfile import read_vectors
from tests.conftest import TINY_COLD, TINY_ITEMS, TINY_USERS, save_object


class Hostile:
    """Unpickled freely, this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def unpickled_freely(path: Path):
    return np.load(path, allow_pickle=True).item()


def test_reads_what_numpy_reads(tiny_release):
    log = OfficialRelease().read(tiny_release)
    for name, split in (("training", log.train), ("validation", log.validation), ("testing", log.test)):
        expected = unpickled_freely(tiny_release / f"{name}_dict.npy")
        assert [split.row(u).tolist() for u in range(len(split))] == [expected[u] for u in range(TINY_USERS)]
    assert log.user_ids == [str(u) for u in range(TINY_USERS)]
    assert log.items["id"].to_list() == [f"A{i:03d}" for i in range(TINY_ITEMS)]
    assert log.items["text"][5] == "paper crane 5. toy"


def test_tensor_pickle_equals_free_unpickling(tiny_release):
    path = tiny_release / "SASRec_item_embed.pkl"
    with path.open("rb") as file:
        expected = pickle.load(file)
    assert torch.equal(torch.from_numpy(read_vectors(path, ["x"] * TINY_ITEMS)), expected)


def test_strided_tensor_and_numpy_array_pickles(tmp_path):
    for value in (
        torch.arange(12.0).reshape(3, 4).T[1:],
        np.arange(12, dtype=">i4").reshape(3, 4),
        np.eye(3, order="F"),
    ):
        with (tmp_path / "x.pkl").open("wb") as file:
            pickle.dump(value, file)
        with (tmp_path / "x.pkl").open("rb") as file:
            read = load_pickle(file, "x.pkl")
        assert np.array_equal(np.asarray(read), np.asarray(value))


def test_numpy_integers_in_the_dicts(tiny_release):
    training = unpickled_freely(tiny_release / "training_dict.npy")
    expected = OfficialRelease().read(tiny_release)
    save_object(
        tiny_release / "training_dict.npy", {np.int64(u): [np.int32(i) for i in r] for u, r in training.items()}
    )
    again = OfficialRelease().read(tiny_release)
    assert np.array_equal(expected.train.items, again.train.items)
    save_object(tiny_release / "training_dict.npy", {u: np.array(r) for u, r in training.items()})
    assert np.array_equal(expected.train.items, OfficialRelease().read(tiny_release).train.items)


def test_missing_lists_change_nothing(tiny_release):
    expected = OfficialRelease().read(tiny_release)
    for name in ("warm_item", "cold_item", "testing_warm_dict", "testing_cold_dict"):
        (tiny_release / f"{name}.npy").unlink()
    again = OfficialRelease().read(tiny_release)
    assert np.array_equal(expected.test.items, again.test.items)
    assert len(set(range(TINY_ITEMS)) - set(again.train.items.tolist())) == TINY_COLD


def test_without_items_file_ids_are_numbers(tiny_release):
    (tiny_release / "items.jsonl").unlink()
    log = OfficialRelease().read(tiny_release)
    assert log.items["id"].to_list() == [str(i) for i in range(TINY_ITEMS)]
    assert set(log.items["text"]) == {""}


@pytest.mark.parametrize("where", ["dict", "inside", "pkl"])
def test_hostile_pickle_is_refused(tiny_release, tmp_path, where):
    proof = tmp_path / "proof"
    if where == "pkl":
        with (tiny_release / "SASRec_item_embed.pkl").open("wb") as file:
            pickle.dump(Hostile(proof), file)
    else:
        save_object(tiny_release / "training_dict.npy", Hostile(proof) if where == "dict" else {0: [Hostile(proof)]})
    with pytest.raises(DataError, match=r"refused.*system"):
        OfficialRelease().read(tiny_release)
    assert not proof.exists()


def test_hostile_pickle_inside_a_tensor_pickle_is_refused(tiny_release, tmp_path):
    proof = tmp_path / "proof"

    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (self.content,)

    for protocol in (2, 4):
        Nested.content = pickle.dumps(Hostile(proof), protocol)
        with (tiny_release / "SASRec_item_embed.pkl").open("wb") as file:
            pickle.dump(Nested(), file)
        with pytest.raises(DataError, match="refused"):
            OfficialRelease().read(tiny_release)
        assert not proof.exists()
    with pytest.raises(Exception, match="."), (tiny_release / "SASRec_item_embed.pkl").open("rb") as file:
        pickle.load(file)  # unpickled freely the same file runs the command, so the test can fail
    assert proof.exists()


def test_a_tensor_may_not_reach_past_its_numbers(tmp_path):
    path = tmp_path / "x.pkl"
    tensor = torch.zeros(3, 4)
    content = pickle.dumps(tensor, 2).replace(b"K\x03K\x04\x86", b"K\xffK\xff\x86")
    path.write_bytes(content)
    with path.open("rb") as file, pytest.raises(DataError, match="larger than its numbers"):
        load_pickle(file, path.name)


@pytest.mark.parametrize(
    "operation", [b"(I1\ncbuiltins\neval\no.", b"(I1\nibuiltins\neval\n.", b"Ppid\n.", b"\x82\x01."]
)
def test_other_ways_to_make_objects_are_refused(tmp_path, operation):
    path = tmp_path / "x.pkl"
    path.write_bytes(operation)
    with path.open("rb") as file, pytest.raises(DataError, match="refused"):
        load_pickle(file, path.name)


def test_state_cannot_be_put_on_an_allowed_name(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"cnumpy\ndtype\n(dVreal\nI1\nsb.")
    with path.open("rb") as file, pytest.raises(DataError, match="refused"):
        load_pickle(file, path.name)


def test_a_user_twice_in_a_split(tiny_release):
    path = tiny_release / "training_dict.npy"
    content = path.read_bytes()
    # {58: [...], 59: [...]}: rewrite the key 59 of the stream into 58
    training = unpickled_freely(path)
    key, row = b"K\x3b", pickle.dumps(training[59], 3)
    assert content.count(key + b"]") == 1, row
    path.write_bytes(content.replace(key + b"]", b"K\x3a]"))
    assert len(unpickled_freely(path)) == TINY_USERS - 1  # numpy would drop one of the two without a word
    with pytest.raises(DataError, match=r"training_dict.npy: the entry of 58 is there twice"):
        OfficialRelease().read(tiny_release)


def test_truncated_files(tiny_release):
    for name in ("training_dict.npy", "SASRec_item_embed.pkl", "warm_item.npy"):
        whole = (tiny_release / name).read_bytes()
        for keep in (0, 40, 150, len(whole) // 2, len(whole) - 1):
            (tiny_release / name).write_bytes(whole[:keep])
            with pytest.raises(DataError, match=name):
                OfficialRelease().read(tiny_release)
        (tiny_release / name).write_bytes(whole)
    OfficialRelease().read(tiny_release)


@pytest.mark.parametrize("item", [-1, 40, 2**40])
def test_item_id_out_of_range(tiny_release, item):
    testing = unpickled_freely(tiny_release / "testing_dict.npy")
    testing[7].append(item)
    save_object(tiny_release / "testing_dict.npy", testing)
    with pytest.raises(DataError, match=rf"testing_dict.npy: user 7 has item id {item}, outside 0..39"):
        OfficialRelease().read(tiny_release)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a dict"),
        ({"7": [1]}, "user '7' is not a whole number"),
        ({-1: [1]}, "user -1 is not a whole number"),
        ({0: 3}, "user 0 has a int, not a list"),
        ({0: [1.5]}, "user 0 has item 1.5"),
        ({0: [True]}, "user 0 has item True"),
    ],
)
def test_wrong_dicts(tiny_release, content, message):
    save_object(tiny_release / "validation_dict.npy", content)
    with pytest.raises(DataError, match=message):
        OfficialRelease().read(tiny_release)


def test_missing_dict(tiny_release):
    (tiny_release / "testing_dict.npy").unlink()
    with pytest.raises(DataError, match=r"testing_dict.npy does not exist"):
        OfficialRelease().read(tiny_release)


def test_lists_that_disagree(tiny_release):
    warm = unpickled_freely(tiny_release / "warm_item.npy")
    save_object(tiny_release / "warm_item.npy", warm - {3})
    with pytest.raises(DataError, match=r"warm_item.npy and training_dict.npy disagree about 1 items, e.g. 3"):
        OfficialRelease().read(tiny_release)


def test_test_dicts_that_disagree(tiny_release):
    cold = unpickled_freely(tiny_release / "testing_cold_dict.npy")
    cold[1] = [*cold[1], 39, 39]
    save_object(tiny_release / "testing_cold_dict.npy", cold)
    with pytest.raises(DataError, match=r"testing_cold_dict.npy disagrees .* about user 1"):
        OfficialRelease().read(tiny_release)


def test_matrix_of_another_release(tiny_release):
    with (tiny_release / "SASRec_item_embed.pkl").open("wb") as file:
        pickle.dump(torch.zeros(TINY_ITEMS - 1, 64), file)
    with pytest.raises(DataError, match=r"40 in items.jsonl, 39 in SASRec_item_embed.pkl"):
        OfficialRelease().read(tiny_release)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"item_id": 5, "asin": "A002"}', "line 3 has item_id 5, expected 2"),
        ('{"asin": "A002"}', "line 3 is not a JSON object with an item_id"),
        ("{", "line 3 is not a JSON object"),
        ('{"item_id": 2, "asin": "A001"}', "gives the id 'A001' to several items"),
    ],
)
def test_wrong_items_file(tiny_release, line, message):
    path = tiny_release / "items.jsonl"
    lines = path.read_text().splitlines()
    assert json.loads(lines[2])["item_id"] == 2
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    with pytest.raises(DataError, match=message):
        OfficialRelease().read(tiny_release)


def test_toys_counts(toys_raw):
    log = OfficialRelease().read(toys_raw)
    assert len(log.user_ids) == 15_635
    assert [len(split.items) for split in (log.train, log.validation, log.test)] == [114_983, 12_740, 14_776]
    warm = np.bincount(log.train.items, minlength=len(log.items)) > 0
    assert (~warm).sum() == 623
    has_target = np.zeros((2, len(log.user_ids)), bool)
    user = np.repeat(np.arange(len(log.user_ids)), log.test.lengths)
    has_target[warm[log.test.items].astype(int), user] = True
    assert [int(has_target.any(0).sum()), int(has_target[1].sum()), int(has_target[0].sum())] == [5_559, 4_489, 2_053]
    assert log.items["id"][0] == "B00006IJE7"
    assert load_object_npy(toys_raw / "cold_item.npy") == set(np.flatnonzero(~warm).tolist())


def test_steam_counts(steam_raw):
    log = OfficialRelease().read(steam_raw)
    assert (len(log.user_ids), len(log.items)) == (32_919, 14_330)
    assert log.train.lengths.max() == 1_042


def test_loaded_after_preparing_toys(toys_raw, tmp_path):
    from setrec.cf import CFFile
    from setrec.data import SETRecDataModule
    from setrec.text import TextFile

    text = TextFile("toys.emb-minilm-tdcb.npy")
    data = SETRecDataModule(text=text, cf=[CFFile()], raw=str(toys_raw), root=str(tmp_path))
    data.prepare_data()
    catalogue, histories = Catalogue.load(data.folder), Histories.load(data.folder)
    assert catalogue.text is not None
    assert catalogue.text.shape == (11_908, 384)
    assert np.array_equal(catalogue.text.numpy(), np.load(toys_raw / text.file))
    assert int((~catalogue.warm).sum()) == 623
    assert catalogue.present[0].equal(catalogue.warm)
    assert histories.train.row(2).tolist() == [230, 1822, 4238, 9199, 9391]
