"""Further sources of item tokens (--data.vectors): prepared, trained on, scored, explained, and carried by every way out."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from setrec.cf import CooccurrenceSVD
from setrec.cli import main, run
from setrec.data.catalogue import Catalogue, read_manifest
from setrec.data.readers.synthetic import SyntheticWorld
from setrec.errors import ConfigError, DataError
from setrec.files.vectorfile import read_vector_file
from setrec.inference.journal_applied import items_of, rows_of
from setrec.recommend import Recommender
from setrec.text import FieldText, TfidfSVD
from setrec.vectors import FileVectors
from tests.conftest import TrainedRun, command, model

LACKING = 7  # every so many items has no image
WORLD = SyntheticWorld(users=150, items=80, brand_in_text=False)


def images(path: Path) -> pl.DataFrame:
    """A file with an image vector for most items of the world, in no order; it tells the brand."""
    items = WORLD.read(None).items
    rng = np.random.default_rng(1)
    of_brand = {brand: rng.standard_normal(6) for brand in sorted(items["brand"].unique())}
    rows = [
        (own, (3 * (of_brand[brand] + 0.1 * rng.standard_normal(6))).tolist())
        for own, brand in items.select("id", "brand").iter_rows()
    ]
    table = pl.DataFrame(rows[::-1], schema={"id": pl.String, "vector": pl.List(pl.Float64)}, orient="row")
    table = table.filter(pl.int_range(pl.len()) % LACKING != 0)
    table.write_parquet(path)
    return table


def sources(folder: Path) -> dict[str, object]:
    return {
        "image": {"class_path": "setrec.vectors.FileVectors", "init_args": {"file": str(folder / "images.parquet")}},
        "kind": {
            "class_path": "setrec.text.FieldText",
            "init_args": {
                "field": "category",
                "encoder": {"class_path": "setrec.text.TfidfSVD", "init_args": {"width": 8}},
            },
        },
    }  # fmt: skip


TOKENS = {"image": {"slots": 2}, "kind": {"slots": 2, "tokenizer": "autoencoder", "weight": 0.4}}
SMALL = ["--model.backbone=T5Backbone", *model(), "--data.reader.brand_in_text=false", "--trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def source_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A model with two further sources; don't change it."""
    folder = tmp_path_factory.mktemp("sources")
    images(folder / "images.parquet")
    flags = ["--model.objective=score", "--model.memory=true", "--model.neighbours=true", "--test_after_fit=true"]
    given = [f"--data.vectors={json.dumps(sources(folder))}", f"--model.tokens={json.dumps(TOKENS)}"]
    run([*command("fit", folder, *SMALL, *flags, *given)])
    checkpoint = next((folder / "lightning_logs/version_0/checkpoints").glob("epoch-*.ckpt"))
    return TrainedRun(checkpoint, folder / "data/tiny", folder)


def histories(catalogue: Catalogue) -> list[list[str]]:
    return [catalogue.ids[:4], catalogue.ids[10:11], []]


def answers(recommender: Recommender, of: list[list[str]], k: int = 5) -> list[list[tuple[str, float]]]:
    return [[(one.id, round(one.score, 3)) for one in answer.items] for answer in recommender.recommend(of, k=k)]


# ------------------------------------------------------------------------------------------------------------ the vectors
def test_a_table_of_vectors_may_lack_items(tmp_path: Path) -> None:
    table = pl.DataFrame({"id": ["b", "x", "a"], "vector": [[3.0, 4.0], [9.0, 9.0], [0.0, 5.0]]})
    table.write_parquet(tmp_path / "v.parquet")
    found = read_vector_file(tmp_path / "v.parquet", ["a", "b", "c"])
    assert found.vectors.tolist() == [[0, 5], [3, 4], [0, 0]]
    assert found.present is not None
    assert found.present.tolist() == [True, True, False]
    made = FileVectors(str(tmp_path / "v.parquet")).make(pl.DataFrame({"id": ["a", "b", "c"]}), None, None)  # type: ignore[arg-type]
    assert made.present.tolist() == [True, True, False]
    np.testing.assert_allclose(made.vectors, np.array([[0, 5], [3, 4], [0, 0]]) / 5)  # mean length 1


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"id": ["a", "a"], "vector": [[1.0], [2.0]]}, "has item 'a' twice"),
        ({"id": ["a"], "image": [[1.0]]}, "must hold the columns id and vector"),
        ({"id": ["a", "b"], "vector": [[1.0], [2.0, 3.0]]}, "lists of numbers of one length"),
        ({"id": ["a", "b"], "vector": [[1.0], [float("nan")]]}, "holds NaN or infinity"),
        ({"id": ["x"], "vector": [[1.0]]}, "has a vector for none of the 2 items"),
    ],
)
def test_a_wrong_table_of_vectors_is_refused(tmp_path: Path, table: dict[str, list[object]], said: str) -> None:
    pl.DataFrame(table).write_parquet(tmp_path / "v.parquet")
    with pytest.raises(DataError, match=said):
        FileVectors(str(tmp_path / "v.parquet")).make(pl.DataFrame({"id": ["a", "b"]}), None, None)  # type: ignore[arg-type]


