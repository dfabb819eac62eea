"""What commit 60bf1f7 wrote still loads and gives the same answers; tests/files/old/README.md says how it was made."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from setrec import Recommender
from setrec.cli import run

pytestmark = pytest.mark.slow  # trains or loads models in most tests

FILES = Path(__file__).parent / "files"
EXPECTED = json.loads((FILES / "old/expected.json").read_text())
SHORT = [
    "--trainer.default_root_dir=run",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand in a copy of the folder where everything was made. Its manifest stays as it is: nothing is prepared again."""
    shutil.copytree(FILES / "old", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    made = created()
    yield
    assert created() == made


def created() -> str:
    return json.loads(Path("data/shop/manifest.json").read_text())["created"]


def raw(there: bool) -> list[str]:
    """With the raw files where they were (the checkpoints say --data.raw=tests/files), or without any."""
    if not there:
        return ["--data.raw=null"]
    for name in ("events.csv", "items.csv"):
        Path("tests/files").mkdir(parents=True, exist_ok=True)
        shutil.copy(FILES / name, "tests/files")
    return []


def near(wanted: Any, scale: float, within: float = 1e-5) -> Any:
    return pytest.approx(wanted, rel=0, abs=within * scale)


# Items added by this version: n-grams count as they did before the items came, and the old version counted them anew.
WITH_ADDED = 2e-2


def check(answers: list, expected: list[dict[str, Any]], within: float = 1e-5) -> None:
    """The same items with the same scores, for the same reasons."""
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer.unknown == wanted["unknown"]
        scale = max(abs(item["score"]) for item in wanted["items"])
        found, before = [item.id for item in answer.items], {item["id"]: item for item in wanted["items"]}
        if within == WITH_ADDED:  # neighbours may change places, and one may leave
            assert len(set(found) & set(before)) >= len(before) - 1
        else:
            assert found == list(before)
        for item in answer.items:
            if item.id not in before:
                continue
            one = before[item.id]
            assert item.score == near(one["score"], scale, within)
            assert item.warm == one["warm"]
            assert item.title == one.get("title", item.title)
            added = item.why.parts.pop("transitions", 0.0)  # a part that came later
            assert added == 0
            assert item.why.parts == near(one["parts"], max(scale, *map(abs, one["parts"].values())), within)
            for kind in ("nearest_text", "nearest_cf"):
                if kind in one:
                    nearest = getattr(item.why, kind)
                    assert [own for own, _ in nearest] == [own for own, _ in one[kind]]
                    assert [cosine for _, cosine in nearest] == near([cosine for _, cosine in one[kind]], 1)


@pytest.mark.parametrize("name", list(EXPECTED["recommend"]))
def test_recommendations(name: str) -> None:
    expected = EXPECTED["recommend"][name]
    if "items-" not in name:
        without_versions()
    recommender = Recommender.load(name)
    info = recommender.info()
    for key, value in expected["info"].items():
        assert (info["model"][key] if key == "label" else info[key]) == value
    for beta, answers in expected["answers"].items():
        weight = None if beta == "default" else float(beta)
        check(recommender.recommend(EXPECTED["histories"], k=EXPECTED["k"], explain=True, beta=weight), answers)
    recommender.add_items([EXPECTED["more"]])  # the encoder of the training is found, too
    within = 1e-5 if "items-" in name else WITH_ADDED  # a version stays as it began
    check(recommender.recommend(EXPECTED["after"], k=EXPECTED["k"], explain=True), expected["after"], within)


def without_versions() -> None:
    """A checkpoint starts from the newest version beside it; 0.2.0 loaded it as it was trained."""
    for folder in Path().glob("*.items-*"):
        shutil.rmtree(folder)


def test_the_data_may_lie_elsewhere() -> None:
    without_versions()
    Path("data").rename("moved")
    recommender = Recommender.load("t5.ckpt", data="moved/shop")
    Path("moved").rename("data")
    answers = recommender.recommend(EXPECTED["histories"], k=EXPECTED["k"], explain=True)
    check(answers, EXPECTED["recommend"]["t5.ckpt"]["answers"]["default"])


def test_another_version_goes_on_from_the_old_one() -> None:
    recommender = Recommender.load("t5.items-001")
    recommender.add_items([EXPECTED["more"]])
    saved = recommender.save()
    assert saved.name == "t5.items-002"
    answers = Recommender.load(saved).recommend(EXPECTED["after"], k=EXPECTED["k"], explain=True)
    check(answers, EXPECTED["recommend"]["t5.items-001"]["after"])


@pytest.mark.parametrize("name", list(EXPECTED["predict"]))
def test_predictions(name: str) -> None:
    run(
        [
            "predict",
            "--ckpt_path",
            name,
            *SHORT,
            *raw(False),
            f"--model.top_k={EXPECTED['k']}",
            "--predictions.output=out.parquet",
        ]
    )
    table = pl.read_parquet("out.parquet")
    expected = EXPECTED["predict"][name]
    rows = [(user, item) for user, items in expected.items() for item, _ in items]
    assert table.select("user_id", "item_id").rows() == rows
    scores = [score for items in expected.values() for _, score in items]
    assert table["score"].to_list() == near(scores, max(map(abs, scores)))


def renamed(name: str) -> str:
    """What this version calls a baseline or a weight that 60bf1f7 called otherwise."""
    return {"item_cf_letters": "item_cf_ngrams", "cold": "cold_text"}.get(name, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(EXPECTED["test"]))
@pytest.mark.parametrize("with_raw", [True, False])
def test_figures_of_the_command_test(name: str, with_raw: bool) -> None:
    run(["test", "--ckpt_path", name, *SHORT, *raw(with_raw)])
    (path,) = Path("run").rglob("results.json")
    results = json.loads(path.read_text())
    expected = EXPECTED["test"][name]
    weights = {renamed(weight): value for weight, value in expected["weights"].items()}
    found = results["protocol"]["weights"]
    assert found.pop("transitions") == found.pop("inferred") == 0  # weights that came later
    assert {"beta": results["beta"], **found} == near(weights, 1)
    for found, wanted in ((results, expected["seen_masked"]), (results["other_filter"], expected["not_masked"])):
        rows = {"model": found["metrics"], **found["baselines"]}
        assert rows.keys() == {renamed(method) for method in wanted} | {"transitions"}  # a later row
        for method, groups in wanted.items():
            for group, row in groups.items():
                assert {at: rows[renamed(method)][group][at] for at in row} == near(row, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5.ckpt", "decoder.ckpt", "sasrec.ckpt"])
def test_a_fit_goes_on_from_an_old_checkpoint(name: str) -> None:
    fit = run(["fit", "--ckpt_path", name, *SHORT, *raw(True), "--trainer.max_epochs=5"])
    assert fit.trainer.current_epoch == 5
    assert fit.trainer.global_step == 5 * 9  # not only the epochs after the checkpoint


@pytest.mark.slow
def test_a_fit_repeats_from_an_old_configuration() -> None:
    """config.yaml lies in the run's folder and names classes as they were."""
    fit = run(["fit", "--config=config.yaml", *SHORT, *raw(True), "--trainer.max_epochs=1"])
    assert fit.trainer.global_step == 9
