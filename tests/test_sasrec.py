"""SASRec: what it sees, that it learns, its item vectors, and the road from its command to SETRec's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from safetensors import safe_open

from setrec.cf import CFFile
from setrec.cli import main, run
from setrec.data import Catalogue, Histories, Ragged, SETRecDataModule, SyntheticWorld
from setrec.data.batches import TrainRows
from setrec.data.catalogue import read_manifest
from setrec.errors import ConfigError, DataError
from setrec.files.vectorfile import write_vectors
from setrec.sasrec import GatedBlock, SASRec, SASRecModule, trained_items
from setrec.schemas import PAD, Batch
from tests.test_processes import launch, weights

N, LONGEST = 30, 8


@pytest.fixture(params=["plain", "ligr"])
def network(request) -> SASRec:
    torch.manual_seed(0)
    model = SASRec(N, LONGEST, width=16, n_blocks=2, n_heads=2, inner=32, dropout=0.3, layers=request.param).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # far from the start, where nothing would show
    return model


def batch_of(rows: list[list[int]], prefix_parallel: bool = True) -> Batch:
    """All prefixes of these histories; each history's last item is only asked for."""
    train = TrainRows(Ragged.from_rows(rows), LONGEST, prefix_parallel)
    return train[np.arange(len(train))]


ROWS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9], [7, 9]]


def test_no_prefix_sees_later_items(network):
    batch = batch_of([[3, 1, 4, 1, 5]])
    before = network(batch)  # (5, E)
    for place in range(4):
        history = batch.history.clone()
        history[0, place] = 20
        after = network(batch._replace(history=history))
        moved = (after - before).abs().amax(dim=1) > 1e-4
        assert moved.tolist() == [prefix > place for prefix in range(5)]


def test_all_prefixes_at_once_equal_one_prefix_per_row(network):
    def answers(parallel: bool) -> dict[tuple[int, int], torch.Tensor]:
        batch = batch_of(ROWS, parallel)
        row, prefix = batch.valid // batch.prefix.shape[1], batch.prefix.flatten()[batch.valid]
        keys = zip(batch.user[row].tolist(), prefix.tolist(), strict=True)
        return dict(zip(keys, network(batch), strict=True))

    together, alone = answers(True), answers(False)
    assert together.keys() == alone.keys()
    assert (0, 0) in together  # the empty history
    for key, answer in together.items():
        assert torch.allclose(answer, alone[key], atol=1e-5)


def test_padding_changes_nothing(network):
    batch = batch_of([[3, 1, 4, 1, 5]])
    wide = batch._replace(history=torch.nn.functional.pad(batch.history, (0, 3), value=PAD))
    assert torch.allclose(network(wide), network(batch), atol=1e-5)


def test_the_empty_history_has_one_learned_answer(network):
    batch = batch_of([[9], [7]], prefix_parallel=False)
    first, second = network(batch)
    assert torch.equal(first, second)
    answer = network.norm(first)
    answer.sum().backward()
    assert network.start.grad.abs().sum() > 0


def test_bce_by_hand():
    torch.manual_seed(1)
    module = SASRecModule(width=4, n_heads=1, loss="bce", negatives=200_000)
    queries, table, target = torch.randn(2, 4), torch.randn(5, 4), torch.tensor([3, 0])
    found = module.binary_cross_entropy(queries, table, target)
    scores = queries @ table.T
    expected = 0.0
    for row, right in enumerate(target.tolist()):
        others = [torch.nn.functional.softplus(scores[row, i]) for i in range(5) if i != right]  # never the target
        expected += float(torch.nn.functional.softplus(-scores[row, right]) + sum(others) / 4)
    assert float(found) == pytest.approx(expected, rel=0.01)


def scored() -> tuple[torch.Tensor, ...]:
    """Query outputs (2, 4), item vectors (5, 4), targets (2), all scores (2, 5)."""
    torch.manual_seed(1)
    queries, table, target = torch.randn(2, 4), torch.randn(5, 4), torch.tensor([3, 0])
    return queries, table, target, queries @ table.T


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("log_q", [False, True])
def test_sampled_softmax_by_hand(shared, log_q):
    """With very many draws every other item is there as often as expected; with the correction that is the softmax."""
    queries, table, target, scores = scored()
    n = 400_000
    module = SASRecModule(width=4, n_heads=1, loss="sampled", negatives=n, shared_negatives=shared, log_q=log_q)
    found = module.sampled_softmax(queries, table, target)
    if log_q:
        expected = torch.nn.functional.cross_entropy(scores, target, reduction="sum")
    else:
        others = scores.scatter(1, target[:, None], -torch.inf).logsumexp(1)  # (2,)
        each = n / (5 if shared else 4)  # how often each other item is expected
        wanted = scores.gather(1, target[:, None]).squeeze(1)
        expected = (torch.logaddexp(wanted, others + np.log(each)) - wanted).sum()
    assert float(found) == pytest.approx(float(expected), rel=0.01)