def test_a_field_is_encoded_alone() -> None:
    items = WORLD.read(None).items
    field = FieldText("category", TfidfSVD(8)).make(items, None, None)  # type: ignore[arg-type]
    alone = TfidfSVD(8).encode(items["id"].to_list(), items["category"].to_list(), None, items)
    np.testing.assert_array_equal(field.vectors, alone)
    with pytest.raises(DataError, match="no column 'colour'"):
        FieldText("colour", TfidfSVD(8)).make(items, None, None)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ prepared data
def test_prepared_data_holds_the_sources_and_counts_what_is_missing(source_run: TrainedRun) -> None:
    catalogue, manifest = Catalogue.load(source_run.data), read_manifest(source_run.data)
    assert manifest is not None
    assert list(catalogue.vectors) == ["image", "kind"]
    image = catalogue.vectors["image"]
    with_image = set(pl.read_parquet(source_run.folder / "images.parquet")["id"])
    assert image.present.tolist() == [own in with_image for own in catalogue.ids]
    assert not image.table[~image.present].any()
    missing = int((~image.present).sum())
    assert missing
    cold = int((~catalogue.warm).sum())
    known = int((image.present & ~catalogue.warm).sum())
    assert manifest["report"]["vectors"]["image"] == {"missing": missing, "cold": cold, "cold_known": known}
    assert manifest["vectors"]["image"]["missing"] == missing
    assert manifest["vectors"]["image"]["width"] == 6
    assert len(manifest["vectors"]["image"]["files"]) == 1  # its hash
    assert manifest["vectors"]["kind"]["field"] == "category"


def test_the_data_is_prepared_again_when_a_source_changes(tmp_path: Path) -> None:
    images(tmp_path / "images.parquet")
    given = sources(tmp_path)
    words = command("fit", tmp_path, *SMALL, "--trainer.max_steps=1", "--trainer.limit_val_batches=0")
    run([*words, f"--data.vectors={json.dumps(given)}"])
    first = Catalogue.load(tmp_path / "data/tiny")
    created = (read_manifest(tmp_path / "data/tiny") or {})["created"]
    run([*words, f"--data.vectors={json.dumps(given)}"])
    assert (read_manifest(tmp_path / "data/tiny") or {})["created"] == created
    table = images(tmp_path / "images.parquet")
    table.with_columns(pl.col("vector").list.reverse()).write_parquet(tmp_path / "images.parquet")
    run([*words, f"--data.vectors={json.dumps(given)}"])
    second = Catalogue.load(tmp_path / "data/tiny")
    assert second.fingerprint != first.fingerprint
    torch.testing.assert_close(second.vectors["image"].table, first.vectors["image"].table.flip(1))
    run([*words, f"--data.vectors={json.dumps({'kind': given['kind']})}"])
    assert list(Catalogue.load(tmp_path / "data/tiny").vectors) == ["kind"]
    run(words)
    assert not (tmp_path / "data/tiny/vectors.safetensors").exists()


@pytest.mark.parametrize("name", ["text", "cf_0", "sem_1", "a b", "1st", "a.b"])
def test_names_that_are_refused(name: str, tmp_path: Path) -> None:
    from setrec.data.datamodule import SETRecDataModule

    with pytest.raises(ConfigError, match="can't be a name"):
        SETRecDataModule(root=str(tmp_path), vectors={name: CooccurrenceSVD()})


# ---------------------------------------------------------------------------------------------------------------- the score
def test_the_score_is_the_sum_of_its_explanation(source_run: TrainedRun) -> None:
    recommender = Recommender.load(source_run.checkpoint)
    catalogue = Catalogue.load(source_run.data)
    cold = [own for own, warm in zip(catalogue.ids, catalogue.warm.tolist(), strict=True) if not warm]
    for candidates in (None, cold):
        for answer in recommender.recommend(histories(catalogue), k=5, explain=True, candidates=candidates):
            for item in answer.items:
                assert item.why is not None
                assert sum(item.why.parts.values()) == pytest.approx(item.score, abs=1e-3)
                assert {"source:image", "memory:image", "source:kind", "memory:kind"} <= item.why.parts.keys()
    assert recommender.info()["slots"] == {"cf": 1, "sem": 2, "image": 2, "kind": 2}


