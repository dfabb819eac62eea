"""Every shipped configuration runs, alone or as data and model, and means what the one-file configurations of 0.1.0 meant."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from setrec.cli import main, run
from setrec.commands.configurations import SHIPPED, find_configuration, shipped_names
from setrec.commands.fit import SETRecCLI, configs_of, prepared
from setrec.errors import ConfigError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
OLD: dict[str, Any] = json.loads((ROOT / "tests/files/old/configs.json").read_text())  # commit 60bf1f7, by name
MINILM = (
    "--data.text.file=toys.emb-minilm-tdcb.npy"  # not in the release; what was measured on Toys was measured with it
)
STEAM_TIME = "--trainer.max_time=00:00:25:00"


def data_and_model(data: str, *models: str) -> list[str]:
    return [f"--config=data/{data}", *(f"--config=model/{model}" for model in models)]


# name of a configuration of 0.1.0 -> the command line that stands for it now
NOW = {
    **{name: [f"--config={name}"] for name in ("quickstart", "csv_example", "toys_t5")},
    "toys_best": ["--config=toys_best", MINILM],
    "toys_t5_tiny": [*data_and_model("toys", "t5_tiny"), MINILM],
    "toys_best_t5": [*data_and_model("toys", "best_t5"), MINILM],
    "toys_qwen_tiny": [*data_and_model("toys", "qwen_tiny"), MINILM],
    "toys_smollm2": [*data_and_model("toys", "smollm2"), MINILM],
    "toys_qwen3": data_and_model("toys", "qwen3"),
    "toys_qwen_fsdp": data_and_model("toys", "qwen_fsdp"),
    "steam_best": [*data_and_model("steam", "best", "cf_only"), STEAM_TIME],
    "steam_best_t5": [*data_and_model("steam", "best_t5", "cf_only"), STEAM_TIME],
    "steam_t5_tiny": [
        *data_and_model("steam", "t5_tiny", "cf_only"),
        *("--model.lr=1e-3", "--trainer.max_epochs=3", "--trainer.max_time=00:00:15:00", "--trainer.precision=null"),
    ],
}
for data in ("toys", "beauty", "sports", "steam"):
    NOW.setdefault(f"{data}_t5", data_and_model(data, "paper_t5"))
    NOW.setdefault(f"{data}_best", data_and_model(data, "best"))
    NOW.setdefault(f"{data}_best_t5", data_and_model(data, "best_t5"))
    NOW[f"{data}_qwen"] = data_and_model(data, "paper_qwen")
    NOW[f"{data}_sasrec"] = [*data_and_model(data, "sasrec"), f"--data.name={data}_sasrec"]
for data in ("toys", "beauty", "sports"):
    NOW[f"{data}_loo"] = data_and_model(f"{data}_loo", "best_texts")
for model in ("sasrec_sampled", "esasrec"):
    NOW[f"toys_loo_{model}"] = data_and_model("toys_loo", model)
NOW["steam_sasrec"] += ["--model.dropout=0.2", "--trainer.max_epochs=20"]


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line is read, and nothing is made of it."""
    monkeypatch.setattr(SETRecCLI, "instantiate_classes", lambda self: None)


def options(*words: str) -> dict[str, Any]:
    """Every option of fit under a command line, defaults included; for tests with `only_parsed`."""
    found: dict[str, Any] = prepared(words).config.as_dict()
    del found["config"]  # the paths of the files
    return found


# ------------------------------------------------------------------------------------------------------------ what they say
@pytest.mark.parametrize("name", sorted(OLD))
def test_the_options_are_those_of_the_old_configuration(name: str, only_parsed: None, tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(OLD[name]))
    now = options(*NOW[name])
    if "best" in name:
        assert now["model"].pop("pairs") == "history"  # came later
        now["model"]["pairs"] = "near"
    if name.endswith("_best"):
        assert now["model"].pop("ahead") == 5  # came later
        now["model"]["ahead"] = 1
    assert now == options(f"--config={tmp_path / 'old.yaml'}")


def test_one_file_configurations_equal_their_data_and_model(only_parsed: None) -> None:
    assert options("--config=toys_t5") == options(*data_and_model("toys", "paper_t5"))
    assert options("--config=toys_best") == options(*data_and_model("toys", "best"))


