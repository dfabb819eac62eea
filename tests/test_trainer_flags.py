"""Every flag of the Trainer works, or is refused in one sentence."""

import inspect
from pathlib import Path

import pytest
from lightning import Trainer

from setrec.cli import main
from setrec.commands.parser_errors import of_parser
from tests.conftest import command, model

SHORT = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=3"]
WORKS = {  # flag -> values
    "accelerator": ["auto"],
    "strategy": ["single_device"],
    "devices": ["1", "auto"],
    "num_nodes": ["1"],
    "precision": ["bf16-mixed", "16-mixed", "32"],
    "logger": ["false", "true", "CSVLogger --trainer.logger.save_dir=csv"],
    "callbacks": [
        "LearningRateMonitor",
        "[DeviceStatsMonitor]",
        "StochasticWeightAveraging --trainer.callbacks.swa_lrs=1e-3",
    ],
    "fast_dev_run": ["true", "2"],
    "max_epochs": ["0", "1"],
    "min_epochs": ["2"],
    "max_steps": ["0", "2"],
    "min_steps": ["4"],
    "max_time": ["00:00:00:01"],
    "limit_train_batches": ["0", "1", "0.2"],
    "limit_val_batches": ["0", "1"],
    "limit_test_batches": ["0 --test_after_fit=true", "1 --test_after_fit=true"],
    "limit_predict_batches": ["1"],
    "overfit_batches": ["1"],
    "val_check_interval": ["0.5", "2", "00:00:00:01"],
    "check_val_every_n_epoch": ["2", "3", "null --trainer.val_check_interval=2"],
    "num_sanity_val_steps": ["0", "2", "-1"],
    "log_every_n_steps": ["0", "1000"],
    "enable_checkpointing": ["false", "false --test_after_fit=true"],
    "enable_progress_bar": ["true"],
    "enable_model_summary": ["true"],
    "accumulate_grad_batches": ["2", "100"],
    "gradient_clip_val": ["1.0"],
    "gradient_clip_algorithm": ["value --trainer.gradient_clip_val=1.0"],
    "deterministic": ["warn"],
    "benchmark": ["true"],
    "inference_mode": ["false"],
    "use_distributed_sampler": ["true"],
    "profiler": ["simple", "advanced"],
    "detect_anomaly": ["true"],
    "plugins": ["[TorchCheckpointIO]"],
    "sync_batchnorm": ["true"],
    "reload_dataloaders_every_n_epochs": ["1"],
    "default_root_dir": ["other"],
    "enable_autolog_hparams": ["false"],
    "model_registry": ["none"],
}
REFUSED = {  # flag -> value -> what the sentence says
    "accelerator": {
        "tpu": "torch_xla",
        "cuda": "torch finds no GPU",
        "gpu": "torch finds no GPU",
        "x": "invalid accelerator",
    },
    "strategy": {"x": "invalid strategy", "fsdp": "requires a GPU", "ddp_spawn": "use ddp", "deepspeed": "DeepSpeed"},
    "devices": {"0": "--trainer.devices", "-1": "should be an int > 0", "x": "should be an int > 0"},
    "precision": {"bf16-true": "stay in float32", "64-true": "stay in float32", "x": "--trainer.precision"},
    "logger": {
        "WandbLogger --trainer.logger.save_dir=w": "wandb",
        "NoLogger": "--trainer.logger: ",
        "CometLogger": "comet",
    },
    "callbacks": {"NoCallback": "--trainer.callbacks: "},
    "fast_dev_run": {"-1": "fast_dev_run=-1"},
    "max_epochs": {"-2": "max_epochs"},
    "max_steps": {"-2": "max_steps"},
    "max_time": {"soon": "not a valid duration"},
    "limit_train_batches": {"1.5": "limit_train_batches"},
    "limit_val_batches": {"0.5": "limit_val_batches"},
    "overfit_batches": {"0.5": "limit_val_batches"},
    "val_check_interval": {"0": "must be more than 0", "100": "val_check_interval", "1.5": "val_check_interval"},
    "check_val_every_n_epoch": {"0": "must be more than 0"},
    "accumulate_grad_batches": {"0": "must be more than 0"},
    "gradient_clip_algorithm": {"x --trainer.gradient_clip_val=1.0": "Allowed algorithms"},
    "profiler": {"xla": "torch_xla", "x": "it can only be one of"},
    "barebones": {"true": "disabled in barebones mode"},
    "plugins": {"x": "--trainer.plugins: "},
    "default_root_dir": {"/proc/nowhere": "/proc/nowhere"},
}
FAST = {"enable_checkpointing", "limit_val_batches", "max_steps", "logger", "accelerator", "log_every_n_steps"}
ROWS = [(f"--trainer.{flag}={value}", "") for flag, values in WORKS.items() for value in values]
ROWS += [(f"--trainer.{flag}={value}", said) for flag, rows in REFUSED.items() for value, said in rows.items()]
ROWS += [
    ("--checkpoint.monitor=x", "--checkpoint.monitor x: there is no such figure"),
    ("--checkpoint.mode=x", "`mode` can be"),
    ("--checkpoint.save_top_k=0", ""),
    ("--checkpoint.train_time_interval=00:00:09", ""),
    ("--early_stopping.monitor=x", "--early_stopping.monitor x: there is no such figure"),
    ("--optimizer=Adam", "the model makes its own"),
    ("--ckpt_path=best", "not configured to save the best model"),
    ("--model.lr=-1", "--model.lr is -1.0"),
    ("--trainer.sloths=3", "unrecognized arguments: --trainer.sloths=3"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    main([*command("fit", folder, "--trainer.fast_dev_run=true"), *model()])
    return folder / "data"


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on such flags
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        pytest.param(*row, marks=[] if row[0].split(".")[-1].split("=")[0] in FAST else pytest.mark.slow, id=row[0])
        for row in ROWS
    ],
)
def test_it_works_or_is_refused_in_one_sentence(
    flags: str,
    said: str,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*command("fit", tmp_path, *SHORT, f"--data.root={prepared}"), *model(), *flags.split(" ")]
    if not said:
        main(words)
        return
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line


