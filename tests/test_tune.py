"""tune on a tiny world: the study goes on, is shared, ends with its budget, and never sees the test split."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from setrec.cli import main, run
from setrec.commands import tune as module
from setrec.commands.fit import command_line
from setrec.commands.space import Choices, Range, read_space
from setrec.commands.tune import OptionsOnly, nested, options_of, tune
from setrec.errors import ConfigError, SETRecError
from setrec.evaluation.results import write_results
from setrec.report.tuning import draw_tuning
from setrec.trainer.ranking import RankingModule
from setrec.trainer.trial import TrialCallback
from tests.test_ablate import write_config

pytest.importorskip("optuna", reason='pip install "setrec[tune]"')

SPACE = {
    "model.lr": {"low": "1e-4", "high": 0.01, "log": True},
    "model.n_sem": {"low": 1, "high": 3},
    "model.backbone.dropout": {"low": 0.0, "high": 0.4, "step": 0.1},
    "model.negatives": ["all", "warm"],
    "model.sampled": [None, 20],
}


def write_space(folder: Path, **change: Any) -> str:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(SPACE | change))
    return str(path)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"low": 1}, "give {low: ..., high: ...}"),
        ({"low": 1, "high": 2, "lgo": True}, "give {low: ..., high: ...}"),
        ({"low": 3, "high": 2}, "low is 3 and high is 2"),
        ({"low": 0, "high": 2, "log": True}, "low must be above 0"),
        ({"low": 1, "high": 2, "log": "yes!"}, "log is 'yes!'"),
        ({"low": 1, "high": 2, "step": 0}, "step is 0"),
        ({"low": "small", "high": 2}, "'small' is no number"),
        ([], "the list is empty"),
        (3, "give {low: ..., high: ...}"),
    ],
)
def test_a_wrong_space_is_one_sentence(entry: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model.x: .*") as error:
        read_space(write_space(tmp_path, **{"model.x": entry}))
    assert said in str(error.value)


def test_a_space_holds_whole_numbers_numbers_and_choices(tmp_path: Path) -> None:
    space = read_space(write_space(tmp_path))
    assert space["model.lr"] == Range(1e-4, 0.01, log=True)
    assert not space["model.lr"].whole  # type: ignore[union-attr]
    assert space["model.n_sem"].whole  # type: ignore[union-attr]
    assert space["model.sampled"] == Choices(("null", "20"))
    for text in ("", "- 1\n", "a: [\n"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"--space .*bad\.yaml"):
            read_space(str(tmp_path / "bad.yaml"))


def test_the_best_options_are_a_configuration(tmp_path: Path) -> None:
    """Options of a class stand in its init_args, and what is not searched stays as it was."""
    config = write_config(tmp_path)
    values = {"model.lr": 0.5, "model.backbone.dropout": 0.25, "model.sampled": 7, "data.batch_size": 64}
    space = read_space(write_space(tmp_path))
    base = options_of([f"--config={config}"], space)
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(nested(values, base)))
    found, meant = (
        command_line(words, run=False, kind=OptionsOnly).config.as_dict()
        for words in (
            [f"--config={config}", f"--config={tmp_path / 'best.yaml'}"],
            [f"--config={config}", *(f"--{name}={value}" for name, value in values.items())],
        )
    )
    del found["config"], meant["config"]
    assert found == meant
    assert found["model"]["backbone"]["init_args"]["shape"] == "nano"


def test_an_option_that_does_not_exist_is_refused_before_any_fit(tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    with pytest.raises(ConfigError, match="lrr"):
        tune(config, write_space(tmp_path, **{"model.lrr": [1]}), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="both must be above 0"):
        tune(config, write_space(tmp_path), str(tmp_path / "out"), budget_minutes=0)
    with pytest.raises(ConfigError, match="tune takes its figure from the checkpoints"):
        tune(config, write_space(tmp_path), str(tmp_path / "out"), fit=["--trainer.enable_checkpointing=false"])


def test_a_trial_ends_early_only_when_asked() -> None:
    class Stub:
        def __init__(self, **values: Any) -> None:
            self.__dict__ |= values

    told: list[tuple[float, int]] = []
    trial = Stub(report=lambda value, step: told.append((value, step)), should_prune=lambda: len(told) > 1)
    trainer: Any = Stub(sanity_checking=False, callback_metrics={"recall@10": 0.5}, current_epoch=0, should_stop=False)
    callback = TrialCallback(trial, "recall@10", lambda: True)
    callback.on_validation_end(trainer, trainer)
    callback.on_train_batch_end(trainer, trainer, None, None, 0)
    assert (callback.ended, trainer.should_stop, told) == (None, False, [(0.5, 0)])
    callback.on_validation_end(trainer, trainer)
    assert (callback.ended, trainer.should_stop) == ("pruned", True)
    trainer.should_stop = False
    callback = TrialCallback(trial, "recall@10", lambda: False)
    callback.on_train_batch_end(trainer, trainer, None, None, 0)
    assert (callback.ended, trainer.should_stop) == ("budget", True)


@pytest.mark.slow
@pytest.mark.parametrize("storage", [None, "sqlite:///{}/study.db"])
def test_a_study_goes_on_and_its_best_is_fitted(
    storage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two trials, then one more in the same study; the first is the configuration as it is; nothing is tested."""

    def never(*_: Any) -> None:
        raise AssertionError("the test split was used")

    config, out = str(write_config(tmp_path)), tmp_path / "out"
    space = write_space(tmp_path, **{"model.lr": {"low": 1e-4, "high": 1.0, "log": True}})
    words = ["tune", "--config", config, "--space", space, f"--output={out}", "--study=s"]
    words += [] if storage is None else [f"--storage={storage.format(tmp_path)}"]
    with monkeypatch.context() as patch:
        patch.setattr(RankingModule, "on_test_epoch_start", never)
        main([*words, "--trials=2", "--", "--test_after_fit=true"])
        assert "trials: 2 finished, 0 ended early, 0 failed" in capsys.readouterr().out
        main([*words, "--trials=1", "--", "--test_after_fit=true"])
        said = capsys.readouterr().out
        assert "trials: 3 finished, 0 ended early, 0 failed" in said
        assert "what mattered for recall@10" in said
        with pytest.raises(SystemExit):
            main([*words, "--trials=1", "--", "--model.alpha=0.1"])
        assert "has another space, configuration or flags" in capsys.readouterr().err
    content = json.loads((out / "tune.json").read_text())
    assert [trial["number"] for trial in content["trials"]] == [0, 1, 2]
    first = content["trials"][0]["options"]
    assert (first["model.n_sem"], first["model.negatives"], first["model.sampled"]) == (2, "all", None)
    assert sum(content["importance"].values()) == pytest.approx(1)
    assert (out / "tune.png").read_bytes().startswith(b"\x89PNG")
    run(["fit", f"--config={config}", f"--config={out / 'best.yaml'}", f"--trainer.default_root_dir={tmp_path}"])
    best = max(content["trials"], key=lambda trial: trial["value"])
    written = yaml.safe_load((tmp_path / "lightning_logs/version_0/config.yaml").read_text())
    assert written["model"]["n_sem"] == best["options"]["model.n_sem"]
    assert written["model"]["backbone"]["init_args"]["dropout"] == best["options"]["model.backbone.dropout"]


