"""Text vectors: files that fit and files that do not, and the offline encoder."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from setrec.errors import DataError
from setrec.files.hashes import ids_hash
from setrec.text import TextFile, TfidfSVD
from setrec.words import words_of

IDS = ["a", "b", "c"]


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)


def test_files_in_either_format(tmp_path, vectors):
    np.save(tmp_path / "x.npy", vectors.astype(np.float64))
    save_file({"vectors": vectors}, tmp_path / "x.safetensors", {"ids_sha256": ids_hash(IDS)})
    for name in ("x.npy", "x.safetensors"):
        inside = TextFile(name).encode(IDS, [""] * 3, tmp_path)
        by_path = TextFile(str(tmp_path / name)).encode(IDS, [""] * 3, None)
        assert inside.dtype == np.float32
        assert np.array_equal(inside, vectors)
        assert np.array_equal(by_path, vectors)
        assert TextFile(name).sources(tmp_path) == [tmp_path / name]


def test_rows_ids_and_numbers_are_checked(tmp_path, vectors):
    np.save(tmp_path / "x.npy", vectors)
    with pytest.raises(DataError, match=r"x.npy has 3 rows but the data has 4 items"):
        TextFile("x.npy").encode([*IDS, "d"], [""] * 4, tmp_path)
    save_file({"vectors": vectors}, tmp_path / "x.safetensors", {"ids_sha256": ids_hash(["a", "c", "b"])})
    with pytest.raises(DataError, match=r"x.safetensors was made for other items"):
        TextFile("x.safetensors").encode(IDS, [""] * 3, tmp_path)
    for wrong in (np.nan, np.inf):
        vectors[1, 2] = wrong
        np.save(tmp_path / "x.npy", vectors)
        with pytest.raises(DataError, match=r"x.npy row 1 \(item b\) holds NaN or infinity"):
            TextFile("x.npy").encode(IDS, [""] * 3, tmp_path)


def test_files_that_are_not_matrices(tmp_path, vectors):
    np.save(tmp_path / "x.npy", vectors[0])
    (tmp_path / "y.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-3])
    (tmp_path / "z.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0")
    (tmp_path / "w.txt").write_text("1 2 3")
    save_file({"one": vectors, "two": vectors}, tmp_path / "v.safetensors")
    cases = {
        "x.npy": "must hold a matrix",
        "y.npy": "not a readable .npy",
        "z.safetensors": "truncated or damaged",
        "w.txt": "vectors are read from",
        "v.safetensors": "several tensors",
        "missing.npy": "does not exist",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            TextFile(name).encode(IDS, [""] * 3, tmp_path)
    with pytest.raises(DataError, match=r"no --data.raw DIR is given"):
        TextFile("missing.npy").encode(IDS, [""] * 3, None)


TEXTS = ["red wooden train", "blue wooden train", "red paper crane", "blue paper crane", "", "unheard zyx"]


def test_tfidf_svd_rows():
    out = TfidfSVD(width=4).encode([str(i) for i in range(6)], TEXTS, None)
    assert out.shape == (6, 4)
    assert out.dtype == np.float32
    assert np.linalg.norm(out, axis=1) == pytest.approx([1, 1, 1, 1, 0, 0], abs=1e-5)  # rare words count as no text
    same = out @ out.T
    assert same[0, 1] > same[0, 2] > same[0, 3]  # two words in common, one, none


def test_tfidf_svd_keeps_the_cosines_at_full_width():
    out = TfidfSVD(width=64, min_df=1).encode([str(i) for i in range(6)], TEXTS, None)
    assert out.shape[1] <= 6
    assert (out @ out.T)[0, 5] == pytest.approx(0, abs=1e-5)
    assert (out @ out.T)[0, 0] == pytest.approx(1, abs=1e-5)


def test_tfidf_svd_is_a_function_of_its_seed():
    once, again = (TfidfSVD(width=3).encode(list("abcdef"), TEXTS, None) for _ in range(2))
    assert np.array_equal(once, again)


@pytest.mark.parametrize(
    ("words", "join"),
    [
        (("红色", "蓝色", "绿色", "电热水壶", "吉他", "台灯"), ""),  # Chinese
        (("赤い", "青い", "緑の", "ケトル", "ギター", "ランプ"), ""),  # Japanese
        (("สีแดง", "สีน้ำเงิน", "สีเขียว", "กาต้มน้ำ", "กีตาร์", "โคมไฟ"), ""),  # Thai
        (("빨간", "파란", "초록", "주전자", "기타", "램프"), ""),  # Korean
        (("أحمر", "أزرق", "أخضر", "غلاية", "غيتار", "مصباح"), " "),  # Arabic
        (("लाल", "नीली", "हरी", "केतली", "गिटार", "बत्ती"), " "),  # Hindi
        (("אדום", "כחול", "ירוק", "קומקום", "גיטרה", "מנורה"), " "),  # Hebrew
        (("красный", "синий", "зелёный", "чайник", "гитара", "лампа"), " "),  # Russian
    ],
)
def test_items_are_told_apart_in_any_script(words, join):
    texts = [
        f"title: {color}{join}{thing}; brand: 牌{n % 2}" for color in words[:3] for n, thing in enumerate(words[3:])
    ]
    items = pl.DataFrame({"id": [str(n) for n in range(9)], "text": texts, "title": texts, "brand": texts})
    encoder = TfidfSVD(width=16)
    out = encoder.encode(items["id"].to_list(), texts, None, items)
    assert len(np.unique(out.round(4), axis=0)) == 9
    cosine = out @ out.T
    assert cosine[0, 3] > cosine[0, 4] + 0.1  # the same thing in another color, another thing in another color
    assert cosine[0, 1] > cosine[0, 4]
    assert encoder.encode_more(items.head(2), encoder.learned()) == pytest.approx(out[:2], abs=1e-4)


def test_labels_are_no_words():
    texts = [
        "title: red kettle; brand: anna; Size in cm: 3",
        "title: red lamp; brand: anna",
        "title: blue lamp; brand: berta",
    ]
    items = pl.DataFrame({"id": IDS, "title": IDS, "brand": IDS, "Size in cm": IDS, "text": texts})
    encoder = TfidfSVD(width=4, min_df=1)
    with_labels = encoder.encode(IDS, texts, None, items)
    words = encoder.learned()["words"].tobytes().decode().split("\n")
    assert words == ["anna", "berta", "blue", "kettle", "lamp", "red"]
    bare = [text.replace("title: ", "").replace("brand: ", "").replace("Size in cm: ", "") for text in texts]
    assert with_labels == pytest.approx(TfidfSVD(width=4, min_df=1).encode(IDS, bare, None), abs=1e-5)
    with pytest.raises(DataError, match="no words to make text vectors from in 3 items"):
        TfidfSVD().encode(IDS, [f"title: only{n}; brand: b{n}" for n in range(3)], None, items)


def test_words_between_blanks_are_those_of_scikit_learn():
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ["Café-au-lait's 3D model_7, N°12; straße ΑΘΗΝΑ", "a b cd 10% x2 🙂 ok", "TABS\tand\nlines\u00a0here"]
    theirs = TfidfVectorizer().build_analyzer()
    assert [words_of(text) for text in texts] == [theirs(text) for text in texts]


def test_no_words_at_all():
    with pytest.raises(DataError, match="no words to make text vectors from"):
        TfidfSVD().encode(IDS, ["", " ", ""], None)


def test_a_missing_file_names_those_that_are_there(tmp_path: Path) -> None:
    np.save(tmp_path / "toys.emb-minilm-tdcb.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(DataError, match=r"toys\.emb-t5-tdcb\.npy does not exist.*holds toys\.emb-minilm-tdcb\.npy"):
        TextFile("toys.emb-t5-tdcb.npy").encode(["a", "b"], ["x", "y"], tmp_path)
