"""DecoderBackbone against the stock Hugging Face models, its adapters, its checkpoints and its errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

import setrec.backbones.decoder
import setrec.backbones.lora
import setrec.backbones.pretrained
from setrec.backbones import DecoderBackbone, LoRA
from setrec.backbones.masks import packed_mask, packed_positions
from setrec.cli import main, run
from setrec.errors import ConfigError

ROOT = Path(__file__).parent.parent
FAMILIES = ("qwen2", "qwen3", "llama")
WIDTH = 24


def save_model(path: Path, family: str, seed: int = 3) -> Path:
    """A tiny language model with its head and tokenizer, in half precision, saved as the hub saves them."""
    torch.manual_seed(seed)
    letters = {letter: i for i, letter in enumerate(["<s>", *sorted(ByteLevel.alphabet())])}
    if family == "qwen2":  # transformers insists on its own class for this family
        names = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<s>")
        Qwen2Tokenizer(vocab=letters, merges=[], **names).save_pretrained(path)
    else:
        tokenizer = Tokenizer(BPE(letters, []))
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        if family == "llama":  # its texts begin with a token of their own
            tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(path)
    config = AutoConfig.for_model(
        family, vocab_size=257, hidden_size=WIDTH, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=8, bos_token_id=0, eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


def built(backbone: DecoderBackbone) -> DecoderBackbone:
    backbone.build()
    return backbone.eval()


def history() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two histories of 4 and 2 items of 3 slots, three prefixes and one, 3 queries."""
    torch.manual_seed(5)
    real = torch.tensor([[True] * 4, [True, True, False, False]])
    prefix = torch.tensor([[0, 2, 4], [1, -1, -1]])
    return torch.randn(2, 4, 3, WIDTH), real, prefix, torch.randn(3, WIDTH)


def shaken(backbone: DecoderBackbone) -> DecoderBackbone:
    """Adapters begin at zero: give them something to say."""
    for name, parameter in backbone.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return backbone