@pytest.mark.slow
def test_a_failed_trial_is_told_and_the_study_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """memory needs another objective; of the two choices one fails."""
    create = optuna.create_study  # with a seed: five failures in a row would end the study, once in 32 times
    monkeypatch.setattr(
        optuna, "create_study", lambda **words: create(**words, sampler=optuna.samplers.RandomSampler(1))
    )
    path = tmp_path / "space.yaml"
    path.write_text("model.memory: [false, true]\nmodel.lr: {low: 0.001, high: 0.01}\n")
    words = ["tune", "--config", str(write_config(tmp_path)), f"--space={path}", f"--output={tmp_path / 'out'}"]
    main([*words, "--trials=6"])
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "out/tune.json").read_text())["trials"]
    failed = [row for row in rows if row["state"] == "fail"]
    assert failed
    assert all(row["options"]["model.memory"] and "--model.memory true" in row["reason"] for row in failed)
    assert f"{len(failed)} failed" in said
    assert f"tune: trial {failed[0]['number']} failed: --model.memory true" in said


@pytest.mark.slow
def test_trials_that_all_fail_end_the_study(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("model.memory: [true]\n")
    with pytest.raises(ConfigError, match=r"5 trials in a row failed, the last one because: --model\.memory true"):
        tune(str(write_config(tmp_path)), str(path), str(tmp_path / "out"))


@pytest.mark.slow
def test_the_budget_ends_the_running_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock stands still for one trial, then jumps in the second."""
    clock = iter([*[0.0] * 6, *[1e6] * 1_000])  # start; trial 0: loop, 2 batches; trial 1: loop, 1 batch
    monkeypatch.setattr(module, "cpu_seconds", lambda: next(clock))
    tune(str(write_config(tmp_path)), write_space(tmp_path), str(tmp_path / "out"), budget_minutes=1)
    rows = json.loads((tmp_path / "out/tune.json").read_text())["trials"]
    assert [(row["state"], row["reason"]) for row in rows] == [("complete", ""), ("pruned", "the budget was used up")]
    assert (tmp_path / "out/trial_1/lightning_logs/version_0/checkpoints/last.ckpt").is_file()
    assert "trials: 1 finished, 1 ended early, 0 failed" in capsys.readouterr().out


def test_a_picture_without_a_finished_trial_and_where_it_cannot_be_written(tmp_path: Path) -> None:
    content = {"monitor": "recall@10", "mode": "max", "trials": [], "importance": {}}
    assert draw_tuning(content, tmp_path / "tune.png").is_file()
    write_results(tmp_path / "tune.json", content)
    with pytest.raises(SETRecError, match="choose another --output"):
        draw_tuning(content, tmp_path / "tune.json/tune.png")
