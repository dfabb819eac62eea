"""The command line, in process: fit, validate, test, predict, resume, and what it says about wrong input."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from setrec.cli import main, run
from setrec.commands.fit import prepared
from setrec.errors import ConfigError
from tests.conftest import command, model

ROOT = Path(__file__).parent.parent


def at(folder: Path) -> list[str]:
    """Where a run from a checkpoint alone writes; the checkpoint knows everything else."""
    return [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short fit, shared; returns its folder."""
    folder = tmp_path_factory.mktemp("fit")
    run([*command("fit", folder, "--trainer.max_epochs=2", "--test_after_fit=true"), *model()])
    return folder


def best(folder: Path) -> Path:
    return next((folder / "lightning_logs/version_0/checkpoints").glob("epoch-*.ckpt"))


def test_fit_leaves_checkpoint_table_and_tensorboard(fitted: Path) -> None:
    results = json.loads((fitted / "lightning_logs/version_0/results.json").read_text())
    assert set(results) >= {"protocol", "beta", "metrics", "baselines"}
    assert set(results["baselines"]) == {
        "popularity", "item_cf", "text", "item_cf_text", "item_cf_ngrams", "transitions"
    }  # fmt: skip
    for group in ("all", "warm", "cold"):
        assert set(results["metrics"][group]) >= {"recall@5", "recall@10", "ndcg@5", "ndcg@10"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(fitted / "lightning_logs/version_0"))
    events.Reload()
    tags = events.Tags()
    wanted = {"train/loss_cf_0", "train/loss_sem_0", "train/loss_sem_1", "train/reconstruction"}
    wanted |= {f"validation/{group}/recall@10" for group in ("all", "warm", "cold")}
    assert wanted <= set(tags["scalars"])
    assert "validation/beta curve" in tags["images"]


@pytest.mark.slow
def test_every_epoch_is_validated(tmp_path: Path) -> None:
    """Lightning counts the batches of the first epoch and validates after as many: every epoch must have that number."""
    run([*command("fit", tmp_path, "--trainer.max_epochs=6", "--data.batch_size=16"), *model()])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "lightning_logs/version_0"))
    events.Reload()
    assert len(events.Scalars("validation/all/recall@10")) == 6


def test_checkpoint_is_plain_and_self_describing(fitted: Path) -> None:
    checkpoint = torch.load(best(fitted), weights_only=True)
    assert checkpoint["hyper_parameters"]["n_sem"] == 2
    assert checkpoint["datamodule_hyper_parameters"]["name"] == "tiny"
    assert not [key for key in checkpoint["state_dict"] if key.startswith("model.cf_") or key == "model.text"]  # data


def test_test_from_the_checkpoint_alone_repeats_the_figures(fitted: Path, tmp_path: Path) -> None:
    run(["test", "--ckpt_path", str(best(fitted)), *at(tmp_path)])
    again = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    first = json.loads((fitted / "lightning_logs/version_0/results.json").read_text())
    assert again["beta"] == first["beta"]
    assert again["metrics"] == first["metrics"]
    assert again["baselines"] == first["baselines"]
    assert again["protocol"]["filter_seen"] is True


def test_flags_win_over_the_checkpoint(fitted: Path, tmp_path: Path) -> None:
    run(["test", "--ckpt_path", str(best(fitted)), "--model.filter_seen=false", *at(tmp_path)])
    flagged = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    first = json.loads((fitted / "lightning_logs/version_0/results.json").read_text())
    assert flagged["protocol"]["filter_seen"] is False
    assert flagged["metrics"] == first["other_filter"]["metrics"]


def test_validate_from_the_checkpoint_alone(fitted: Path, tmp_path: Path) -> None:
    cli = run(["validate", "--ckpt_path", str(best(fitted)), *at(tmp_path)])
    assert float(cli.trainer.callback_metrics["recall@10"]) > 0