# ------------------------------------------------------------------------------------------------------------ the model
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_the_stock_model_under_a_causal_mask(folders: dict[str, Path], family: str, attention: str) -> None:
    """One slot an item, one query, one prefix: a plain text of tokens at positions 0, 1, 2 ..."""
    backbone = DecoderBackbone(
        pretrained=str(folders[family]), attention=attention, instruction="the user", response="would"
    )
    backbone.build()
    assert backbone.training  # from_pretrained says eval
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}  # the folder is in half precision
    tokenizer = AutoTokenizer.from_pretrained(folders[family])
    words, response_words = tokenizer("the user").input_ids, tokenizer("would", add_special_tokens=False).input_ids
    assert (backbone.n_text, backbone.n_announce) == (len(words), len(response_words))
    assert (len(words), len(response_words)) == (8 + (family == "llama"), 5)  # letters; Llama's begins with <s>
    backbone.eval()
    stock = AutoModel.from_pretrained(folders[family], dtype=torch.float32)
    items, query = torch.randn(2, 5, 1, WIDTH), torch.randn(1, WIDTH)
    text, response = (stock.embed_tokens(torch.tensor(ids)).expand(2, -1, -1) for ids in (words, response_words))
    with torch.no_grad():
        ours = backbone(items, torch.ones(2, 5, dtype=torch.bool), torch.tensor([[5], [5]]), query)  # (B, 1, 1, D)
        theirs = stock(inputs_embeds=torch.cat([text, items.squeeze(2), response, query.expand(2, 1, -1)], dim=1))
    torch.testing.assert_close(ours[:, 0, 0], theirs.last_hidden_state[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_of_attention_read_the_same_mask(folders: dict[str, Path], family: str) -> None:
    sdpa, eager = (
        built(DecoderBackbone(pretrained=str(folders[family]), attention=name)) for name in ("sdpa", "eager")
    )
    items, real, prefix, queries = history()
    one, other = sdpa(items, real, prefix, queries), eager(items, real, prefix, queries)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    causal = built(DecoderBackbone(pretrained=str(folders[family])))
    with pytest.MonkeyPatch.context() as patch:  # the same model under a causal mask is another function
        patch.setattr(
            setrec.backbones.decoder, "packed_mask", lambda *sizes: torch.ones_like(packed_mask(*sizes)).tril()
        )
        assert (causal(items, real, prefix, queries) - one)[prefix >= 0].abs().max() > 1e-2


def test_half_precision_and_autocast_keep_the_mask(folders: dict[str, Path]) -> None:
    """The lowest float32 becomes -inf in bfloat16: every token sees itself, so no row is empty."""
    items, real, prefix, queries = history()
    exact = built(DecoderBackbone(pretrained=str(folders["qwen2"])))(items, real, prefix, queries)
    for attention in ("sdpa", "eager"):
        half = built(DecoderBackbone(pretrained=str(folders["qwen2"]), attention=attention, dtype="bfloat16"))
        answers = half(items, real, prefix, queries)
        assert answers.dtype == torch.float32
        assert (answers - exact)[prefix >= 0].abs().mean() < 0.03  # of values around 1
        mixed = built(DecoderBackbone(pretrained=str(folders["qwen2"]), attention=attention))
        with torch.autocast("cpu", torch.bfloat16):
            answers = mixed(items, real, prefix, queries)
        assert answers.isfinite().all()
        assert (answers - exact)[prefix >= 0].abs().mean() < 0.03


def test_a_row_of_padding_alone_is_finite() -> None:
    backbone = built(DecoderBackbone(shape="nano", n_response=1))
    none = torch.full((2, 3), -1)
    items = torch.zeros(2, 4, 2, 32, requires_grad=True)
    answers = backbone(items, torch.zeros(2, 4, dtype=torch.bool), none, torch.randn(2, 32))
    assert answers.shape == (2, 3, 2, 32)
    answers.sum().backward()
    assert answers.isfinite().all()
    assert items.grad is not None
    assert items.grad.isfinite().all()


def test_gradient_checkpointing_changes_no_gradient(folders: dict[str, Path]) -> None:
    items, real, prefix, queries = history()
    gradients = []
    for checkpointing in (False, True):
        backbone = DecoderBackbone(
            pretrained=str(folders["qwen3"]), gradient_checkpointing=checkpointing, lora=LoRA(dropout=0)
        )
        backbone.build()
        torch.manual_seed(0)
        shaken(backbone)
        calls: list[int] = []
        backbone.base.layers[1].mlp.register_forward_pre_hook(lambda *_, into=calls: into.append(1))
        backbone(items, real, prefix, queries).square().sum().backward()
        assert len(calls) == 1 + checkpointing  # computed anew in the backward pass
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.requires_grad})
    assert len(gradients[0]) == 2 * 3 * 2  # layers, targets, A and B
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
        assert gradient.abs().max() > 0


def test_no_vocabulary_is_kept_and_half_precision_reaches_the_base(folders: dict[str, Path]) -> None:
    backbone = built(DecoderBackbone(pretrained=str(folders["llama"]), dtype="bfloat16", lora=LoRA()))
    assert not any("embed" in name or "head" in name for name in backbone.state_dict())
    assert {p.dtype for p in backbone.base.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}  # small steps must count


@pytest.mark.parametrize("train_prompt", [False, True])
def test_texts_train_only_when_asked(folders: dict[str, Path], train_prompt: bool) -> None:
    backbone = built(DecoderBackbone(pretrained=str(folders["qwen2"]), train_prompt=train_prompt, lora=LoRA()))
    assert backbone.prompt.requires_grad is train_prompt


