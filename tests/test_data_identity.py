"""Which catalogue a checkpoint was trained on: its vectors count, and prepared data is compared before it is replaced."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from setrec.cf import CooccurrenceSVD
from setrec.cli import main, run
from setrec.data import Catalogue, Cleaning, SETRecDataModule, TableFiles
from setrec.data.catalogue import MANIFEST
from setrec.errors import ConfigError
from setrec.text import TfidfSVD
from tests.raw_data import write

WORDS = ["red", "blue", "green", "white", "kettle", "guitar", "lamp", "chair", "small", "large"]


def shop(folder: Path, other_texts: bool = False, swap: bool = False) -> Path:
    """40 users and 20 items. other_texts: the items have other titles. swap: two events of a user change places."""
    rng = np.random.default_rng(0)
    events = [[f"u{n % 40:02d}", f"i{rng.integers(20):02d}", 1_400_000_000 + n * 100] for n in range(800)]
    if swap:
        events[0][1], events[80][1] = events[80][1], events[0][1]
        assert events[0][1] != events[80][1]
    items = [(f"i{n:02d}", " ".join(rng.choice(WORDS, 3)), f"brand{n % 3}") for n in range(20)]
    if other_texts:
        items = [(own, title, brand) for (own, _, brand), (_, title, _) in zip(items, items[::-1], strict=True)]
    write(folder / "events.csv", "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in events))
    write(folder / "items.csv", "item_id,title,brand\n" + "".join(",".join(row) + "\n" for row in items))
    return folder


def data(raw: Path, root: Path, name: str = "x", **options: Any) -> SETRecDataModule:
    reader = TableFiles(items="items.csv", text_fields=options.pop("text_fields", None))
    made = {
        "text": TfidfSVD(width=8, min_df=1),
        "cf": [CooccurrenceSVD(width=4)],
        "cleaning": Cleaning(k_core=0),
    } | options
    return SETRecDataModule(name=name, reader=reader, raw=str(raw), root=str(root), **made)


def prepared(*arguments: Any, **options: Any) -> Catalogue:
    module = data(*arguments, **options)
    module.prepare_data()
    module.setup()
    return module.catalogue


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


CHANGES = [{"other_texts": True}, {"swap": True}]


@pytest.mark.parametrize("change", CHANGES)
def test_other_vectors_are_another_catalogue(tmp_path, change):
    before = prepared(shop(tmp_path / "raw"), tmp_path)
    trained_on = before.plain_identity()
    kept = contents(tmp_path / "x")
    shop(tmp_path / "raw", **change)
    module = data(tmp_path / "raw", tmp_path)
    model, module.trainer = SimpleNamespace(trained_on=trained_on), SimpleNamespace()
    module.trainer.lightning_module = model  # as a Trainer does
    with pytest.raises(ConfigError, match=r"trained on the data set 'x' .*nothing was changed.*--data.raw null"):
        module.prepare_data()
    assert contents(tmp_path / "x") == kept
    model.trained_on = None
    module.prepare_data()
    after = Catalogue.load(tmp_path / "x")
    assert after.ids == before.ids
    assert after.count.equal(before.count)
    assert after.fingerprint != before.fingerprint
    with pytest.raises(ConfigError, match="items, their vectors or the training events are others"):
        after.check(trained_on, "The checkpoint")


def test_other_fields_of_the_text_too(tmp_path):
    trained_on = prepared(shop(tmp_path / "raw"), tmp_path).plain_identity()
    kept = contents(tmp_path / "x")
    module = data(tmp_path / "raw", tmp_path, text_fields=["brand"])
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(trained_on=trained_on))
    with pytest.raises(ConfigError, match="nothing was changed"):
        module.prepare_data()
    assert contents(tmp_path / "x") == kept


def changed(folder: Path, change: float, seed: int = 0) -> Catalogue:
    """The catalogue with noise in its text vectors, relative to their length."""
    vectors = load_file(folder / "text.safetensors")["vectors"]
    noise = np.random.default_rng(seed).standard_normal(vectors.shape).astype(np.float32)
    noise *= change * np.linalg.norm(vectors) / np.linalg.norm(noise)
    from setrec.files.hashes import ids_hash

    ids = Catalogue.load(folder).ids
    save_file({"vectors": vectors + noise}, folder / "text.safetensors", {"ids_sha256": ids_hash(ids)})
    return Catalogue.load(folder)


def test_rounding_makes_no_other_catalogue(tmp_path):
    """Another machine, or another number of threads, gives the same vectors up to 1e-4."""
    first = prepared(shop(tmp_path / "raw"), tmp_path)
    rounded = changed(tmp_path / "x", 1e-4)
    assert rounded.fingerprint != first.fingerprint
    rounded.check(first.plain_identity(), "The checkpoint")
    with pytest.raises(ConfigError, match="its scores would be wrong"):
        changed(tmp_path / "x", 0.2).check(first.plain_identity(), "The checkpoint")


def test_what_version_020_wrote_is_accepted(tmp_path):
    catalogue = prepared(shop(tmp_path / "raw"), tmp_path)
    assert catalogue.identity is not None
    catalogue.check({"name": "x", "fingerprint": catalogue.identity.former}, "The checkpoint")
    with pytest.raises(ConfigError):
        catalogue.check({"name": "x", "fingerprint": "0" * 64}, "The checkpoint")


def test_prepared_data_of_version_020_goes_on(tmp_path):
    """Its manifest knows fewer options and has no report; it is not prepared again."""
    import json

    prepared(shop(tmp_path / "raw"), tmp_path)
    path = tmp_path / "x" / MANIFEST
    manifest = json.loads(path.read_text())
    for name in ("report", "inputs"):
        del manifest[name]
    for name in ("encoding", "item_separator", "null_words"):
        del manifest["options"]["reader"]["init_args"][name]
    path.write_text(json.dumps(manifest))
    kept = contents(tmp_path / "x")
    old = prepared(tmp_path / "raw", tmp_path)
    assert contents(tmp_path / "x") == kept
    assert old.identity is not None
    assert old.identity.inputs == ""


@pytest.mark.slow
def test_commands_leave_the_data_of_another_checkpoint_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shop(Path("raw"))
    flags = [
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        "--trainer.max_epochs=1",
    ]  # fmt: skip
    options = [
        "--data.name=x", "--data.reader=TableFiles", "--data.reader.items=items.csv", "--data.cleaning.k_core=0",
        "--data.text.min_df=1", "--model.backbone.shape=nano", "--model.n_sem=2",
    ]  # fmt: skip
    run(["fit", *flags, *options, "--data.raw=raw"])
    checkpoint = str(next(Path("lightning_logs/version_0/checkpoints").glob("epoch*.ckpt")))
    kept = contents(Path("data/x"))
    run(["test", "--ckpt_path", checkpoint, *flags[:3]])
    shop(Path("raw"), other_texts=True)
    commands = [[word, "--ckpt_path", checkpoint] for word in ("test", "predict", "validate", "fit", "refit")]
    start = [*options, f"--model.start_from={checkpoint}"]
    for words in (*commands, ["fit", *start], ["fit", "--model=SETRecModule", *start]):
        with pytest.raises(SystemExit, match="2"):
            main([*words, "--data.raw=raw", *flags[:3]])
        assert "nothing was changed" in capsys.readouterr().err
        assert contents(Path("data/x")) == kept
    run(["test", "--ckpt_path", checkpoint, *flags[:3]])  # on the data as it was prepared, and that is said
    said = " ".join(capsys.readouterr().err.split())
    assert f"WARNING: {Path('raw/items.csv').resolve()} was changed after the data was prepared" in said
    shutil.rmtree("raw")  # moved away: the prepared data is whole
    for more in ([], ["--data.raw=raw"], ["--data.raw=null"]):
        run(["test", "--ckpt_path", checkpoint, *flags[:3], *more])
        assert "WARNING: /" not in capsys.readouterr().err
    assert contents(Path("data/x")) == kept
