"""ablate on a tiny world: every factor fitted, kept, compared, and what it refuses."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from setrec.backbones import DecoderBackbone, T5Backbone
from setrec.cli import main
from setrec.commands import ablate as module
from setrec.commands.ablate import FACTORS, SOURCES, ablate, flags_of, without_sources
from setrec.commands.configurations import find_configuration
from setrec.commands.fit import prepared
from setrec.commands.report import report
from setrec.errors import ConfigError
from setrec.hparams import plain_hparams
from setrec.report.runs import flat_options, option_differences

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {
    "trainer": {
        "max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu", "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "model": {"backbone": {"class_path": "setrec.backbones.T5Backbone", "init_args": {"shape": "nano"}}, "n_sem": 2},
    "data": {
        "name": "tiny", "batch_size": 128, "cleaning": {"k_core": 2},
        "reader": {"class_path": "setrec.data.SyntheticWorld", "init_args": {"users": 150, "items": 80}},
    },
}  # fmt: skip


def write_config(folder: Path, **change: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"data": TINY["data"] | {"root": str(folder / "data")}} | change))
    return path


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "report", functools.partial(report, resamples=200, permutations=200))


def test_factor_by_factor(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config, output = write_config(tmp_path), tmp_path / "out"
    words = [
        "ablate",
        f"--config={config}",
        f"--output={output}",
        "--seeds=[7]",
        "--factors=[without_mask, without_memory]",
    ]
    words.append("--more.slow=--model.lr=1e-5")
    main([*words, "--", "--model.warmup_steps=3"])
    made = json.loads((output / "report.json").read_text())
    assert made["settings"]["split"] == "validation"
    expected = {
        "whole": {},
        "without_mask": {"model.backbone.mask": "bidirectional", "data.prefix_parallel": False},
        "slow": {"model.lr": 1e-5},
    }
    names = list(expected)
    assert {row["run"]: row["changed"] for row in made["runs"]} == expected
    assert all(row["seeds"] == [7] for row in made["runs"])
    compared = {row["run"] for row in made["tests"] if row["against"] == "whole" and row["group"] == "all"}
    assert compared == set(names[1:])
    assert {row["run"] for row in made["tests"] if row["baseline"]} == {"whole"}
    for name in names:  # the flags behind -- reached every fit
        (path,) = (output / name / "seed_7").rglob("validation_results.json")
        assert json.loads(path.read_text())["options"]["model"]["warmup_steps"] == 3
    assert "what it changes" in capsys.readouterr().out

    def not_again(*_: Any) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr(module, "run", not_again)
    main([*words, "--", "--model.warmup_steps=3"])  # all is there
    assert json.loads((output / "report.json").read_text()) == made
    with pytest.raises(ConfigError, match="another configuration or with other flags"):
        ablate(str(config), str(output), [7])
    with pytest.raises(ConfigError, match="holds slow with other flags"):
        ablate(str(config), str(output), [7], more={"slow": "--model.lr=2e-5"}, fit=["--model.warmup_steps=3"])


def test_seeds_and_the_test_split(tmp_path: Path) -> None:
    config, output = write_config(tmp_path), tmp_path / "out"
    path = ablate(str(config), str(output), [1, 2], ["without_isolation"], split="test")
    made = json.loads(path.read_text())
    assert made["settings"]["split"] == "test"
    row = next(
        r for r in made["figures"] if r["method"] == "whole" and r["metric"] == "ndcg@10" and r["group"] == "all"
    )
    assert len(row["seeds"]) == 2
    assert row["sd"] > 0
    for name in ("whole", "without_isolation"):
        for seed in (1, 2):
            (results,) = (output / name / f"seed_{seed}").rglob("results.json")
            assert json.loads(results.read_text())["protocol"]["seed"] == seed


def test_several_configurations_are_merged_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def stop(words: list[str]) -> None:
        asked.append(words)
        raise ConfigError("enough")

    monkeypatch.setattr(module, "prepared", stop)
    words = ["ablate", f"--config={write_config(tmp_path)}", "--config", "model/best", f"--output={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        main([*words, "--", "--model.n_cf=1"])
    model = f"--config={find_configuration('model/best')}"
    assert asked == [[f"--config={tmp_path / 'tiny.yaml'}", model, "--model.n_cf=1"]]


def test_what_it_refuses(tmp_path: Path) -> None:
    sasrec = write_config(tmp_path, model={"class_path": "setrec.sasrec.SASRecModule", "init_args": {"width": 8}})
    with pytest.raises(ConfigError, match="trains SASRec; ablate takes SETRec apart"):
        ablate(str(sasrec), str(tmp_path / "out"))
    config = write_config(tmp_path)
    with pytest.raises(ConfigError, match=r"one process.*--trainer\.devices 1"):
        ablate(str(config), str(tmp_path / "out"), fit=["--trainer.devices=2"])
    with pytest.raises(ConfigError, match=r"too_many: .*holds 1 CF matrices.*--factors"):
        ablate(str(config), str(tmp_path / "out"), [1], [], {"too_many": "--model.n_cf=3"})
    assert not (tmp_path / "out/report.json").exists()


@pytest.mark.parametrize("backbone", [T5Backbone, DecoderBackbone])
def test_every_factor_takes_something_away(backbone: type, tmp_path: Path) -> None:
    model = {"backbone": {"class_path": f"setrec.backbones.{backbone.__name__}", "init_args": {"shape": "nano"}}}
    model |= {"objective": "score", "memory": True, "neighbours": True}
    config = str(write_config(tmp_path, model=model))
    whole = options_of(["--config", config])
    expected = {
        "without_cf": {"model.n_cf": 0},
        "without_semantic": {"model.n_sem": 0},
        "without_isolation": {"model.backbone.isolate_queries": False},
        "without_item_mask": {"model.backbone.mask": "items"},
        "without_mask": {"model.backbone.mask": "causal"},
        "without_memory": {"model.memory": False},
        "without_neighbours": {"model.neighbours": False},
    }
    if backbone is T5Backbone:
        expected["without_mask"] = {"model.backbone.mask": "bidirectional", "data.prefix_parallel": False}
    assert [*expected, SOURCES] == FACTORS
    for factor in expected:
        changed = option_differences(whole, options_of(["--config", config, *flags_of(factor, backbone())]))
        assert {name: value for name, (_, value) in changed.items()} == expected[factor]


def test_each_further_source_is_taken_away(tmp_path: Path) -> None:
    encoder = {"class_path": "setrec.text.TfidfSVD", "init_args": {"width": 8}}
    vectors = {
        name: {"class_path": "setrec.text.FieldText", "init_args": {"field": name, "encoder": encoder}}
        for name in ("title", "category")
    }
    config = str(write_config(tmp_path))
    words = ["--config", config, f"--data.vectors={json.dumps(vectors)}"]
    for given, left in (([], {}), (['--model.tokens={"title": {"slots": 3}, "category": {}}'], {"slots": 3})):
        cli = prepared([*words, *given])
        found = without_sources(plain_hparams(cli.model.hparams), plain_hparams(cli.datamodule.hparams))
        assert list(found) == ["without_title", "without_category"]
        taken = prepared([*words, *given, *found["without_category"]]).model.hparams["tokens"]
        assert list(taken) == ["title"]
        assert left.items() <= plain_hparams(taken)["title"].items()
    assert without_sources({"tokens": None}, {"vectors": None}) == {}


def options_of(words: list[str]) -> dict[str, Any]:
    """What a fit with this command line would be made of."""
    cli = prepared(words)
    return flat_options({"model": plain_hparams(cli.model.hparams), "data": plain_hparams(cli.datamodule.hparams)})
