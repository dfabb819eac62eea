"""Coverage, Gini, novelty, diversity, popularity and calibration of lists, worked out by hand; provenance of results."""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from setrec.cli import run
from setrec.data.catalogue import Catalogue, Histories
from setrec.evaluation import provenance as module
from setrec.evaluation.list_metrics import ListFacts, ListMetrics, gini, jensen_shannon, popularity_groups
from setrec.evaluation.provenance import provenance
from setrec.files.ragged import Ragged
from tests.conftest import command, model

COUNT = torch.tensor(
    [6, 3, 3, 2, 1, 0]
)  # 15 events: item 0 is of the first group, 1 and 2 of the second, the others of the last
TEXT = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 1.0], [0.0, 0.0], [-1.0, 0.0]])
LISTS = torch.tensor([[0, 2], [1, 0], [5, -1], [-1, -1]])  # the last two are short


def world(text: bool = True) -> tuple[Catalogue, Histories]:
    ids = [str(i) for i in range(6)]
    train, validation = Ragged.from_rows([[0, 0, 1], [3], [], [2]]), Ragged.from_rows([[4], [3], [], []])
    catalogue = Catalogue("toy", ids, ids, TEXT if text else None, (), (), COUNT, "")
    return catalogue, Histories(ids[:4], train, validation, Ragged.from_rows([[1]] * 4))


def figures(split: str = "test", text: bool = True, users: torch.Tensor | None = None) -> dict[str, float]:
    metric = ListMetrics()
    for part in (torch.arange(4) if users is None else users).split(2):
        metric.update(part, LISTS[part])
    return ListFacts(*world(text), split).figures(metric.compute())


def shannon(one: list[float], other: list[float]) -> float:
    """Half the sum of the two divergences from the mean, in bits."""
    middle = [(a + b) / 2 for a, b in zip(one, other, strict=True)]
    return sum(a * math.log2(a / m) for part in (one, other) for a, m in zip(part, middle, strict=True) if a) / 2


def test_by_hand() -> None:
    found = figures()
    bits = [-math.log2((count + 1) / (15 + 6)) for count in COUNT.tolist()]
    assert found["coverage@10"] == 4 / 6  # items 0, 1, 2, 5
    times = [2, 1, 1, 0, 0, 1]
    everyone = sum(abs(a - b) for a in times for b in times) / (2 * 6 * sum(times))  # Gini as mean absolute difference
    assert found["gini@10"] == pytest.approx(everyone)
    assert found["novelty@10"] == pytest.approx(((bits[0] + bits[2]) / 2 + (bits[1] + bits[0]) / 2 + bits[5]) / 3)
    assert found["popularity@10"] == pytest.approx((4.5 + 4.5 + 0) / 3)
    assert found["diversity@10"] == pytest.approx(
        (0 + 1) / 2
    )  # cosine of 0 and 2: 1; of 1 and 0: 0; one item is no pair
    # histories: [0, 0, 1, 4] and [3, 3]; the third user has none, the fourth has no list
    assert found["calibration@10"] == pytest.approx(
        (shannon([0.5, 0.25, 0.25], [0.5, 0.5, 0]) + shannon([0, 0, 1], [0.5, 0.5, 0])) / 2
    )


def test_validation_reads_the_history_of_training_and_no_text_has_no_diversity() -> None:
    found = figures("validation", text=False)
    assert "diversity@10" not in found
    expected = (shannon([2 / 3, 1 / 3, 0], [0.5, 0.5, 0]) + shannon([0, 0, 1], [0.5, 0.5, 0])) / 2
    assert found["calibration@10"] == pytest.approx(expected)


def test_a_user_that_a_sampler_repeats_counts_once_in_any_order() -> None:
    assert figures(users=torch.tensor([3, 1, 0, 2, 0, 1])) == figures()


def test_nobody() -> None:
    assert ListFacts(*world(), "test").figures(ListMetrics().compute()) == {"coverage@10": 0.0, "gini@10": 0.0}


def test_diversity_equals_a_loop_over_pairs() -> None:
    torch.manual_seed(0)
    text, lists = torch.randn(30, 5), torch.stack([torch.randperm(30)[:10] for _ in range(7)])
    ids = [str(i) for i in range(30)]
    catalogue = Catalogue("toy", ids, ids, text, (), (), torch.ones(30, dtype=torch.int64), "")
    rows = Ragged.from_rows([[0]] * 7)
    metric = ListMetrics()
    metric.update(torch.arange(7), lists)
    found = ListFacts(catalogue, Histories(ids[:7], rows, rows, rows), "test").figures(metric.compute())["diversity@10"]
    pairs = [1 - float(torch.cosine_similarity(text[a], text[b], dim=0))
             for row in lists.tolist() for a in row for b in row if a != b]  # fmt: skip
    assert found == pytest.approx(np.mean(pairs), abs=1e-6)