@pytest.mark.parametrize(("negatives", "shared"), [(1, False), (300, False), (300, True)])  # by one and by all vectors
def test_a_prefix_never_has_its_target_among_the_drawn(negatives, shared):
    queries, table, target, scores = scored()
    module = SASRecModule(width=4, n_heads=1, loss="sampled", negatives=negatives, shared_negatives=shared)
    drawn = torch.cat([module.drawn_scores(queries, table, target) for _ in range(300 // negatives)], dim=1)  # (2, 300)
    for row, right in enumerate(target.tolist()):
        values = {round(value, 4) for value in drawn[row].tolist() if value > -torch.inf}
        assert values == {round(float(scores[row, i]), 4) for i in range(5) if i != right}


@pytest.mark.parametrize("t", [0.0, 0.75, 1.0])
def test_gbce_by_hand(t):
    queries, table, target, scores = scored()
    n, share = 400_000, 400_000 / 4
    module = SASRecModule(width=4, n_heads=1, loss="gbce", negatives=n, gbce_t=t)
    beta = share * (t * (1 - 1 / share) + 1 / share)  # the paper's equation
    expected = 0.0
    for row, right in enumerate(target.tolist()):
        others = sum(torch.nn.functional.logsigmoid(-scores[row, i]) for i in range(5) if i != right)
        expected -= float(beta * torch.nn.functional.logsigmoid(scores[row, right]) + others * n / 4) / (n + 1)
    assert float(module.binary_cross_entropy(queries, table, target)) == pytest.approx(expected, rel=0.01)


def test_the_gated_block_by_hand():
    torch.manual_seed(2)
    gated = GatedBlock(width=8, n_heads=2, inner=12, dropout=0.0)
    x = torch.randn(3, 5, 8)
    hidden = x + torch.sigmoid(x @ gated.attention_gate.weight.T + gated.attention_gate.bias) * gated.attend(x)
    normed = torch.nn.functional.layer_norm(hidden, (8,))
    up, down = normed @ gated.inner.up.weight.T, gated.inner.down.weight.T
    inner = (torch.nn.functional.silu(normed @ gated.inner.gate.weight.T) * up) @ down
    expected = hidden + torch.sigmoid(hidden @ gated.inner_gate.weight.T + gated.inner_gate.bias) * inner
    assert torch.allclose(gated(x), expected, atol=1e-6)
    for gate in (gated.attention_gate, gated.inner_gate):
        torch.nn.init.constant_(gate.bias, -100.0)  # closed
    assert torch.allclose(gated(x), x, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"width": 10, "n_heads": 3},
        {"loss": "bce", "negatives": 0},
        {"loss": "sampled", "negatives": 0},
        {"temperature": 0.0},
        {"gbce_t": 1.5},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ConfigError):
        SASRecModule(**arguments)


def test_items_that_training_never_shows_are_not_present():
    """Of a long history only the window is trained: 7 of the last user's items."""
    rows = TrainRows(Ragged.from_rows([[5, 6], [], [1, 2, 3, 4, 5, 7, 8]]), max_history=3)
    assert trained_items(rows).tolist() == [4, 5, 6, 7, 8]


# --------------------------------------------------------------------------------------------------------- learning
def world(root: Path, name: str = "tiny", **options) -> SETRecDataModule:
    reader = SyntheticWorld(users=400, items=120)
    options = {"text": None, "cf": [], "batch_size": 128} | options
    return SETRecDataModule(name=name, reader=reader, root=str(root), **options)


def fit(folder: Path, module: SASRecModule, epochs: int) -> tuple[Trainer, SETRecDataModule]:
    data = world(folder / "data")
    trainer = Trainer(
        max_epochs=epochs, default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, logger=False,
        enable_checkpointing=False, enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return trainer, data


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.1},
        {"loss": "bce", "negatives": 8},
        {"loss": "sampled", "negatives": 32},
        {"loss": "sampled", "negatives": 32, "shared_negatives": True, "log_q": True, "layers": "ligr"},
    ],
    ids=str,
)
def test_learns_more_than_popularity(tmp_path, options):
    torch.manual_seed(0)
    module = SASRecModule(width=32, inner=64, dropout=0.2, lr=5e-3, warmup_steps=10, **options)
    trainer, _ = fit(tmp_path, module, epochs=8)
    trainer.test(module, datamodule=world(tmp_path / "data"), verbose=False)
    results = json.loads((tmp_path / "results.json").read_text())
    own, popular = (row["warm"]["ndcg@10"] for row in (results["metrics"], results["baselines"]["popularity"]))
    assert own > 2 * popular


