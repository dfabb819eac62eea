"""report on small hand-made runs: every figure worked out apart from it, and what it refuses."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from setrec.cli import main
from setrec.commands.report import report
from setrec.errors import ConfigError, DataError
from setrec.evaluation.results import write_results
from setrec.files.hashes import file_hash
from setrec.report.runs import flat_options, option_differences
from setrec.report.study import buckets

USERS = [f"u{i}" for i in range(8)]
HISTORY = [3, 5, 6, 10, 11, 30, 60, 4]
TARGETS = [  # user, item, count in training, decile
    ("u0", "a", 0, 0), ("u0", "b", 9, 10), ("u1", "b", 9, 10), ("u2", "c", 2, 3), ("u3", "c", 2, 3), ("u4", "b", 9, 10),
    ("u5", "d", 3, 5), ("u6", "a", 0, 0), ("u7", "c", 2, 3), ("u7", "d", 3, 5),
]  # fmt: skip
METRICS = [f"{kind}@{k}" for kind in ("recall", "ndcg", "precision", "mrr") for k in (5, 10, 20)]
POPULARITY = [0.0, 0.5, 0.0, 0.25, 0.0, 0.0, 0.1, 0.0]


def write_run(folder: Path, seed: int, ndcg: list[float], hits: list[float], **change: Any) -> Path:
    """A test run in which every metric of every group is `ndcg`, a user each, and half of it without masking."""
    users = change.get("users", USERS)
    targets = change.get("targets", TARGETS)
    rows, found = [], []
    for filtered in (True, False):
        for method, values in (("model", ndcg), ("popularity", change.get("popularity", POPULARITY))):
            for group in ("all", "warm", "cold"):
                who = [u for u in range(len(users)) if group != "cold" or u in change.get("cold", (0, 6))]
                for u in reversed(who):  # the order of rows must not matter
                    row: dict[str, Any] = {
                        "user_id": users[u],
                        "method": method,
                        "filter_seen": filtered,
                        "group": group,
                    }
                    row |= {"history": HISTORY[u], "targets": 1}
                    rows.append(row | dict.fromkeys(METRICS, values[u] * (1 if filtered else 0.5)))
            for (user, item, count, decile), hit in zip(
                targets, hits if method == "model" else [0.5] * 10, strict=True
            ):
                entry = {"user_id": user, "item_id": item, "count": count, "decile": decile, "method": method}
                found.append(entry | {"filter_seen": filtered} | dict.fromkeys(("hit@5", "hit@10", "hit@20"), hit))
    folder.mkdir(parents=True)
    pl.DataFrame(rows).write_parquet(folder / "per_user.parquet")
    pl.DataFrame(found).write_parquet(folder / "hits.parquet")
    protocol = {
        "dataset": "hand", "method": change.get("method", "SETRec"), "filter_seen": True, "split": "test", "seed": seed,
        "beta": 0.5, "users": {"all": 8, "warm": 8, "cold": 2}, "candidates": {"all": 9, "warm": 7, "cold": 2},
        "cutoffs": [5, 10, 20], "history": "h", "target": "t", "cold": "c", "ties": "ti", "mean": "m",
    } | change.get("protocol", {})  # fmt: skip
    options = {"model": {"lr": 0.1, "n_cf": 1, "top_k": seed}, "data": {"seed": seed, "root": str(folder)}}
    options["model"] |= change.get("options", {})
    results = {
        "protocol": protocol,
        "metrics": {"all": dict.fromkeys(METRICS, float(np.mean(ndcg)))},
        "options": options,
    }
    if "lists" in change:
        results |= {"lists": change["lists"], "other_filter": {"lists": {"model": {"gini@10": 0.75}}}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


SEEDS = {
    "best": [
        ([1.0, 0.5, 0.2, 0.0, 0.4, 0.3, 0.9, 0.1], [1, 1, 1, 0, 0, 1, 0, 1, 0, 0]),
        ([0.8, 0.7, 0.2, 0.2, 0.0, 0.3, 0.5, 0.1], [0, 1, 1, 1, 0, 1, 0, 1, 0, 0]),
    ],
    "paper": [
        ([0.2, 0.5, 0.0, 0.0, 0.1, 0.3, 0.2, 0.0], [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]),
        ([0.4, 0.1, 0.0, 0.1, 0.3, 0.3, 0.0, 0.2], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    ],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The folder of a report on two runs of two seeds, its JSON and what it printed."""
    folder = tmp_path_factory.mktemp("report")
    for name, seeds in SEEDS.items():
        for i, (ndcg, hits) in enumerate(seeds):
            write_run(folder / f"{name}_{i}", i, ndcg, hits, options={"n_cf": 0} if name == "paper" else {})
    words = [
        "report",
        f"--runs.best={folder}/best_*",
        f"--runs.paper=[{folder}/paper_0, {folder}/paper_1/results.json]",
    ]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main([*words, f"--output={folder / 'out'}", "--resamples=2000", "--permutations=1000"])
    return folder, json.loads((folder / "out/report.json").read_text()), out.getvalue()


