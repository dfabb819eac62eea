"""The data module: what each loader shows, what a checkpoint carries, and going on in the middle of an epoch."""

from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from setrec.cf import CFFile, CooccurrenceSVD
from setrec.data import Cleaning, LeaveOneOut, OfficialRelease, SETRecDataModule, Source, SyntheticWorld, TimestampSplit
from setrec.errors import ConfigError, DataError
from setrec.schemas import PAD, Batch
from setrec.text import TextFile, TfidfSVD


def tiny(raw: Path, root: Path, **options) -> SETRecDataModule:
    options = {"text": TextFile("text.npy"), "cf": [CFFile()], "batch_size": 40, "eval_batch_size": 16} | options
    return SETRecDataModule(name="tiny", raw=str(raw), root=str(root), **options)


def ready(data: SETRecDataModule) -> SETRecDataModule:
    data.prepare_data()
    data.setup()
    return data


def rows(loader) -> dict[int, tuple[list[int], list[int], list[int]]]:
    """user -> (shown history, targets, seen)."""
    out = {}
    for batch in loader:
        for b, user in enumerate(batch.user.tolist()):
            fields = (batch.history, batch.target, batch.seen)
            shown, target, seen = ([i for i in field[b].tolist() if i != PAD] for field in fields)
            out[user] = (shown, target, seen)
    return out


def test_what_each_loader_shows(tiny_release, tmp_path):
    data = ready(tiny(tiny_release, tmp_path, max_history=5))
    log = OfficialRelease().read(tiny_release)
    train, validation, test = ([s.row(u).tolist() for u in range(60)] for s in (log.train, log.validation, log.test))
    users = range(60)
    (first_pass,) = data.val_dataloader()
    assert rows(first_pass) == {u: (train[u][-5:], validation[u], train[u]) for u in users if validation[u]}
    before = [a + b for a, b in zip(train, validation, strict=True)]
    assert rows(data.test_dataloader()) == {u: (before[u][-5:], test[u], before[u]) for u in users if test[u]}
    assert rows(data.predict_dataloader()) == {u: (before[u][-5:], test[u], before[u]) for u in users}
    prefixes = sum(len(batch.valid) for batch in data.train_dataloader())
    assert prefixes == sum(len(row) if len(row) <= 6 else 5 for row in train)


def test_defaults_need_raw_files(tmp_path):
    data = SETRecDataModule(name="mine", root=str(tmp_path))  # a name that nobody publishes
    assert isinstance(data.preparation.reader, OfficialRelease)
    assert isinstance(data.preparation.text, TfidfSVD)
    assert [type(maker) for maker in data.preparation.cf] == [CooccurrenceSVD]
    with pytest.raises(DataError, match="pass --data.raw DIR"):
        data.prepare_data()
    with pytest.raises(DataError, match="holds no prepared data"):
        data.setup()


def test_without_text_and_without_cf(tiny_release, tmp_path):
    catalogue = ready(tiny(tiny_release, tmp_path, text=None, cf=[])).catalogue
    assert catalogue.text is None
    assert catalogue.cf == ()
    assert catalogue.present == ()


def test_two_cf_slots(tiny_release, tmp_path):
    catalogue = ready(tiny(tiny_release, tmp_path, cf=[CFFile(), CooccurrenceSVD(width=8)])).catalogue
    assert [table.shape[1] for table in catalogue.cf] == [64, 8]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_history": 0}, {"name": "../x"}, {"name": ""}])
def test_options_out_of_range(options):
    with pytest.raises(ConfigError):
        SETRecDataModule(**options)