def test_predict_writes_every_user_once_in_own_ids(fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    cli = run(["predict", "--ckpt_path", str(best(fitted)), f"--predictions.output={out}", *at(tmp_path)])
    table = pl.read_parquet(out)
    assert table.columns == ["user_id", "rank", "item_id", "score", "title"]
    data = cli.datamodule
    assert table["user_id"].unique().sort().to_list() == sorted(data.histories.ids)
    assert (table.group_by("user_id").len()["len"] == 10).all()
    assert table["rank"].to_list() == list(range(1, 11)) * len(data.histories.ids)
    assert set(table["item_id"]) <= set(data.catalogue.ids)
    seen = {
        (user, data.catalogue.ids[item])
        for u, user in enumerate(data.histories.ids)
        for split in (data.histories.train, data.histories.validation)
        for item in split.row(u)
    }
    assert not seen & set(zip(table["user_id"], table["item_id"], strict=True))  # seen items are left out
    falls = table.sort("user_id", "rank").select(pl.col("score").diff().over("user_id"))["score"].drop_nulls()
    assert (falls <= 0).all()
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.slow
@pytest.mark.parametrize("every", ["--checkpoint.every_n_epochs=1", "--checkpoint.every_n_train_steps=5"])
def test_resumed_run_equals_an_unbroken_one_to_the_bit(every: str, tmp_path: Path) -> None:
    """Resumed after an epoch, and from the middle of one: dropout, order of batches and schedule go on as if unbroken."""
    flags = ["--trainer.max_epochs=3", "--checkpoint.monitor=null", "--checkpoint.save_top_k=-1", every]
    flags.append("--checkpoint.filename=step={step}")
    whole, again = tmp_path / "whole", tmp_path / "again"
    run([*command("fit", whole, *flags), *model()])
    kept = sorted((whole / "lightning_logs/version_0/checkpoints").glob("step=*.ckpt"), key=lambda p: int(p.stem[5:]))
    assert len(kept) >= 3
    run([*command("fit", again, *flags, f"--ckpt_path={kept[-2]}"), *model()])
    one = torch.load(whole / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    two = torch.load(again / "lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert one["global_step"] == two["global_step"] > torch.load(kept[-2], weights_only=True)["global_step"]
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for key, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][key]), key


@pytest.mark.slow
@pytest.mark.parametrize(("n_cf", "n_sem"), [(0, 2), (1, 0)])
def test_one_kind_of_slot(n_cf: int, n_sem: int, tmp_path: Path) -> None:
    flags = model(f"--model.n_cf={n_cf}", f"--model.n_sem={n_sem}")
    if n_sem == 0:
        flags.append("--data.text=null")
    run([*command("fit", tmp_path, "--trainer.max_epochs=1", "--test_after_fit=true"), *flags])
    results = json.loads((tmp_path / "lightning_logs/version_0/results.json").read_text())
    assert results["beta"] == float(n_sem > 0)


@pytest.mark.slow
def test_a_prefix_has_the_targets_that_the_model_asks_for(tmp_path: Path) -> None:
    cli = run([*command("fit", tmp_path, "--trainer.max_epochs=1"), *model(), "--model.ahead=3"])
    target = next(iter(cli.datamodule.train_dataloader())).target  # (B, P, A)
    assert target.shape[2] == 3
    assert (target[..., 2] >= 0).any()
    with pytest.raises(ConfigError, match="ahead is 0"):
        run([*command("fit", tmp_path), *model(), "--model.ahead=0"])


@pytest.mark.slow
def test_the_released_codes_encoder_trains_one_prefix_a_row(tmp_path: Path) -> None:
    flags = [*command("fit", tmp_path, "--trainer.max_epochs=1"), *model("--model.backbone.mask=bidirectional")]
    with pytest.raises(ConfigError, match="--data.prefix_parallel false"):
        run(flags)
    cli = run([*flags, "--data.prefix_parallel=false"])
    assert float(cli.trainer.callback_metrics["recall@10"]) > 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run, expect exit code 2; returns the last line on stderr."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    return capsys.readouterr().err.strip()


def test_no_data_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nowhere = f"--data.raw={tmp_path / 'nowhere'}"
    said = refused(capsys, "fit", f"--data.root={tmp_path}", nowhere, *at(tmp_path), *model())
    assert said.startswith("error: ")
    assert "nowhere" in said
    assert len(said.splitlines()) == 1


def test_another_class_starts_from_its_own_defaults(tmp_path: Path) -> None:
    """The default reader has a file of items by default, TableFiles has none; flags and files that name one still count."""
    config = tmp_path / "c.yaml"
    for given, items in (("", None), (", items: mine.csv", "mine.csv")):
        config.write_text(
            f"data: {{reader: {{class_path: setrec.data.TableFiles, init_args: {{events: e.csv{given}}}}}, text: null}}\n"
        )
        cli = prepared(["--config", str(config)])
        assert (cli.datamodule.preparation.reader.events, cli.datamodule.preparation.reader.items) == ("e.csv", items)
    assert prepared(["--data.reader=TableFiles"]).datamodule.preparation.reader.items is None
    assert prepared([]).datamodule.preparation.reader.items == "items.jsonl"
    flags = ["--data.reader.items=x.jsonl", "--data.text.width=9", "--model.backbone.shape=nano"]
    cli = prepared(flags)
    assert cli.datamodule.preparation.reader.items == "x.jsonl"
    assert (cli.datamodule.preparation.text.width, cli.datamodule.preparation.text.min_df) == (9, 2)


def test_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model.sloths" in refused(capsys, "fit", "--model.sloths=3")


def test_missing_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in refused(capsys, "test", "--ckpt_path", "nothing.ckpt")


def test_something_else_as_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.ckpt"
    wrong.write_text("hello")
    said = refused(capsys, "test", "--ckpt_path", str(wrong))
    assert "wrong.ckpt is not a checkpoint" in said
    assert len(said.splitlines()) == 1


def test_checkpoint_of_another_data_set(capsys: pytest.CaptureFixture[str], fitted: Path, tmp_path: Path) -> None:
    flags = ["--data.name=other", f"--data.root={tmp_path}", "--data.reader.seed=5"]
    said = refused(capsys, "test", "--ckpt_path", str(best(fitted)), *flags, *at(tmp_path))
    assert "trained on the data set 'tiny'" in said
    assert "'other'" in said


def test_more_slots_than_vectors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = refused(capsys, *command("fit", tmp_path), *model("--model.n_cf=3"))
    assert "holds 1 CF matrices" in said


def test_bad_release_reaches_the_user_as_one_sentence(
    capsys: pytest.CaptureFixture[str], tiny_release: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(tiny_release, raw)
    (raw / "training_dict.npy").write_bytes((raw / "training_dict.npy").read_bytes()[:200])
    said = refused(capsys, "fit", f"--data.raw={raw}", f"--data.root={tmp_path}", *at(tmp_path), *model())
    assert "training_dict.npy" in said
    assert len(said.splitlines()) == 1


def test_help_explains_every_hyperparameter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help"])
    assert stop.value.code in (0, None)
    text = " ".join(capsys.readouterr().out.split())
    options = "lr n_sem n_cf alpha bottleneck trunk missing_cf objective negatives cf_dropout memory warmup_steps"
    for option in [*options.split(), "weight_decay", "filter_seen"]:
        explained = text[
            text.rindex(f" --model.{option} ") :
        ]  # the first place is in the usage line, the last in the list
        explained = explained[: explained.index("(type:")]
        assert explained.count(" ") > 5, explained
        assert "paper" in explained, explained


@pytest.mark.slow
def test_a_compiled_backbone_trains_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for compiling, and run as traced: a C++ compiler would take minutes to say the same."""
    compiled, threads = torch.nn.Module.compile, torch.get_num_threads()
    asked = []

    def traced(self: torch.nn.Module, **options: bool) -> None:
        asked.append((type(self).__name__, options))
        compiled(self, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    # nothing else may differ: the same vectors, sums in the same order on a busy machine, no traces of other tests
    torch.compiler.reset()
    torch.set_num_threads(1)
    losses = []
    for name in ("false", "true"):
        flags = [f"--model.compile={name}", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1"]
        cli = run([*command("fit", tmp_path, *flags), *model()])
        losses.append(float(cli.trainer.callback_metrics["train/loss"]))
    torch.set_num_threads(threads)
    torch.compiler.reset()
    assert asked == [("T5Backbone", {"dynamic": True})]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