# ------------------------------------------------------------------------------------------------------ item vectors
def test_vectors_go_out_and_come_in(tmp_path):
    module = SASRecModule(width=8, n_blocks=1, inner=8)
    _, data = fit(tmp_path, module, epochs=1)
    file = tmp_path / "item_vectors.safetensors"
    ids, train = data.catalogue.ids, data.histories.train
    vectors, present = CFFile(str(file)).vectors(ids, train, None)
    assert np.array_equal(vectors, module.vectors.detach().numpy())
    assert np.array_equal(present, np.bincount(train.items, minlength=len(ids)) > 0)  # no history is cut here
    assert 0 < present.sum() < len(ids)
    with pytest.raises(DataError, match=r"item_vectors.safetensors was made for other items or another item order"):
        CFFile(str(file)).vectors(ids[::-1], train, None)
    with pytest.raises(DataError, match=r"item_vectors.safetensors was learned from another training split"):
        CFFile(str(file)).vectors(ids, train.joined(data.histories.validation), None)


def test_a_cosine_model_gives_unit_vectors(tmp_path):
    _, data = fit(tmp_path, SASRecModule(width=8, n_blocks=1, inner=8, temperature=0.1), epochs=1)
    vectors, _ = CFFile(str(tmp_path / "item_vectors.safetensors")).vectors(
        data.catalogue.ids, data.histories.train, None
    )
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_what_a_file_says_of_its_rows_is_taken_and_checked(tmp_path):
    train, ids = Ragged.from_rows([[0, 1]]), ["a", "b", "c"]
    vectors = np.ones((3, 2), np.float32)
    write_vectors(tmp_path / "x.safetensors", vectors, np.array([True, False, False]), ids, train, {})
    assert CFFile(str(tmp_path / "x.safetensors")).vectors(ids, train, None)[1].tolist() == [True, False, False]
    write_vectors(tmp_path / "y.safetensors", vectors, np.array([True, False]), ids, train, {})
    with pytest.raises(DataError, match="'present' must hold one bool per item"):
        CFFile(str(tmp_path / "y.safetensors")).vectors(ids, train, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_vectors(tmp_path / "file" / "z.safetensors", vectors, np.ones(3, bool), ids, train, {})


# --------------------------------------------------------------------------------------------------- the command line
def command(sub: str, folder: Path, name: str, *more: str) -> list[str]:
    return [
        sub, f"--data.name={name}", f"--data.root={folder / 'data'}", "--data.reader=SyntheticWorld",
        "--data.reader.users=150", "--data.reader.items=80", "--data.cleaning.k_core=2", "--data.batch_size=128",
        f"--trainer.default_root_dir={folder}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """The run's folder after two epochs from the shipped configuration."""
    folder = tmp_path_factory.mktemp("sasrec")
    run(command("fit", folder, "s", "--config=model/sasrec", "--trainer.max_epochs=2", "--test_after_fit=true"))
    return folder / "lightning_logs/version_0"


def test_fit_leaves_a_table_and_vectors_of_the_best_checkpoint(fitted):
    results = json.loads((fitted / "results.json").read_text())
    assert results["protocol"]["method"] == "SASRec"
    assert {"popularity", "item_cf"} <= set(results["baselines"])
    (best,) = (fitted / "checkpoints").glob("epoch-*.ckpt")
    weights = torch.load(best, weights_only=True)["state_dict"]["model.items.weight"]
    with safe_open(fitted / "item_vectors.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("vectors"), weights)
        assert file.metadata()["model"] == "SASRec"


@pytest.mark.slow
@pytest.mark.slow
def test_the_checkpoint_alone_is_enough(fitted, tmp_path):
    (best,) = (fitted / "checkpoints").glob("epoch-*.ckpt")
    quiet = [
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.enable_progress_bar=false",
        "--trainer.accelerator=cpu",
    ]
    again = run(["test", f"--ckpt_path={best}", *quiet])
    assert isinstance(again.model, SASRecModule)
    first, second = (
        json.loads(path.read_text())["metrics"] for path in (fitted / "results.json", *tmp_path.rglob("results.json"))
    )
    assert first == second
    flagged = run(["test", f"--ckpt_path={best}", *quiet, "--model.filter_seen=false"])
    assert flagged.model.filter_seen is False
    assert flagged.model.width == 64
    run(["predict", f"--ckpt_path={best}", *quiet])
    assert list(tmp_path.rglob("predictions.parquet"))


@pytest.mark.slow
@pytest.mark.slow
def test_resumes_to_the_bit(tmp_path):
    def weights(folder: Path, *more: str) -> torch.Tensor:
        words = command("fit", folder, "s", "--model=SASRecModule", "--model.width=16", "--model.inner=16", *more)
        return run([*words, "--data.text=null", "--data.cf=[]"]).model.vectors.detach()

    unbroken = weights(tmp_path / "a", "--trainer.max_epochs=3")
    weights(tmp_path / "b", "--trainer.max_epochs=1")
    last = next((tmp_path / "b").rglob("last.ckpt"))
    assert torch.equal(weights(tmp_path / "b", "--trainer.max_epochs=3", f"--ckpt_path={last}"), unbroken)


@pytest.mark.process
def test_two_processes_take_the_same_steps_as_one(zygote, tmp_path):
    """Dropout off, as it differs by process."""
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    flags = ["--model=SASRecModule", "--model.dropout=0", "--data.cf=[]", "--data.text=null", "--trainer.max_epochs=2"]
    run(command("fit", one, "s", *flags))
    launch(command("fit", two, "s", *flags), 2, two, zygote)
    expected, found = weights(one), weights(two)
    for name, value in expected.items():
        assert (value - found[name]).abs().max() < 1e-3 * max(float(value.abs().max()), 1e-2), name
    files = [folder / "lightning_logs/version_0/item_vectors.safetensors" for folder in (one, two)]
    data = SETRecDataModule(name="s", root=str(one / "data"))
    data.setup()
    vectors = [CFFile(str(file)).vectors(data.catalogue.ids, data.histories.train, None)[0] for file in files]
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-4)


@pytest.mark.slow
def test_setrec_takes_the_vectors_by_one_option_beside_svd(fitted, tmp_path):
    file = fitted / "item_vectors.safetensors"
    small = [
        "--model.backbone.shape=nano",
        "--model.n_sem=1",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=2",
    ]
    taken = ["--data.cf=[CFFile]", f"--data.cf.file={file}"]
    run(command("fit", tmp_path, "one", *small, *taken))
    both = run(command("fit", tmp_path, "two", *small, *taken, "--data.cf+=CooccurrenceSVD", "--model.n_cf=2"))
    assert both.model.recipe.n_cf == 2
    catalogue = Catalogue.load(tmp_path / "data/two")
    with safe_open(file, framework="pt") as stored:
        assert torch.equal(catalogue.cf[0], stored.get_tensor("vectors"))
        assert torch.equal(catalogue.present[0], stored.get_tensor("present"))
    said = read_manifest(tmp_path / "data/two")["cf"]
    assert [part["source"] for part in said] == ["CFFile", "CooccurrenceSVD"]
    train = Histories.load(tmp_path / "data/two").train
    assert [part["present"] for part in said] == [len(np.unique(train.items))] * 2
    assert Catalogue.load(tmp_path / "data/one").n_items == catalogue.n_items


def test_vectors_of_another_data_set_are_one_line_of_error(fitted, tmp_path, capsys):
    file = fitted / "item_vectors.safetensors"
    words = command("fit", tmp_path, "x", "--data.cf=[CFFile]", f"--data.cf.file={file}", "--data.reader.seed=1")
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "item_vectors.safetensors" in capsys.readouterr().err


def test_help_explains_the_model_that_is_named(capsys):
    with pytest.raises(SystemExit):
        run(["fit", "--model.help=SASRecModule"])
    with pytest.raises(SystemExit):
        run(["fit", "--help"])
    text = capsys.readouterr().out
    assert "n_blocks" in text
    assert "--model.n_sem" in text  # unnamed, the model is SETRec, explained in full