def test_similar_items_by_a_source(source_run: TrainedRun) -> None:
    recommender, catalogue = Recommender.load(source_run.checkpoint), Catalogue.load(source_run.data)
    image = catalogue.vectors["image"]
    row = int(image.present.nonzero()[3])
    cosine = torch.nn.functional.cosine_similarity(image.table[row : row + 1].float(), image.table.float())  # (N,)
    others = [i for i in image.present.nonzero().flatten().tolist() if i != row]
    best = sorted(others, key=lambda i: -float(cosine[i]))[:5]
    found = recommender.similar(catalogue.ids[row], "image", k=5)
    assert [one.similarity for one in found] == pytest.approx([float(cosine[i]) for i in best], abs=1e-5)
    with pytest.raises(ConfigError, match="one of text, co_occurrence, slots, cf, image, kind"):
        recommender.similar(catalogue.ids[row], "smell")


def test_a_cold_item_with_an_image_is_scored_by_it(source_run: TrainedRun) -> None:
    recommender = Recommender.load(source_run.checkpoint)
    weights = recommender._snapshot.restored.weights._replace(sources={"image": 1.0, "kind": 0.4})
    recommender._snapshot = recommender._snapshot._replace(
        restored=recommender._snapshot.restored._replace(weights=weights)
    )
    catalogue = Catalogue.load(source_run.data)
    image = catalogue.vectors["image"].present
    for cold, known in (((~catalogue.warm) & image, True), (~image, False)):
        some = [own for own, one in zip(catalogue.ids, cold.tolist(), strict=True) if one]
        assert some
        (answer,) = recommender.recommend([catalogue.ids[:4]], k=3, explain=True, candidates=some)
        for item in answer.items:
            assert item.why is not None
            assert (item.why.parts["source:image"] != 0) == known


def test_a_fixed_weight_stays_and_others_are_chosen_on_validation(source_run: TrainedRun) -> None:
    restored = Recommender.load(source_run.checkpoint)._snapshot.restored
    assert restored.weights.sources["kind"] == pytest.approx(0.4)
    assert restored.weights.sources["image"] in (0.0, 0.25, 0.5, 1.0)
    grid = restored.scorer.weightings()
    assert {w.sources["kind"] for w in grid} == {restored.weights.sources["kind"]}
    assert {w.sources["image"] for w in grid} == {0.0, 0.25, 0.5, 1.0}
    assert grid[0].sources["image"] == 0.5  # of equals the first: as much as in training
    results = json.loads((source_run.folder / "lightning_logs/version_0/results.json").read_text())
    assert results["protocol"]["weights"]["source_kind"] == 0.4


# --------------------------------------------------------------------------------- the short form is one of many
def test_cf_and_text_as_named_sources_give_the_same_numbers_to_the_bit(tmp_path: Path) -> None:
    cf = {"class_path": "setrec.cf.CooccurrenceSVD", "init_args": {"width": 16}}
    text = {"class_path": "setrec.text.TfidfSVD", "init_args": {"width": 24}}
    made = {}
    for form in ("short", "explicit"):
        flags = ["--model.objective=score", "--model.memory=true", "--model.missing_cf=zero"]
        if form == "short":
            flags += [f"--data.cf=[{json.dumps(cf)}]", f"--data.text={json.dumps(text)}"]
        else:
            tokens = {"bought": {"weight": 0.5}, "words": {"slots": 2, "tokenizer": "autoencoder", "weight": 0.5}}
            flags += [f"--data.vectors={json.dumps({'bought': cf, 'words': text})}", "--data.cf=[]", "--data.text=null"]
            flags += [f"--model.tokens={json.dumps(tokens)}", "--model.n_cf=0", "--model.n_sem=0"]
        folder = tmp_path / form
        words = command("fit", folder, *SMALL, "--trainer.max_epochs=1", "--trainer.limit_val_batches=0")
        run([*words, *flags, "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={folder}"])
        log = pl.read_csv(next(folder.rglob("metrics.csv")))
        checkpoint = next(folder.rglob("*.ckpt"))
        state = torch.load(checkpoint, weights_only=True)["state_dict"]
        made[form] = log["train/loss"].to_list(), [v for k, v in state.items() if k.startswith("model.")], checkpoint
    assert made["short"][0] == made["explicit"][0]
    shapes = sorted(tuple(v.shape) for v in made["short"][1])
    assert shapes == sorted(tuple(v.shape) for v in made["explicit"][1])
    sums = [sorted(float(v.double().sum()) for v in made[form][1]) for form in ("short", "explicit")]
    assert sums[0] == sums[1]
    short, explicit = (Recommender.load(made[form][2]) for form in ("short", "explicit"))
    ids = Catalogue.load(tmp_path / "short/data/tiny").ids
    lists = [
        [[(i.id, i.score) for i in a.items] for a in r.recommend([ids[:3], []], beta=0.5)] for r in (short, explicit)
    ]
    assert [[i for i, _ in row] for row in lists[0]] == [[i for i, _ in row] for row in lists[1]]


