"""EASE and iALS against their equations, chosen on validation; the two rows of whatever is counted under leave-one-out."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from setrec.cli import run
from setrec.errors import ConfigError
from setrec.evaluation import rivals
from setrec.evaluation.baselines import Counted, padded
from setrec.evaluation.rivals import Ease, Ials, check_rivals, fit_rivals
from setrec.files.ragged import Ragged
from setrec.scoring.topk import mask_seen, top_items
from setrec.scoring.weights import Weights
from tests.conftest import command, model
from tests.test_baselines import HISTORY, N, rows_of, world

needs_implicit = pytest.mark.skipif(importlib.util.find_spec("implicit") is None, reason="needs the package implicit")
ROWS = rows_of(1, 40, 15)
COUNTED = Counted(Ragged.from_rows(ROWS), "train")


def bought(rows: list[list[int]]) -> np.ndarray:
    table = np.zeros((len(rows), N))
    for user, row in enumerate(rows):
        table[user, [item for item in row if item >= 0]] = 1
    return table


def test_ease_solves_its_equations() -> None:
    """The best linear model with an empty diagonal: the gradient of its loss is 0 off the diagonal."""
    table, strength = bought(ROWS), 5.0
    weights = Ease(COUNTED, strength, N).weights.astype(np.float64)
    assert np.abs(np.diag(weights)).max() == 0
    gradient = table.T @ (table @ weights - table) + strength * weights
    assert np.abs(gradient - np.diag(np.diag(gradient))).max() < 1e-4
    assert np.abs(weights).max() > 0.1
    scores = Ease(COUNTED, strength, N).score(HISTORY)
    assert np.allclose(scores.numpy(), bought(HISTORY.tolist()) @ weights, atol=1e-5)


def test_lambda_is_the_best_on_validation_and_the_rows_count_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "STRENGTHS", (0.5, 5.0, 500.0))
    catalogue, histories = world()
    users = np.nonzero(histories.validation.lengths)[0]
    seen, target = padded(histories.train, users), padded(histories.validation, users)
    recall = {}
    for strength in rivals.STRENGTHS:
        top = top_items(mask_seen(Ease(Counted(histories.train, "train"), strength, N).score(seen), seen), 10)
        hits = [len(set(t.tolist()) & set(row.tolist()) - {-1}) / len(set(row.tolist()) - {-1})
                for t, row in zip(top, target, strict=True)]  # fmt: skip
        recall[strength] = float(np.mean(hits))
    assert len(set(recall.values())) > 1
    chosen = max(recall, key=lambda strength: recall[strength])
    found = fit_rivals(["ease"], catalogue, histories, "test", True)
    assert list(found) == ["ease", "ease_train"]
    both = Counted(histories.train.joined(histories.validation), "train + validation")
    assert torch.equal(found["ease"].score(HISTORY), Ease(both, chosen, N).score(HISTORY))
    assert torch.equal(found["ease_train"].score(HISTORY), Ease(COUNTED, chosen, N).score(HISTORY))
    assert f"counted in train + validation; lambda {chosen:g} by validation" in found["ease"].describe()
    assert list(fit_rivals(["ease"], catalogue, histories, "validation", True)) == ["ease"]
    assert fit_rivals([], catalogue, histories, "test") == {}


@needs_implicit
def test_ials_finds_who_buys_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "FACTORS", 4)
    rows = [[0, 1, 2, 3]] * 10 + [[4, 5, 6, 7]] * 10
    fitted = Ials(Counted(Ragged.from_rows(rows), "train"), 10.0, 0.1, 8)
    history = torch.tensor([[0, 1, 2], [7, 4, -1], [-1, -1, -1]])
    scores = fitted.score(history)
    assert scores.shape == (3, 8)
    assert (
        top_items(mask_seen(scores, history), 1)[:2].tolist() == [[3], [5]]
        or scores[1, 5:7].min() > scores[1, :4].max()
    )
    assert scores[2].abs().max() == 0
    catalogue, histories = world()
    assert list(fit_rivals(["ials"], catalogue, histories, "test", True)) == ["ials", "ials_train"]


def test_rivals_that_cannot_be_computed_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"60,000 x 60,000; it is meant for up to 50,000 items"):
        check_rivals(["ease"], 60_000)
    check_rivals(["ease"], 50_000)
    monkeypatch.setattr(rivals, "MOST_ITEMS", 10)
    with pytest.raises(ConfigError, match="--compare ease inverts"):
        run(command("fit", tmp_path, "--compare=[ease]", *model(), "--trainer.max_epochs=1"))
    assert not list(tmp_path.rglob("*.ckpt"))
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"--compare ials needs the package implicit: run pip install 'setrec\[ials\]'"
    ):
        run(command("fit", tmp_path, "--compare=[ials]", *model(), "--trainer.max_epochs=1"))


@pytest.mark.slow
def test_a_leave_one_out_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "STRENGTHS", (5.0, 50.0))
    flags = ["--model.neighbours=true", "--trainer.max_epochs=1", "--data.split=LeaveOneOut", "--compare=[ease]"]
    cli = run(command("fit", tmp_path, *model(), *flags, "--test_after_fit=true"))
    text = capsys.readouterr().out
    rows = [
        "SETRec", "SETRec, counted in train", "popularity", "item CF", "item CF, counted in train", "text", "item CF + text",
        "item CF + text, counted in train", "item CF + text + n-grams", "item CF + text + n-grams, counted in train",
        "transitions", "transitions, counted in train", "EASE", "EASE, counted in train",
    ]  # fmt: skip
    table = [line for line in text.split("\n\n")[0].splitlines() if " ." in line or "1.000" in line]
    assert [line[:43].rstrip(" .0123456789*") for line in table] == rows
    assert "leave-one-out: training holds what other users did after a user's test item" in text
    results = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    assert results["baselines"]["model_train"] != results["metrics"]
    module, batch = cli.model.eval(), next(iter(cli.datamodule.test_dataloader()))
    with torch.inference_mode():
        module.prepare_scoring("test")
        both, in_train = module.score(batch), module.score_in_train(batch)  # (B, N) twice
        module.prepare_scoring("validation")  # counts training alone
        assert torch.equal(module.score(batch), in_train)
        assert not torch.equal(both, in_train)


@pytest.mark.slow
def test_other_splits_and_models_without_counts_have_one_row(tmp_path: Path) -> None:
    cli = run(
        command("fit", tmp_path, *model(), "--model.neighbours=true", "--trainer.max_epochs=1", "--test_after_fit=true")
    )
    folder = tmp_path / "lightning_logs"
    module, batch = cli.model.eval(), next(iter(cli.datamodule.test_dataloader()))
    module.choose(Weights(0.5, neighbours=4, recency=1, cold_text=10, transitions=2, inferred=1.5))
    with torch.inference_mode():
        module.prepare_scoring("test")
        in_train = module.score_in_train(batch)  # (B, N)
        module.prepare_scoring("validation")  # counts training alone
        assert torch.equal(module.score(batch), in_train)  # cold items too, whose co-occurrence is inferred
    by_time = json.loads((folder / "version_0/results.json").read_text())
    assert not [name for name in by_time["baselines"] if name.endswith("_train")]
    assert by_time["protocol"]["caution"] == ""
    run(
        command(
            "fit",
            tmp_path / "other",
            *model(),
            "--data.split=LeaveOneOut",
            "--trainer.max_epochs=1",
            "--test_after_fit=true",
        )
    )
    results = json.loads((tmp_path / "other/lightning_logs/version_0/results.json").read_text())
    assert [name for name in results["baselines"] if name.endswith("_train")] == [
        "item_cf_train", "item_cf_text_train", "item_cf_ngrams_train", "transitions_train"
    ]  # fmt: skip