# ------------------------------------------------------------------------------------------------------------- the mask
def test_packed_mask_and_positions_are_as_drawn() -> None:
    prefix = torch.tensor([[0, 2], [1, -1]])
    drawn = """
        x.... ......
        xx... ......
        x.x.. ......
        xxxx. ......
        xxx.x ......
        x.... x.....
        x.... xx....
        x.... x.x...
        xxxxx ...x..
        xxxxx ...xx.
        xxxxx ...x.x
    """
    rows = [[letter == "x" for letter in line.replace(" ", "")] for line in drawn.split("\n") if line.strip()]
    see = packed_mask(prefix, n_text=1, n_items=2, n_slots=2, n_response=1, n_queries=2)
    assert see[0].tolist() == rows
    assert see[1, 5, :5].tolist() == [True, True, True, False, False]  # one item
    assert see[1, 8, :5].tolist() == [True, False, False, False, False]  # padding: as the empty history
    assert see.diagonal(dim1=1, dim2=2).all()
    positions = packed_positions(prefix, n_text=1, n_items=2, n_slots=2, n_response=1, n_queries=2)
    assert positions.tolist() == [[0, 1, 1, 2, 2, 1, 2, 2, 3, 4, 4], [0, 1, 1, 2, 2, 2, 3, 3, 1, 2, 2]]
    causal = packed_mask(torch.tensor([[0]]), n_text=3, n_items=0, n_slots=1, n_response=2, n_queries=1)[0]
    assert torch.equal(causal, torch.ones(6, 6, dtype=torch.bool).tril())  # no items: a plain text


# ------------------------------------------------------------------------------------------------------------- adapters
def test_adapters_begin_as_nothing_and_alone_train(folders: dict[str, Path]) -> None:
    items, real, prefix, queries = history()
    plain = built(DecoderBackbone(pretrained=str(folders["qwen2"])))
    adapted = built(DecoderBackbone(pretrained=str(folders["qwen2"]), lora=LoRA(r=2)))
    torch.testing.assert_close(adapted(items, real, prefix, queries), plain(items, real, prefix, queries))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 3 * 2
    assert all(name.split(".lora_")[0].endswith(("q_proj", "v_proj", "o_proj")) for name in trained)


def test_checkpoints_leave_the_frozen_base_out_and_load_strictly(folders: dict[str, Path]) -> None:
    items, real, prefix, queries = history()

    def fresh(seed: int) -> DecoderBackbone:
        torch.manual_seed(seed)
        backbone = built(DecoderBackbone(pretrained=str(folders["qwen2"]), lora=LoRA(r=2), train_prompt=True))
        return shaken(backbone)

    trained, other = fresh(1), fresh(2)
    whole = nn.ModuleDict({"backbone": trained})  # a prefix before every name, as in a run
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    assert set(state) == {f"backbone.{name}" for name, p in trained.named_parameters() if p.requires_grad}
    assert len(state) == 12 + 1
    answers = trained(items, real, prefix, queries)
    assert (other(items, real, prefix, queries) - answers).abs().max() > 1e-2
    frozen = other.base.layers[0].mlp.up_proj.weight.clone()
    nn.ModuleDict({"backbone": other}).load_state_dict(state, strict=True)
    assert torch.equal(other(items, real, prefix, queries), answers)
    assert torch.equal(other.base.layers[0].mlp.up_proj.weight, frozen)
    missing = next(name for name in state if "lora_A" in name)
    with pytest.raises(RuntimeError, match="Missing key"):
        nn.ModuleDict({"backbone": other}).load_state_dict({n: v for n, v in state.items() if n != missing})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        nn.ModuleDict({"backbone": other}).load_state_dict({**state, "backbone.extra": torch.zeros(1)})


def test_another_base_under_the_same_name_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    def at(path: Path, **options: str) -> DecoderBackbone:
        return built(DecoderBackbone(pretrained=str(path), lora=LoRA(), **options))

    origin = at(folders["qwen2"]).origin()
    at(folders["qwen2"]).check_origin(origin)
    at(folders["qwen2"], dtype="bfloat16").check_origin(origin)  # the same weights in half precision
    with pytest.raises(ConfigError, match=r"were trained on .* not those found .*--model.backbone.pretrained"):
        at(save_model(tmp_path / "other", "qwen2", seed=4)).check_origin(origin)


def test_everything_that_cannot_be_found_again_is_in_the_checkpoint(folders: dict[str, Path]) -> None:
    """A random base, and a pretrained one that trains whole."""
    for backbone in (DecoderBackbone(shape="nano", lora=LoRA()), DecoderBackbone(pretrained=str(folders["llama"]))):
        state = built(backbone).state_dict()
        assert set(state) == {name for name, _ in backbone.named_parameters()}
        assert backbone.origin() == {}