def test_groups_hold_a_third_of_the_events_each_and_equals_stay_together() -> None:
    assert popularity_groups(COUNT.numpy()).tolist() == [0, 1, 1, 2, 2, 2]
    assert popularity_groups(np.array([4, 4, 4, 0])).tolist() == [1, 1, 1, 2]
    assert popularity_groups(np.zeros(3, np.int64)).tolist() == [2, 2, 2]


def test_limits_of_gini_and_divergence() -> None:
    assert gini(torch.tensor([3, 3, 3])) == 0
    assert gini(torch.tensor([0, 0, 0, 8])) == pytest.approx(0.75)
    counts = torch.tensor([[1.0, 0, 0], [2, 2, 2]], dtype=torch.float64)
    assert jensen_shannon(counts, counts).tolist() == [0, 0]
    assert jensen_shannon(counts[:1], torch.tensor([[0.0, 5, 5]], dtype=torch.float64)).tolist() == [pytest.approx(1)]


# ------------------------------------------------------------------------------------------------------------- provenance
def test_a_run_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["setrec", "fit", "--data.name", "a b"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    one = provenance(3)
    assert one["command"] == "setrec fit --data.name 'a b'"
    assert one["seeds"] == {"data": 3, "everything": 7}
    assert set(one["machine"]) >= {"cpu", "cores", "threads", "system"}
    assert "from" not in provenance(3, one)  # the same command: a fit that tests itself
    monkeypatch.setattr(sys, "argv", ["setrec", "refit"])
    two = provenance(3, one)
    assert two["from"] == one
    assert provenance(3, two)["from"] == one
    monkeypatch.setattr(sys, "argv", ["setrec", "test"])
    three = provenance(3, two)
    steps = (three, three["from"], three["from"]["from"])
    assert [step["command"] for step in steps] == ["setrec test", "setrec refit", "setrec fit --data.name 'a b'"]
    json.dumps(three)


def test_the_commit_is_that_of_the_clone_and_of_no_other_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        call = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y", *words]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "x")
    for source, commit in ((tmp_path, git("rev-parse", "HEAD")), (tmp_path / "site-packages", None), (Path("/"), None)):
        source.mkdir(exist_ok=True)
        monkeypatch.setattr(module, "_SOURCE", source.resolve())
        module._git.cache_clear()
        run = provenance(1)
        assert (run["commit"], run["changed"]) == (commit, False)
    (tmp_path / "file").write_text("b")
    monkeypatch.setattr(module, "_SOURCE", tmp_path.resolve())
    module._git.cache_clear()
    assert provenance(1)["changed"] is True
    module._git.cache_clear()


@pytest.mark.slow
def test_results_hold_lists_and_the_commands_that_led_to_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*words: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["setrec", *words])
        run(list(words))
        newest = max((tmp_path / "lightning_logs").iterdir(), key=lambda path: int(path.name.rpartition("_")[2]))
        name = "validation_results.json" if words[0] == "validate" else "results.json"
        return json.loads((newest / name).read_text())

    words = command("fit", tmp_path, *model(), "--trainer.max_epochs=1", "--test_after_fit=true")
    fit = started(*words)
    assert fit["run"]["command"] == shlex.join(["setrec", *words])
    assert "from" not in fit["run"]
    for part in (fit, fit["other_filter"]):
        assert list(part["lists"]) == ["model", *part["baselines"]]
        for row in part["lists"].values():
            assert list(row) == [
                f"{n}@10" for n in ("coverage", "gini", "novelty", "diversity", "popularity", "calibration")
            ]
            assert 0 < row["coverage@10"] <= 1
    popular, own = fit["lists"]["popularity"], fit["lists"]["model"]
    assert popular["popularity@10"] > own["popularity@10"]
    assert popular["novelty@10"] < own["novelty@10"]
    assert "tiny, test: what the first 10 hold, seen items masked" in capsys.readouterr().out
    (checkpoint,) = (tmp_path / "lightning_logs/version_0/checkpoints").glob("epoch-*.ckpt")
    checked = started("validate", f"--ckpt_path={checkpoint}", f"--trainer.default_root_dir={tmp_path}")
    assert checked["run"]["from"]["command"] == fit["run"]["command"]
    assert list(checked["lists"]) == list(fit["lists"])