class Recorder(LightningModule):
    """Notes the users of each training batch; its one weight mixes them, so order matters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.met: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        assert isinstance(batch, Batch)
        self.met.append((self.current_epoch, batch.user.tolist()))
        return (self.weight * 0.9 - batch.user.float().mean()).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=tmp_path, use_distributed_sampler=False, **quiet | options)


@pytest.mark.parametrize("stop", [3, 10])  # in the middle of the first and of the second epoch, of 8 batches or so
@pytest.mark.parametrize("num_workers", [0, 1])
def test_resumes_in_the_middle_of_an_epoch(tiny_release, tmp_path, stop, num_workers):
    def data() -> SETRecDataModule:
        return tiny(tiny_release, tmp_path, num_workers=num_workers)

    unbroken = Recorder()
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(unbroken, datamodule=data())
    each = len(unbroken.met) // 3
    assert len(unbroken.met) == 3 * each
    assert stop % each
    assert unbroken.met[0][1] != unbroken.met[each][1]  # epochs differ in order

    saver = ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=stop, save_top_k=-1, filename="{step}")
    first = Recorder()
    trainer(tmp_path, max_epochs=3, max_steps=stop, callbacks=[saver]).fit(first, datamodule=data())
    assert len(first.met) == stop
    second = Recorder()
    path = tmp_path / "ckpt" / f"step={stop}.ckpt"
    going_on = trainer(tmp_path, max_epochs=3, enable_checkpointing=False)
    going_on.fit(second, datamodule=data(), ckpt_path=str(path), weights_only=True)
    assert [users for _, users in first.met + second.met] == [users for _, users in unbroken.met]
    assert torch.equal(second.weight, unbroken.weight)


def test_resumes_at_the_end_of_an_epoch(tiny_release, tmp_path):
    unbroken = Recorder()
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(unbroken, datamodule=tiny(tiny_release, tmp_path))
    saver = ModelCheckpoint(tmp_path / "ckpt", save_last=True)
    first, second = Recorder(), Recorder()
    trainer(tmp_path, max_epochs=1, callbacks=[saver]).fit(first, datamodule=tiny(tiny_release, tmp_path))
    going_on = trainer(tmp_path, max_epochs=3, enable_checkpointing=False)
    going_on.fit(second, datamodule=tiny(tiny_release, tmp_path), ckpt_path=str(tmp_path / "ckpt" / "last.ckpt"))
    assert [users for _, users in first.met + second.met] == [users for _, users in unbroken.met]
    assert torch.equal(second.weight, unbroken.weight)


def test_a_checkpoint_carries_the_arguments_in_plain_types(tiny_release, tmp_path):
    options = {"cf": [CooccurrenceSVD(width=8)], "cleaning": Cleaning(k_core=3), "split": TimestampSplit(1, 2)}
    data = tiny(tiny_release, tmp_path, **options)
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    run.fit(Recorder(), datamodule=data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert saved["cf"] == [
        {"class_path": "setrec.cf.CooccurrenceSVD", "init_args": {"width": 8, "window": 5, "seed": 2023}}
    ]
    assert saved["batch_size"] == 40
    again = SETRecDataModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert again.preparation.options() == data.preparation.options()
    assert again.hparams == data.hparams
    assert isinstance(again.preparation.split, TimestampSplit)
    assert again.preparation.cleaning == Cleaning(k_core=3)
    again.prepare_data()  # finds what is prepared


def test_every_user_is_predicted_through_a_trainer(tiny_release, tmp_path):
    """Lightning takes torch's own loaders apart when predicting; this one it leaves alone."""
    model = Predictor()
    trainer(tmp_path).predict(model, datamodule=tiny(tiny_release, tmp_path), return_predictions=False)
    assert sorted(user for _, users in model.met for user in users) == list(range(60))


class Predictor(Recorder):
    """Notes the users of each batch it predicts."""

    def predict_step(self, batch: Batch, index: int) -> None:
        self.met.append((0, batch.user.tolist()))


def parsed(*flags: str) -> SETRecDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SETRecDataModule, "data")
    return parser.instantiate(parser.parse_args(list(flags))).data


def test_flags():
    data = parsed(
        "--data.reader=SyntheticWorld", "--data.reader.users=50", "--data.text=TextFile", "--data.text.file=x.npy",
        "--data.cf=[CFFile, {class_path: CooccurrenceSVD, init_args: {width: 8}}]", "--data.split=LeaveOneOut",
        "--data.cleaning.k_core=3",
    )  # fmt: skip
    preparation = data.preparation
    assert isinstance(preparation.reader, SyntheticWorld)
    assert preparation.reader.users == 50
    assert isinstance(preparation.text, TextFile)
    assert [type(maker) for maker in preparation.cf] == [CFFile, CooccurrenceSVD]
    assert isinstance(preparation.split, LeaveOneOut)
    assert preparation.cleaning == Cleaning(k_core=3)
    assert parsed("--data.text=null", "--data.cf=[]").preparation[1:3] == (None, [])
    assert parsed().preparation.options() == SETRecDataModule().preparation.options()
    assert parsed("--data.text.width=9").preparation.text.width == 9


def test_readers_by_flags():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SETRecDataModule, "data")

    def reader(*flags: str):
        return parser.instantiate(parser.parse_args([f"--data.{flag}" for flag in flags])).data.preparation.reader

    amazon = reader("reader=AmazonReviews", "reader.edition=2023", "reader.text_fields=[title, brand]")
    assert (amazon.edition, amazon.text_fields) == (2023, ["title", "brand"])
    assert reader("reader=SteamReviews", "reader.max_bad_lines=7").max_bad_lines == 7
    assert reader("reader=RecBoleFiles", "reader.max_bad_lines=0.5").max_bad_lines == 0.5
    table = reader("reader=TableFiles", "reader.download=[{url: 'http://x/e.csv', sha256: ab}]")
    assert table.public("x") == [Source("http://x/e.csv", sha256="ab")]
    with pytest.raises(Exception, match="colour"):
        reader("reader=AmazonReviews", "reader.text_fields=[colour]")