@pytest.mark.parametrize("lora", [LoRA(r=2), None])
def test_merge_writes_a_plain_model_that_answers_the_same(
    folders: dict[str, Path], tmp_path: Path, lora: LoRA | None
) -> None:
    items, real, prefix, queries = history()
    adapted = shaken(built(DecoderBackbone(pretrained=str(folders["qwen3"]), lora=lora)))
    if lora is None:
        nn.init.normal_(adapted.base.layers[0].mlp.up_proj.weight)
    adapted.merge(tmp_path / "merged")
    merged = built(DecoderBackbone(pretrained=str(tmp_path / "merged")))
    assert not any("lora" in name for name in merged.state_dict())
    answers = adapted(items, real, prefix, queries)
    torch.testing.assert_close(merged(items, real, prefix, queries), answers, rtol=1e-4, atol=1e-4)
    plain = built(DecoderBackbone(pretrained=str(folders["qwen3"])))
    assert (plain(items, real, prefix, queries) - answers).abs().max() > 1e-2
    with pytest.raises(ConfigError, match="exists already"):
        adapted.merge(tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


# --------------------------------------------------------------------------------------------------------------- errors
def refused(sentence: str, **options: object) -> None:
    with pytest.raises(ConfigError, match=sentence) as raised:
        DecoderBackbone(**options).build()  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_what_is_missing_is_one_sentence(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused("neither a folder here .* --model.backbone.pretrained", pretrained=str(tmp_path / "nothing"))
    folder = str(folders["qwen2"])
    refused("file 'none.gguf' is neither|gguf, which is not installed", pretrained=folder, gguf_file="none.gguf")
    refused("no layer of Qwen2Model has such a name; its layers are .*'q_proj'", lora=LoRA(target_modules=["query"]))
    refused("needs a GPU", pretrained=folder, lora=LoRA(), quantize=4)
    for module, package in ((setrec.backbones.pretrained, "gguf"), (setrec.backbones.lora, "peft")):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
        refused(
            f"package {package}, which is not installed",
            pretrained=folder,
            lora=LoRA(),
            gguf_file=None if package == "peft" else "a.gguf",
        )


def test_a_base_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    """transformers would fill them with random numbers and only warn."""
    from safetensors.torch import load_file, save_file

    path = save_model(tmp_path / "half", "llama")
    weights = load_file(path / "model.safetensors")
    save_file(
        {name: w for name, w in weights.items() if "layers.1" not in name}, path / "model.safetensors", {"format": "pt"}
    )
    refused("lacks 9 weights of a LlamaModel, layers.1", pretrained=str(path))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_prompt": 0}, "n_prompt is 0"),
        ({"quantize": 4}, "only a frozen base"),
        ({"gguf_file": "a.gguf"}, "the folder that holds it"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], sentence: str) -> None:
    refused(sentence, **options)


# ------------------------------------------------------------------------------------------------------------------ runs
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").glob("*_*.yaml")
    if "DecoderBackbone" in path.read_text() and not path.name.endswith(("_best.yaml", "_example.yaml"))
)  # test_configs.py and test_csv_example.py run the others
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


def world(folder: Path, n_cf: int = 1) -> list[str]:
    """A small made-up world in place of the data; everything is written inside `folder`."""
    return [
        *("--data.name=tiny", f"--data.root={folder / 'data'}", f"--trainer.default_root_dir={folder}"),
        *(
            "--data.reader=SyntheticWorld",
            "--data.reader.users=120",
            "--data.reader.items=60",
            "--data.cleaning.k_core=2",
        ),
        *("--data.text=TfidfSVD", f"--data.cf=[{', '.join(['CooccurrenceSVD'] * n_cf)}]", *QUIET),
    ]