def only(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def test_means_and_deviations_over_seeds(made: tuple[Path, dict[str, Any], str]) -> None:
    figures = made[1]["figures"]
    for name, seeds in SEEDS.items():
        for filtered, scale in ((True, 1), (False, 0.5)):
            for group, who in (("all", range(8)), ("cold", (0, 6))):
                means = [scale * np.mean([ndcg[u] for u in who]) for ndcg, _ in seeds]
                row = only(figures, method=name, filter_seen=filtered, group=group, metric="ndcg@10")
                assert row["seeds"] == pytest.approx(means)
                assert row["mean"] == pytest.approx(sum(means) / 2)
                assert row["sd"] == pytest.approx(
                    abs(means[0] - means[1]) / np.sqrt(2)
                )  # of two, one degree of freedom
                assert row["low"] <= row["mean"] <= row["high"]
    baseline = only(figures, method="popularity", filter_seen=True, group="all", metric="recall@10")
    assert baseline["mean"] == pytest.approx(np.mean(POPULARITY))
    assert baseline["sd"] is None
    row = only(figures, method="best", filter_seen=True, group="all", metric="ndcg@10")
    values = np.mean([ndcg for ndcg, _ in SEEDS["best"]], axis=0)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(0))
    interval = expected.confidence_interval
    assert [row["low"], row["high"]] == pytest.approx([interval.low, interval.high], abs=0.03)


def test_paired_tests_are_scipys(made: tuple[Path, dict[str, Any], str]) -> None:
    tests = made[1]["tests"]
    mean = {name: np.mean([ndcg for ndcg, _ in seeds], axis=0) for name, seeds in SEEDS.items()}
    mean["popularity"] = np.array(POPULARITY)
    for one, other in (("best", "popularity"), ("paper", "popularity"), ("paper", "best")):
        row = only(tests, run=one, against=other, group="all")
        difference = mean[one] - mean[other]
        assert row["difference"] == pytest.approx(difference.mean())
        assert (row["better"], row["worse"]) == ((difference > 1e-9).sum(), (difference < -1e-9).sum())
        exact = stats.permutation_test(
            (mean[one], mean[other]),
            lambda a, b, axis: (a - b).mean(axis),
            permutation_type="samples",
            n_resamples=np.inf,
        )
        assert row["p"] == pytest.approx(exact.pvalue)
        clean = difference[np.abs(difference) > 1e-9]
        assert row["p_wilcoxon"] == pytest.approx(stats.wilcoxon(clean).pvalue)
        assert row["low"] <= row["difference"] <= row["high"]
    assert len(tests) == 9  # three pairs in three groups
    ordered = sorted(tests, key=lambda row: row["p"])
    steps = np.maximum.accumulate([min(row["p"] * (9 - i), 1) for i, row in enumerate(ordered)])
    assert [row["p_holm"] for row in ordered] == pytest.approx(steps)


def test_popularity_deciles_by_hand(made: tuple[Path, dict[str, Any], str]) -> None:
    rows = made[1]["popularity"]
    assert {row["decile"] for row in rows} == {0, 3, 5, 10}
    for decile, places in ((0, (0, 7)), (3, (3, 4, 8)), (5, (6, 9)), (10, (1, 2, 5))):
        row = only(rows, method="best", decile=decile)
        hits = [[hits[i] for i in places] for _, hits in SEEDS["best"]]
        assert row["recall"] == pytest.approx(np.mean(hits))
        assert row["targets"] == len(places)
        assert (row["least"], row["most"]) == (TARGETS[places[0]][2],) * 2
        assert only(rows, method="popularity", decile=decile)["recall"] == 0.5


def test_history_buckets_by_hand(made: tuple[Path, dict[str, Any], str]) -> None:
    assert buckets((5, 10)) == [(0, 5), (6, 10), (11, None)]
    rows = [row for row in made[1]["history"] if row["metric"] == "ndcg@10"]
    mean = np.mean([ndcg for ndcg, _ in SEEDS["paper"]], axis=0)
    who = {0: [0, 1, 7], 6: [2, 3], 11: [4], 21: [5], 51: [6]}
    assert sorted({row["from"] for row in rows}) == sorted(who)
    for start, users in who.items():
        row = only(rows, method="paper", **{"from": start})
        assert row["users"] == len(users)
        assert row["mean"] == pytest.approx(mean[users].mean())