def test_the_order_decides_and_a_shipped_data_set_undoes_no_model(only_parsed: None) -> None:
    assert options("--config=model/best", "--config=data/toys") == options(*data_and_model("toys", "best"))
    for model in ("paper_qwen", "qwen3", "qwen_fsdp", "sasrec", "cf_only"):
        with pytest.raises(ConfigError, match=rf"data/toys comes after --config model/{model} .* its data\.text: give"):
            options(f"--config=model/{model}", "--config=data/toys")
    assert options(f"--config={SHIPPED}/model/best.yaml", "-c", "data/toys") == options(*data_and_model("toys", "best"))


@pytest.mark.parametrize("name", shipped_names())
def test_it_says_how_to_run_it_and_holds_no_figures(name: str) -> None:
    text = (SHIPPED / f"{name}.yaml").read_text()
    first = text.splitlines()[:3]
    assert all(line.startswith("#") for line in first)
    assert any(re.search(rf"(setrec|main\.py) fit --config .*{name}", line) for line in first)
    assert not re.search(r"\.\d{4}\b|20\d\d-\d\d-\d\d", text)  # measured figures and dates stand in docs/
    assert len(text.splitlines()) <= 50


# ------------------------------------------------------------------------------------------------------------- finding them
def test_a_name_is_found_with_and_without_yaml_and_a_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("model/best", "model/best.yaml"):
        assert find_configuration(value) == str(SHIPPED / "model/best.yaml")
    (tmp_path / "data/toys").mkdir(parents=True)  # the prepared data of a run, no configuration
    assert find_configuration("data/toys") == str(SHIPPED / "data/toys.yaml")
    Path("quickstart.yaml").write_text("{}")
    assert find_configuration("quickstart.yaml") == "quickstart.yaml"
    assert find_configuration('{"model": {"lr": 1}}') == '{"model": {"lr": 1}}'
    words = ["fit", "--config=data/beauty", "-c", "data/toys"]
    assert [config["data"]["name"] for config in configs_of(words)] == ["beauty", "toys"]  # in the order of the words


@pytest.mark.parametrize("command", [["fit", "--config"], ["ablate", "--output=out", "--config"]])
def test_a_wrong_name_is_one_line_with_the_right_ones(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command, "beauty_best"])
    said = capsys.readouterr().err
    assert said.startswith(
        "error: --config beauty_best: there is no such file, and the configurations that SETRec ships are "
    )
    assert "toys_t5, data/beauty, data/beauty_loo, data/sports" in said
    assert said.count("\n") == 1


# ------------------------------------------------------------------------------------------------------------------ running
FITS = {name: words for name, words in NOW.items() if name != "csv_example"}  # test_csv_example.py runs that one


def test_every_configuration_is_run() -> None:
    files = {word.removeprefix("--config=") for words in NOW.values() for word in words if word.startswith("--config=")}
    assert files == set(shipped_names())


def small(config: dict[str, Any], folder: Path) -> list[str]:
    """Flags that put something small in place of what a configuration reads and loads."""
    flags = [
        *("--data.name=tiny", "--data.reader=SyntheticWorld", "--data.reader.users=120", "--data.reader.items=60"),
        *("--data.cleaning.k_core=2", f"--data.root={folder / 'data'}"),
        f"--data.cf=[{', '.join(['CooccurrenceSVD'] * len(config['data']['cf']))}]",
        *(
            "--trainer.max_epochs=1",
            "--trainer.limit_train_batches=2",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
        ),
        *("--trainer.strategy=auto", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *(f"--trainer.default_root_dir={folder}", "--test_after_fit=true"),
    ]
    if config["data"]["text"] is not None:
        flags.append("--data.text=TfidfSVD")
    if "backbone" in config["model"]:
        flags.append("--model.backbone.shape=nano")
        if config["model"]["backbone"]["init_args"]["pretrained"] is not None:
            flags.append("--model.backbone.pretrained=null")
    return flags


@pytest.mark.parametrize("name", sorted(FITS))
def test_it_fits_and_tests(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SETRecCLI, "instantiate_classes", lambda self: None)
        flags = small(options(*FITS[name]), tmp_path)
    run(["fit", *FITS[name], *flags])
    results = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    assert results["metrics"]["all"]["recall@20"] > 0