def outcome(folder: Path, version: int = 0) -> dict:
    return json.loads((folder / f"lightning_logs/version_{version}/results.json").read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_fits_and_tests(path: Path, tmp_path: Path) -> None:
    """As shipped, but small: no download, one process."""
    n_cf = yaml.safe_load(path.read_text())["model"].get("n_cf", 1)
    small = ["--model.backbone.pretrained=null", "--model.backbone.shape=nano", "--trainer.max_epochs=1"]
    few = ["--trainer.limit_train_batches=2", "--trainer.devices=1", "--trainer.strategy=auto", "--test_after_fit=true"]
    run(["fit", f"--config={path}", *world(tmp_path, n_cf), *small, *few])
    assert outcome(tmp_path)["metrics"]["all"]["recall@20"] > 0


def test_a_run_with_lora_from_its_checkpoint_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    lora = [f"--model.backbone.pretrained={folders['qwen3']}", "--model.backbone.lora.r=2", "--model.n_sem=2"]
    start = ["fit", *world(tmp_path), "--model.backbone=DecoderBackbone", *lora, "--trainer.max_epochs=1"]
    run([*start, "--test_after_fit=true", "--model.lr=1e-2"])
    path = next((tmp_path / "lightning_logs/version_0/checkpoints").glob("epoch-*.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if ".base." in name and ".lora_" not in name]
    assert checkpoint["backbone"]["pretrained"] == str(folders["qwen3"])
    again = ["test", "--ckpt_path", str(path), f"--trainer.default_root_dir={tmp_path}", *QUIET]
    run(again)
    assert outcome(tmp_path, 1)["metrics"] == outcome(tmp_path)["metrics"]
    other = save_model(tmp_path / "other", "qwen3", seed=9)
    with pytest.raises(ConfigError, match="adapters were trained on"):
        run([*again, f"--model.backbone.pretrained={other}"])
    with pytest.raises(ConfigError, match="neither a folder here"):
        run([*again, f"--model.backbone.pretrained={tmp_path / 'nowhere'}"])
    main(["merge", "--ckpt_path", str(path), "--output", str(tmp_path / "merged")])
    adapted = [name for name in checkpoint["state_dict"] if ".lora_B" in name]
    assert any(checkpoint["state_dict"][name].any() for name in adapted)
    plain, merged = (AutoModel.from_pretrained(folder) for folder in (folders["qwen3"], tmp_path / "merged"))
    changed = [n for n, p in plain.named_parameters() if not torch.equal(p, merged.get_parameter(n))]
    assert len(changed) == len(adapted)
    assert all(name.split(".")[-2] in ("q_proj", "v_proj", "o_proj") for name in changed)


@pytest.mark.process
def test_weights_split_over_two_processes_are_one_run(folders: dict[str, Path], tmp_path: Path) -> None:
    """The same steps as one process; the checkpoint is a folder without the base, and `test` needs nothing else."""
    lora = [f"--model.backbone.pretrained={folders['llama']}", "--model.backbone.lora={r: 2, dropout: 0}"]
    start = ["fit", "--model.backbone=DecoderBackbone", *lora, "--model.n_sem=2", "--trainer.max_epochs=1"]
    start += ["--trainer.limit_train_batches=4", "--trainer.num_sanity_val_steps=0"]
    one, two = tmp_path / "one", tmp_path / "two"
    run([*start, *world(one)])
    split = ["--trainer.devices=2", "--trainer.strategy=ModelParallelStrategy"]
    split += ["--trainer.strategy.data_parallel_size=2", "--trainer.strategy.tensor_parallel_size=1"]

    def launch(words: list[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, str(ROOT / "main.py"), *words, *split]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    launch([*start, *world(two)])
    folder = two / "lightning_logs/version_0/checkpoints/last.ckpt"
    dcp_to_torch_save(folder, tmp_path / "flat.pt")
    state = torch.load(tmp_path / "flat.pt", weights_only=True)["state_dict"]
    single = torch.load(one / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == single.keys()
    for name, value in single.items():
        assert (state[name] - value).abs().max() < 1e-3 * max(float(value.abs().max()), 1e-2), name
    launch(["test", "--ckpt_path", str(folder), f"--trainer.default_root_dir={two}", *QUIET])
    assert outcome(two, 1)["metrics"]["all"]["recall@20"] > 0