def test_what_runs_change_and_what_is_printed(made: tuple[Path, dict[str, Any], str]) -> None:
    folder, report_json, said = made
    best, paper = report_json["runs"]
    assert best["changed"] == {}
    assert paper["changed"] == {"model.n_cf": 0}
    assert paper["seeds"] == [0, 1]
    assert "n_cf 0" in said
    for title in (
        "seen items masked",
        "seen items not masked",
        "by popularity",
        "by length of history",
        "− popularity",
    ):
        assert title in said
    assert "[interval over users]" in said
    assert (folder / "out/report.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["report.json", "report.png"]


def test_the_same_twice_is_the_same(made: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    folder, report_json, _ = made
    runs: dict[str, list[str] | str] = {"best": f"{folder}/best_*", "paper": f"{folder}/paper_*"}
    path = report(runs, str(tmp_path), resamples=2000, permutations=1000)
    assert json.loads(path.read_text()) == report_json


def two(folder: Path, **change: Any) -> dict[str, list[str] | str]:
    """Two runs of one seed, the second changed."""
    write_run(folder / "a", 0, *SEEDS["best"][0])
    write_run(folder / "b", 1, *SEEDS["paper"][0], **change)
    return {"a": str(folder / "a"), "b": str(folder / "b")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"users": [*USERS[:7], "stranger"], "targets": [*TARGETS[:8], ("v", "c", 2, 3), ("v", "d", 3, 5)]},
            "stranger",
        ),
        ({"protocol": {"split": "validation"}}, "split is 'validation' in the first and 'test' in the second"),
        ({"protocol": {"dataset": "other", "candidates": {"all": 5}}}, r"\(other\).*candidates"),
        ({"targets": [*TARGETS[:9], ("u7", "z", 3, 5)]}, "targets"),
        ({"targets": [*TARGETS[:9], ("u7", "d", 4, 5)]}, "occur in training"),
    ],
)
def test_runs_of_other_users_or_targets_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        report(two(tmp_path, **change), str(tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_the_lists_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, (ndcg, hits) in enumerate(SEEDS["best"]):
        lists = {"model": {"coverage@10": 0.2 + 0.1 * i, "gini@10": 0.5}, "popularity": {"coverage@10": 0.01}}
        write_run(tmp_path / f"best_{i}", i, ndcg, hits, lists=lists)
    write_run(tmp_path / "old", 0, *SEEDS["paper"][0])  # results of a version without these figures
    path = report(
        {"best": [f"{tmp_path}/best_*"], "old": [f"{tmp_path}/old"]},
        str(tmp_path / "out"),
        resamples=100,
        permutations=100,
    )
    rows = json.loads(path.read_text())["lists"]
    row = only(rows, method="best", metric="coverage@10", filter_seen=True)
    assert (row["mean"], row["seeds"]) == (pytest.approx(0.25), [0.2, pytest.approx(0.3)])
    assert row["sd"] == pytest.approx(np.std([0.2, 0.3], ddof=1))
    assert only(rows, method="popularity", metric="coverage@10")["sd"] is None
    assert only(rows, method="best", metric="gini@10", filter_seen=False)["mean"] == 0.75
    assert not [row for row in rows if row["method"] == "old"]
    text = capsys.readouterr().out
    assert "coverage@10" in text
    assert "0.25 ± 0.071" in text


def test_one_run_tested_twice_is_not_two_seeds(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, 0, *SEEDS["best"][0])
    with pytest.raises(ConfigError, match="tested twice, is not two seeds"):
        report({"best": str(tmp_path / "*")}, str(tmp_path / "out"))


def test_seeds_share_their_options(tmp_path: Path) -> None:
    two(tmp_path, options={"lr": 0.2})
    with pytest.raises(ConfigError, match=r"model\.lr is 0\.1 in the first and 0\.2 in the second"):
        report({"best": str(tmp_path)}, str(tmp_path / "out"))


def test_a_baseline_that_gives_other_figures_has_a_row_of_its_own(tmp_path: Path) -> None:
    runs = two(tmp_path, popularity=[0.3] * 8)
    made = json.loads(report(runs, str(tmp_path / "out"), resamples=200, permutations=200).read_text())
    assert (
        only(made["figures"], method="popularity [b]", filter_seen=True, group="all", metric="ndcg@10")["mean"] == 0.3
    )


def test_a_group_that_nobody_has_a_target_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 0, *SEEDS["best"][0], cold=(), protocol={"users": {"all": 8, "warm": 8, "cold": 0}})
    path = report(
        {"only": str(tmp_path / "a")}, str(tmp_path / "out"), filter_seen=False, resamples=200, permutations=200
    )
    made = json.loads(path.read_text())
    assert {row["group"] for row in made["figures"]} == {row["group"] for row in made["tests"]} == {"all", "warm"}
    half = np.mean(SEEDS["best"][0][0]) / 2 - np.mean(POPULARITY) / 2  # not masked
    assert only(made["tests"], group="all")["difference"] == pytest.approx(half)
    assert (tmp_path / "out/report.png").exists()
    assert "0 users cold" in capsys.readouterr().out


@pytest.mark.parametrize(("which", "expected"), [("every", 3), ("first", 2), ("none", 1)])
def test_fewer_tests(which: Any, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setrec.commands.report.draw_report", lambda made, path: path)
    path = report(two(tmp_path), str(tmp_path / "out"), against_baselines=which, resamples=100, permutations=100)
    tests = json.loads(path.read_text())["tests"]
    assert len({(row["run"], row["against"]) for row in tests}) == expected
    assert {("b", "a")} <= {(row["run"], row["against"]) for row in tests}


@pytest.mark.parametrize("name", ["results.json", "hits.parquet"])
def test_files_that_were_changed_since(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "a", 0, *SEEDS["best"][0])
    results = json.loads((folder / "results.json").read_text())
    hashes = {file: file_hash(folder / file) for file in ("hits.parquet", "per_user.parquet")}
    write_results(folder / "results.json", results | {"files": hashes})
    report({"best": str(folder)}, str(tmp_path / "out"), resamples=100, permutations=100)
    if name == "results.json":
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"beta": 0.5', '"beta": 0.6'))
    else:
        table = pl.read_parquet(folder / name)
        table.with_columns(pl.col("hit@10") * 0).write_parquet(folder / name)
    with pytest.raises(DataError, match="damaged .*was changed after it was written.*: test again"):
        report({"best": str(folder)}, str(tmp_path / "out"))


def test_files_that_are_missing_or_of_another_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", 0, *SEEDS["best"][0])
    other = write_run(tmp_path / "b", 1, *SEEDS["paper"][0])
    (other / "per_user.parquet").rename(folder / "per_user.parquet")
    with pytest.raises(DataError, match="different runs"):
        report({"best": str(folder)}, str(tmp_path / "out"))
    with pytest.raises(DataError, match="per_user.parquet is missing"):
        report({"best": str(other)}, str(tmp_path / "out"))
    (other / "per_user.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="damaged"):
        report({"best": str(other)}, str(tmp_path / "out"))


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        report({"best": str(tmp_path / "nowhere*")})
    with pytest.raises(ConfigError, match=r"no results\.json in it.*setrec test"):
        report({"best": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"validate"):
        report({"best": str(tmp_path)}, split="validation")
    with pytest.raises(ConfigError, match="needs runs"):
        report({})
    write_run(tmp_path / "a", 0, *SEEDS["best"][0])
    with pytest.raises(ConfigError, match="hold no recall@7, but recall@5"):
        report({"best": str(tmp_path / "a")}, metrics=["recall@7"])
    with pytest.raises(ConfigError, match="another name"):
        report({"item CF": str(tmp_path / "a")})


def test_seeds_have_checkpoints_and_folders_of_their_own() -> None:
    one, two = (
        {
            "model": {"start_from": f"run_{seed}/last.ckpt"},
            "data": {"cf": [{"init_args": {"file": f"/{seed}/vectors.npy"}}]},
        }
        for seed in (1, 2)
    )
    assert option_differences(flat_options(one), flat_options(two)) == {}
    assert option_differences(flat_options(one), flat_options({**two, "model": {"start_from": None}})) == {
        "model.start_from": ("given", None)
    }
    other = {**two, "data": {"cf": [{"init_args": {"file": "others.npy"}}]}}
    assert list(option_differences(flat_options(one), flat_options(other))) == ["data.cf"]


def test_options_as_flags() -> None:
    one = {
        "model": {
            "backbone": {"class_path": "setrec.backbones.T5Backbone", "init_args": {"mask": "set"}},
            "lr": 1,
            "top_k": 5,
        }
    }
    two = {
        "model": {"backbone": {"class_path": "setrec.backbones.T5Backbone", "init_args": {"mask": "other"}}, "lr": 1}
    }
    assert flat_options(one) == {
        "model.backbone": "setrec.backbones.T5Backbone",
        "model.backbone.mask": "set",
        "model.lr": 1,
    }
    assert option_differences(flat_options(one), flat_options(two)) == {"model.backbone.mask": ("set", "other")}