# ----------------------------------------------------------------------------------------------------------- every way out
def new_items(folder: Path, lacking: bool = False) -> list[dict[str, object]]:
    rng = np.random.default_rng(3)
    made: list[dict[str, object]] = [
        {"id": f"N{n}", "title": "sturdy dome tent", "text": "sturdy dome tent. camping.", "category": "camping",
         "vector_image": rng.standard_normal(6).tolist()}
        for n in range(3)
    ]  # fmt: skip
    if lacking:
        del made[1]["vector_image"]
    return made


def test_new_items_bring_their_vectors_or_have_none(source_run: TrainedRun, tmp_path: Path) -> None:
    recommender = Recommender.load(source_run.checkpoint)
    recommender.add_items(new_items(tmp_path, lacking=True))
    image, kind = (recommender._snapshot.catalogue.vectors[name] for name in ("image", "kind"))
    assert image.present[-3:].tolist() == [True, False, True]
    assert not image.table[-2].any()
    given = np.array(new_items(tmp_path)[0]["vector_image"])
    ratio = image.table[-3].numpy() / given  # divided by the mean length of the file
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert kind.present[-3:].all()
    known = next(i for i, text in enumerate(recommender._trained.items["category"]) if text == "camping")
    torch.testing.assert_close(kind.table[-1], kind.table[known], atol=1e-5, rtol=0)
    (answer,) = recommender.recommend([["N0"]], k=2, explain=True, candidates=["N1", "N2"])
    of = {item.id: item.why.parts["memory:image"] for item in answer.items if item.why is not None}
    assert of["N1"] == 0

    folder = recommender.save(tmp_path / "version")
    again = Recommender.load(folder)
    assert answers(again, [["N0"], ["N1"]]) == answers(recommender, [["N0"], ["N1"]])


def test_a_published_model_carries_the_sources(source_run: TrainedRun, tmp_path: Path) -> None:
    trained, published = Recommender.load(source_run.checkpoint), tmp_path / "published"
    trained.save_pretrained(published)
    shown = Recommender.load(published)
    some = histories(Catalogue.load(source_run.data))
    assert answers(shown, some) == answers(trained, some)
    for recommender in (trained, shown):
        recommender.add_items(new_items(tmp_path, lacking=True))
    assert answers(shown, [["N0"], ["N1"]]) == answers(trained, [["N0"], ["N1"]])
    assert not [name for name in shown.info()["attributes"] if name.startswith(("vector", "present"))]


def test_a_wrong_vector_of_a_new_item_is_refused(source_run: TrainedRun, tmp_path: Path) -> None:
    recommender = Recommender.load(source_run.checkpoint)
    bad = new_items(tmp_path)
    bad[1]["vector_image"] = [1.0, 2.0]
    with pytest.raises(DataError, match="row 2: item 'N1': its vector_image must be a list of 6 finite numbers"):
        recommender.add_items(bad)
    bad[1]["vector_image"] = [1e6] * 6
    with pytest.raises(DataError, match="row 2: item 'N1': the length of its vector"):
        recommender.add_items(bad)
    with pytest.raises(DataError, match="what its vector is made of"):
        recommender.patch_items({next(iter(recommender._snapshot.row)): {"category": "music"}})


