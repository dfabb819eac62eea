"""results.json, the printed table and the picture of beta."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from setrec.errors import SETRecError
from setrec.evaluation import results as module
from setrec.evaluation.beta_curve import beta_curve
from setrec.evaluation.metrics import RankingMetrics, RankingTable
from setrec.evaluation.results import Protocol, make_results, print_table, write_results
from setrec.files.hashes import read_sealed
from setrec.scoring.topk import top_groups

WARM = torch.tensor([True] * 20 + [False] * 5)
NAMES = ("model", "popularity", "item_cf", "text", "item_cf_text")


def table_of(seed: int, cold: bool = True) -> RankingTable:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(50, 25, generator=draw)
    target = torch.randint(-1, 25 if cold else 20, (50, 3), generator=draw)
    metric = RankingMetrics()
    metric.update(torch.arange(50), top_groups(scores, WARM, 20), target, WARM)
    return metric.compute()


def results_of(filter_seen: bool = True, cold: bool = True) -> dict[str, Any]:
    tables = {f: {name: table_of(i + 10 * f, cold=cold) for i, name in enumerate(NAMES)} for f in (True, False)}
    protocol = Protocol(
        dataset="toy",
        method="SETRec",
        filter_seen=filter_seen,
        users=tables[True]["model"].n_users(),
        candidates={"all": 25, "warm": 20, "cold": 5},
        max_history=50,
        beta=0.7,
        cutoffs=(5, 10, 20),
        baselines={"popularity": "occurrences in train"},
        seed=3,
    )
    return make_results(protocol, tables)


@pytest.mark.parametrize("filter_seen", [True, False])
def test_shape_of_results_json(tmp_path: Path, filter_seen: bool) -> None:
    path = write_results(tmp_path / "run" / "results.json", results_of(filter_seen))
    read = json.loads(path.read_text())
    assert list(read) == ["protocol", "beta", "metrics", "baselines", "other_filter", "sha256"]
    assert read["beta"] == 0.7
    assert read["protocol"]["filter_seen"] is filter_seen
    assert read["protocol"]["versions"]["torch"] == torch.__version__
    assert read["other_filter"]["filter_seen"] is not filter_seen
    names = {f"{kind}@{k}" for kind in ("recall", "ndcg", "precision", "mrr") for k in (5, 10, 20)}
    for part in (read, read["other_filter"]):
        assert list(part["baselines"]) == list(NAMES[1:])
        for row in (part["metrics"], *part["baselines"].values()):
            assert list(row) == ["all", "warm", "cold"]
            assert all(set(row[group]) == names for group in row)
    main, other = 10 * filter_seen, 10 * (not filter_seen)  # which tables stand where
    assert read["metrics"] == table_of(main).table()
    assert read["other_filter"]["baselines"]["text"] == table_of(3 + other).table()


def test_a_changed_figure_is_refused(tmp_path: Path) -> None:
    path = write_results(tmp_path / "results.json", results_of(True))
    whole = path.read_text()
    assert read_sealed(path)["beta"] == 0.7
    for place in [i for i, letter in enumerate(whole) if letter.isdigit()][::7]:
        changed = whole[:place] + str((int(whole[place]) + 1) % 10) + whole[place + 1 :]
        if json.loads(changed) == json.loads(whole):  # the 17th digit of a figure
            continue
        path.write_text(changed)
        with pytest.raises(ValueError, match="changed after it was written"):
            read_sealed(path)
    path.write_text('{"beta": 0.7}')  # an earlier version wrote no hash
    assert read_sealed(path) == {"beta": 0.7}


def test_write_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_results(path, {"beta": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_results(path, {"beta": float("nan")})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SETRecError, match="No space left on device"):
        write_results(path, {"beta": 2})
    assert read_sealed(path)["beta"] == 1
    assert os.listdir(tmp_path) == ["results.json"]


def test_printed_table() -> None:
    results = results_of()
    out = io.StringIO()
    print_table(json.loads(json.dumps(results)), out)  # as read back from the file
    text = out.getvalue()
    masked, unmasked, protocol = text.split("\n\n")
    assert "seen items masked" in masked
    assert "seen items not masked" in unmasked
    lines = masked.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line[:16].strip(): line[16:].split() for line in lines[4:-1]}
    assert list(rows) == ["SETRec", "popularity", "item CF", "text", "item CF + text"]
    columns = [(g, m) for g in ("all", "warm", "cold") for m in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")]
    by_label = dict(zip(rows, (results["metrics"], *results["baselines"].values()), strict=True))
    for i, (group, name) in enumerate(columns):
        best = max(row[group][name] for row in by_label.values())
        for label, row in by_label.items():
            cell = rows[label][i]
            assert float(cell.strip("*")) == pytest.approx(row[group][name], abs=5.1e-5)
            assert cell.endswith("*") == (row[group][name] == best)
    for word in ("toy", "absent from the training split", "beta 0.7", "seed 3", "occurrences in train", "last 50"):
        assert word in protocol


def test_a_group_without_users_prints_dashes() -> None:
    out = io.StringIO()
    print_table(results_of(cold=False), out)
    row = next(line for line in out.getvalue().splitlines() if line.startswith("SETRec"))
    assert row.split()[-4:] == ["-"] * 4
    assert "cold 0 users" in out.getvalue()


def test_short_numbers() -> None:
    assert [module._short(value) for value in (0.0, 0.01894, 0.99999, 1.0)] == [".0000", ".0189", "1.000", "1.000"]


def test_beta_curve() -> None:
    recall = {0.0: 0.1, 0.5: 0.3, 1.0: 0.2}
    figure = beta_curve(recall, 0.5)
    curve, chosen = figure.axes[0].lines
    assert dict(zip(curve.get_xdata(), curve.get_ydata(), strict=True)) == recall
    assert set(chosen.get_xdata()) == {0.5}
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")
