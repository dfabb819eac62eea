"""Per-user figures and the fate of every target: files against hand-made tables, and what test and validate leave."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from setrec.cli import run
from setrec.errors import SETRecError
from setrec.evaluation.per_user import deciles, write_parts
from setrec.evaluation.target_hits import TargetHits, expected_hits, list_hits
from setrec.files.hashes import file_hash, read_sealed
from tests.test_cli import at, best, command, fitted, model  # noqa: F401  (a fixture among them)

pytestmark = pytest.mark.slow  # trains or loads models in most tests

INF = float("inf")


def test_deciles_by_hand() -> None:
    count = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0])
    assert deciles(count).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]
    # 10 warm items: seven of count 1 stand in places 0..6, their middle 3.5 is in the fourth tenth; 2 2 at 8; 9 at 9.5
    assert deciles(np.array([1] * 7 + [2, 2, 9, 0])).tolist() == [4] * 7 + [9, 9, 10, 0]
    assert deciles(np.array([5])).tolist() == [6]
    assert deciles(np.zeros(3, np.int64)).tolist() == [0, 0, 0]


def test_list_hits_by_hand() -> None:
    ranked = torch.tensor([[7, 3, 9, 1], [2, 5, -1, -1]])
    target = torch.tensor([[3, 1, 8], [5, -1, -1]])
    hits = list_hits(ranked, target, (1, 2, 4))
    assert hits[0].tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert hits[1, 0].tolist() == [0, 1, 1]


def test_expected_hits_equal_the_mean_over_random_orders() -> None:
    scores = torch.tensor([[4.0, 2, 2, 2, 1, 1, 1, 1, 0, -INF]])
    target = torch.tensor([[0, 2, 5, 8, 9, -1]])
    got = expected_hits(scores, target, (1, 2, 5))[0].tolist()
    # behind 1 better item, 3 tied: the second place holds a given one with 1/3; four tied over places 5..8: place 5 with 1/4
    assert got == [pytest.approx(row) for row in ([1, 1, 1], [0, 1 / 3, 1], [0, 0, 1 / 4], [0, 0, 0], [0, 0, 0])] + [
        pytest.approx([1, 1, 1])  # padding: whatever item 0 has; it is dropped by TargetHits
    ]
    draw = torch.Generator().manual_seed(0)
    found = torch.zeros(5, 3)
    for _ in range(4000):
        order = torch.randperm(10, generator=draw)
        ranked = order[scores[0, order].argsort(descending=True, stable=True)][None, :5]
        ranked = ranked.masked_fill(scores.gather(1, ranked) == -INF, -1)
        found += list_hits(ranked, target[:, :5], (1, 2, 5))[0]
    assert (found / 4000 - torch.tensor(got[:5])).abs().max() < 0.03


def test_target_hits_counts_every_target_once() -> None:
    metric = TargetHits((1, 2))
    target = torch.tensor([[4, 2, 4], [3, -1, -1]])
    hits = list_hits(torch.tensor([[4, 9], [8, 3]]), target, (1, 2))
    metric.update(torch.tensor([11, 5]), target, hits)
    metric.update(torch.tensor([11, 5]), target, hits)  # a padded sampler shows users twice
    table = metric.compute()
    assert table.user.tolist() == [5, 11, 11]
    assert table.item.tolist() == [3, 2, 4]
    assert table.hits.tolist() == [[0, 1], [0, 0], [1, 1]]
    assert len(TargetHits().compute().user) == 0


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run" / "hits.parquet"
    write_parts(path, iter([pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [2]})]))
    assert pl.read_parquet(path)["a"].to_list() == [1, 2]

    def full(one: Path, other: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SETRecError, match="No space left on device"):
        write_parts(path, iter([pl.DataFrame({"a": [3]})]))
    assert pl.read_parquet(path)["a"].to_list() == [1, 2]
    assert os.listdir(path.parent) == ["hits.parquet"]


def check(folder: Path, prefix: str, history_splits: tuple[str, ...], split: str, data: Path) -> dict:
    """The files of a run agree with each other, with results.json and with the prepared data; returns results.json."""
    results = read_sealed(folder / f"{prefix}results.json")
    for name in ("per_user.parquet", "hits.parquet"):
        assert results["files"][prefix + name] == file_hash(folder / (prefix + name))
    users, hits = (pl.read_parquet(folder / f"{prefix}{name}.parquet") for name in ("per_user", "hits"))
    known, items = pl.read_parquet(data / "users.parquet"), pl.read_parquet(data / "items.parquet")
    for filtered, part in ((True, results), (False, results["other_filter"])):
        for method, row in {"model": part["metrics"], **part["baselines"]}.items():
            of = users.filter(method=method, filter_seen=filtered)
            for group in ("all", "warm", "cold"):
                for metric, value in row[group].items():
                    assert of.filter(group=group)[metric].mean() == pytest.approx(value, abs=1e-12)
            # a user's recall is the mean of the hits of the user's targets
            found = hits.filter(method=method, filter_seen=filtered).group_by("user_id").agg(pl.col("hit@10").mean())
            both = of.filter(group="all").join(found, on="user_id", validate="1:1")
            assert len(both) == len(found) == results["protocol"]["users"]["all"]
            assert np.allclose(both["recall@10"], both["hit@10"], atol=1e-6)
    one = users.filter(method="model", filter_seen=True, group="all")
    asked = known.filter(pl.col(split).list.len() > 0)
    assert sorted(one["user_id"]) == sorted(asked["id"])
    length = {u["id"]: sum(len(u[s]) for s in history_splits) for u in known.iter_rows(named=True)}
    assert one["history"].to_list() == [length[u] for u in one["user_id"]]
    targets = {(u["id"], items["id"][i]) for u in asked.iter_rows(named=True) for i in u[split]}
    rows = hits.filter(method="model", filter_seen=True)
    assert len(rows) == len(targets)
    assert set(zip(rows["user_id"], rows["item_id"], strict=True)) == targets
    count = dict(zip(items["id"], items["count"], strict=True))
    assert rows["count"].to_list() == [count[i] for i in rows["item_id"]]
    assert (rows["decile"] == 0).to_list() == (rows["count"] == 0).to_list()
    return results


def test_test_leaves_every_users_figures(fitted: Path) -> None:  # noqa: F811
    folder = fitted / "lightning_logs/version_0"
    results = check(folder, "", ("train", "validation"), "test", fitted / "data/tiny")
    assert results["options"]["model"]["n_sem"] == 2
    assert results["options"]["model"]["backbone"]["init_args"]["shape"] == "nano"
    assert results["options"]["data"]["batch_size"] == 128


def test_validate_compares_with_baselines(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    cli = run(["validate", "--ckpt_path", str(best(fitted)), *at(tmp_path)])
    folder = tmp_path / "lightning_logs/version_0"
    results = check(folder, "validation_", ("train",), "validation", fitted / "data/tiny")
    assert results["protocol"]["split"] == "validation"
    assert results["protocol"]["history"].startswith("train items")
    assert "counted in train;" in results["protocol"]["baselines"]["item_cf"]
    assert float(cli.trainer.callback_metrics["recall@10"]) == pytest.approx(results["metrics"]["all"]["recall@10"])
    assert not (folder / "results.json").exists()  # test's figures keep their own name
    said = capsys.readouterr().out
    assert "tiny, validation: seen items masked" in said
    assert f"results: {folder / 'validation_results.json'}" in said


def test_fit_alone_compares_nothing(tmp_path: Path) -> None:
    run([*command("fit", tmp_path, "--trainer.max_epochs=1"), *model()])
    assert not list(tmp_path.rglob("*results.json"))
    assert not list(tmp_path.rglob("*per_user.parquet"))