def test_the_journal_keeps_the_vectors_of_new_items(source_run: TrainedRun, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(source_run.folder, folder)
    checkpoint = folder / source_run.checkpoint.relative_to(source_run.folder)
    first = Recommender.load(checkpoint, data=folder / "data/tiny")
    first.add_items(new_items(tmp_path, lacking=True))
    version = first.save()
    wanted = answers(first, [["N0"], ["N1"]])
    shutil.rmtree(version)  # the journal alone is left
    again = Recommender.load(checkpoint, data=folder / "data/tiny")
    assert answers(again, [["N0"], ["N1"]]) == wanted


def test_vectors_in_a_request_and_in_the_journal_are_columns_of_a_table() -> None:
    rows = [{"id": "a", "title": "b", "vector_image": [1.0, 2.0], "price": 3}]
    items = items_of(rows)
    assert items == [{"id": "a", "title": "b", "vectors": {"image": [1.0, 2.0]}, "fields": {"price": 3}}]
    assert rows_of(items) == rows


def test_a_vector_without_a_source_is_not_dropped_in_silence(
    tiny_run: TrainedRun, caplog: pytest.LogCaptureFixture
) -> None:
    recommender = Recommender.load(tiny_run.checkpoint)
    recommender.add_items([{"id": "N0", "title": "dome tent", "vector_image": [1.0]}])
    assert "1 new items bring vector_image, which this model has no source for" in caplog.text


def test_a_version_of_the_data_carries_the_sources(source_run: TrainedRun, tmp_path: Path) -> None:
    from setrec.data.clean import Cleaning
    from setrec.data.grow import Newest, NewItems, grow
    from setrec.data.store import locked, write

    base = Catalogue.load(source_run.data)
    table = pl.DataFrame({"id": ["Z1", "Z2"], "title": ["a", "b"], "text": ["a", "b"]})
    assert base.text is not None
    image = np.ones((2, 6), np.float32), np.array([True, False])
    image[0][1] = 0
    vectors = np.zeros((2, base.text.shape[1]), np.float32)
    kinds = FieldText("category", TfidfSVD(8))
    grown = grow(
        source_run.data, "tiny.002", None, NewItems(table, vectors, {"image": image}), [CooccurrenceSVD()], Cleaning(),
        Newest(), "", {"image": FileVectors("x"), "kind": kinds},
    )  # fmt: skip
    folder = tmp_path / "tiny.002"
    with locked(folder):
        write(folder, grown.prepared, grown.about)
    found = Catalogue.load(folder)
    assert found.vectors["image"].present[-2:].tolist() == [True, False]
    torch.testing.assert_close(found.vectors["image"].table[:-2], base.vectors["image"].table)
    assert not found.vectors["kind"].present[-2:].any()
    assert grown.about["vectors"]["image"]["missing"] == int((~found.vectors["image"].present).sum())


def test_a_source_that_the_data_lacks_is_refused(tmp_path: Path, tiny_run: TrainedRun) -> None:
    from setrec.recipe import Recipe, Tokens, check_recipe

    catalogue = Catalogue.load(tiny_run.data)
    with pytest.raises(
        ConfigError, match="--model.tokens names 'image', but the data set 'tiny' has no further vectors"
    ):
        check_recipe(Recipe(tokens={"image": Tokens()}), catalogue)


@pytest.mark.slow
def test_an_exported_model_carries_the_sources(source_run: TrainedRun, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from tests.test_export import check_equal

    main(["export", "--ckpt_path", str(source_run.checkpoint), f"--output={tmp_path / 'out'}", "--formats=[torch]"])
    check_equal(source_run.checkpoint, tmp_path / "out", users=50)


@pytest.mark.slow
def test_an_update_carries_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from setrec.commands import update

    monkeypatch.chdir(tmp_path)
    images(tmp_path / "images.parquet")
    given = sources(tmp_path)
    flags = [
        f"--data.vectors={json.dumps(given)}",
        f"--model.tokens={json.dumps(TOKENS)}",
        "--checkpoint.save_last=true",
    ]
    run([*command("fit", tmp_path, *SMALL), *flags])
    catalogue = Catalogue.load(tmp_path / "data/tiny")
    checkpoint = next(tmp_path.rglob("epoch-*.ckpt"))
    main(["update", "--publish", str(checkpoint)])
    rows = [
        (f"user{u:05d}", own, 1_700_000_000 + t)
        for u in range(60)
        for t, own in enumerate(["N0", *catalogue.ids[u % 9 :][:4]])
    ]
    pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row").write_csv(tmp_path / "events.csv")
    with (tmp_path / "items.jsonl").open("w") as file:
        for item in new_items(tmp_path, lacking=True):
            file.write(json.dumps(item) + "\n")
    report = update.from_words(
        ["--events", "events.csv", "--items", "items.jsonl", "--tolerance", "9",
         "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    )  # fmt: skip
    assert report is not None
    assert report["added"]["items"] == 3
    after = Catalogue.load(tmp_path / "data/tiny.002")
    assert after.ids[-3:] == ["N0", "N1", "N2"]
    assert after.vectors["image"].present[-3:].tolist() == [True, False, True]
    assert after.vectors["kind"].present[-3:].all()
    served = Recommender.load("current.ckpt")
    assert served.info()["slots"]["image"] == 2
    assert served.recommend([["N0"]], k=3)[0].items