def test_every_flag_is_tried() -> None:
    assert set(inspect.signature(Trainer).parameters) == WORKS.keys() | REFUSED.keys()


def test_bare_bones(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = ("progress_bar", "model_summary", "log_every")
    words = [word for word in command("fit", tmp_path, *SHORT) if not any(name in word for name in refused)]
    main([*words, f"--data.root={prepared}", *model(), "--trainer.barebones=true", "--trainer.max_epochs=1"])
    assert "no checkpoint was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "Parser key \"model.n_sem\":\n  Expected a <class 'int'>. Got value: x",
            "--model.n_sem: needs a whole number; given is x",
        ),
        (
            'Parser key "data.split":\n  Problem with given class_path \'TimeRatioSplit\':\n    Parser key "test_share":\n'
            "      Expected a <class 'float'>. Got value: abc",
            "--data.split.test_share: needs a number; given is abc",
        ),
        (
            "unrecognized arguments: --sloth",
            "unrecognized arguments: --sloth; `setrec COMMAND --help` lists the options.",
        ),
    ],
)
def test_parser_errors(message: str, said: str) -> None:
    assert of_parser(message) == said


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--data.engine=Duckdb", "--data.engine: there is no class Duckdb; did you mean DuckDBEngine?"),
        ("--model.backbone=T5Bakbone", "--model.backbone: there is no class T5Bakbone; did you mean T5Backbone?"),
        ("--data.text=Foo", "--data.text: there is no class Foo; `setrec COMMAND --help` lists this project's"),
    ],
)
def test_misspelt_classes(flag: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config=quickstart", flag])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("serve --ckpt_path . --port abc", "--port: needs a whole number; given is abc"),
        ("merge --nothing 1", "unrecognized arguments: --nothing"),
        ("estimate --device gpu", "--device: needs one of 'cpu', 'cuda'; given is gpu"),
        ("estimate --workload.nitems 3", "Did you mean --workload.items?"),
        ("tune --trials x", "--trials: needs a whole number or null; given is x"),
        ("ablate --config c.yaml --output o --seeds x", "--seeds: needs a list, as in [1, 2]; given is x"),
        ("ablate --config c.yaml", "missing: --output"),
        ("report --nothing", "unrecognized arguments: --nothing"),
        ("fit --config quickstart --model.backbone.shape=foo", "--model.backbone.shape: needs one of 'nano', 'tiny'"),
    ],
)
def test_wrong_options_of_every_kind_of_command(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
