"""CF vectors: from files, and from co-occurrence in the training split."""

import pickle

import numpy as np
import pytest
import torch

from setrec.cf import CFFile, CooccurrenceSVD
from setrec.data import Ragged
from setrec.errors import DataError

TRAIN = Ragged.from_rows([[0, 1, 0, 2], [2, 1], [4]])
IDS = [f"i{i}" for i in range(6)]  # 3 and 5 are cold


def naive_cosine(train: Ragged, n_items: int, window: int) -> np.ndarray:
    pairs, count = np.zeros((n_items, n_items)), np.zeros(n_items)
    for user in range(len(train)):
        row = train.row(user).tolist()
        for a, left in enumerate(row):
            count[left] += 1
            for right in row[a + 1 : a + 1 + window]:
                if left != right:
                    pairs[left, right] += 1
                    pairs[right, left] += 1
    return pairs / np.sqrt(np.outer(np.maximum(count, 1), np.maximum(count, 1)))


@pytest.mark.parametrize("window", [1, 2, 5])
def test_cooccurrence_against_a_loop(window):
    rng = np.random.default_rng(0)
    train = Ragged.from_rows([rng.integers(0, 12, n).tolist() for n in rng.integers(0, 9, 60)])
    ids = [str(i) for i in range(14)]
    vectors, present = CooccurrenceSVD(width=10, window=window).vectors(ids, train, None)
    cosine = naive_cosine(train, 14, window)
    values, basis = np.linalg.eigh(cosine)
    top = np.argsort(-np.abs(values))[:10]
    expected = (basis[:, top] * np.abs(values[top])) @ basis[:, top].T  # U S U', from the same top ten directions
    found = vectors @ vectors.T
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99999
    assert np.linalg.norm(vectors[present], axis=1).mean() == pytest.approx(1, abs=1e-5)
    assert present.tolist() == [True] * 12 + [False] * 2
    assert not vectors[~present].any()


def test_cooccurrence_does_not_cross_users():
    """1 and 2 follow each other in the flat array only."""
    train = Ragged.from_rows([[0, 1], [2, 3], [0, 1], [2, 3]])
    vectors, _ = CooccurrenceSVD(width=3).vectors(list("abcd"), train, None)
    cosine = vectors @ vectors.T
    assert abs(cosine[1, 2]) < 1e-5
    assert vectors.shape == (4, 3)


def test_cooccurrence_pads_its_width():
    vectors, present = CooccurrenceSVD(width=64).vectors(IDS, TRAIN, None)
    assert vectors.shape == (6, 64)
    assert vectors.dtype == np.float32
    assert present.tolist() == [True, True, True, False, True, False]


def test_cooccurrence_is_a_function_of_its_seed():
    once, again = (CooccurrenceSVD(width=3).vectors(IDS, TRAIN, None)[0] for _ in range(2))
    assert np.array_equal(once, again)


def test_nothing_together():
    with pytest.raises(DataError, match="no two items follow each other"):
        CooccurrenceSVD().vectors(list("ab"), Ragged.from_rows([[0], [1]]), None)


def test_file_rows_and_who_is_present(tmp_path):
    matrix = torch.randn(6, 4)
    with (tmp_path / "SASRec_item_embed.pkl").open("wb") as file:
        pickle.dump(matrix, file)
    vectors, present = CFFile().vectors(IDS, TRAIN, tmp_path)
    assert np.array_equal(vectors, matrix.numpy())  # cold rows stay as the file has them
    assert present.tolist() == [True, True, True, False, True, False]


def test_wrong_row_count_and_nan(tmp_path):
    np.save(tmp_path / "cf.npy", np.zeros((5, 4)))
    with pytest.raises(DataError, match=r"cf.npy has 5 rows but the data has 6 items"):
        CFFile("cf.npy").vectors(IDS, TRAIN, tmp_path)
    np.save(tmp_path / "cf.npy", np.full((6, 4), np.nan))
    with pytest.raises(DataError, match=r"cf.npy row 0 \(item i0\) holds NaN or infinity, 6 such rows"):
        CFFile("cf.npy").vectors(IDS, TRAIN, tmp_path)
