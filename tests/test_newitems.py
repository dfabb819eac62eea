"""Items that come after training: their vectors are those they would have had, and nothing else changes."""

import dataclasses
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.numpy import load_file

import setrec.recommend
from setrec import Recommender
from setrec.data.catalogue import ENCODER, ITEMS, Catalogue
from setrec.errors import ConfigError, DataError, ModelError
from setrec.inference.answers import make_snapshot
from setrec.inference.item_encoders import ItemEncoders
from setrec.inference.journal import Journal
from setrec.inference.journal_place import journal_path
from setrec.inference.restore import rebuild
from setrec.inference.versions import NO_CHANGES, list_versions
from setrec.text import TextFile, TfidfSVD
from tests.conftest import TrainedRun, train_tiny

HELD_OUT = range(0, 60, 7)


@pytest.fixture
def recommender(tiny_run: TrainedRun) -> Recommender:
    return Recommender.load(tiny_run.checkpoint)


@pytest.fixture(scope="module")
def table(tiny_run: TrainedRun) -> pl.DataFrame:
    return pl.read_parquet(tiny_run.data / ITEMS)


def as_never_bought(catalogue: Catalogue, rows: list[int]) -> Catalogue:
    """The catalogue with some items as if nobody had bought them in training."""
    count, present = catalogue.count.clone(), [there.clone() for there in catalogue.present]
    count[rows] = 0
    for there in present:
        there[rows] = False
    return dataclasses.replace(catalogue, count=count, present=tuple(present))


@pytest.mark.parametrize("from_text", [True, False])
def test_added_items_are_what_they_would_have_been_from_the_start(
    recommender: Recommender, table: pl.DataFrame, from_text: bool
) -> None:
    """Hold items out, add them afterwards: vectors, tokens and every score are those of a model that always had them."""
    rows = list(HELD_OUT)
    catalogue, trained = recommender._snapshot.catalogue, recommender._trained
    assert catalogue.text is not None
    whole = as_never_bought(catalogue, rows)
    from_the_start = rebuild(recommender._snapshot.restored, trained, whole)
    everyone = [[own] for own in catalogue.ids] + [catalogue.ids[i : i + 9] for i in range(0, 60, 5)]
    expected = Recommender(
        trained, make_snapshot(from_the_start, whole, NO_CHANGES, trained.items, trained.max_history)
    )
    expected_lists = expected.recommend(everyone, k=1000)

    held = [catalogue.ids[i] for i in rows]
    recommender.remove_items(held)
    assert not set(held) & {item.id for answer in recommender.recommend(everyone, k=1000) for item in answer.items}
    new = table[rows].select("id", "title", "text")
    if not from_text:
        new = new.with_columns(pl.Series("vector", catalogue.text[rows].tolist()))
    assert recommender.add_items(new) == held

    state = recommender._snapshot
    assert state.catalogue.text is not None
    at = [state.row[own] for own in catalogue.ids]  # where each item is now
    torch.testing.assert_close(state.catalogue.text[at], whole.text, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        state.restored.scorer.index.codes[-1][at], from_the_start.scorer.index.codes[-1], rtol=0, atol=1e-5
    )
    for user, (wanted, got) in enumerate(zip(expected_lists, recommender.recommend(everyone, k=1000), strict=True)):
        scores = {item.id: item.score for item in got.items}
        assert {item.id: item.warm for item in got.items} == {item.id: item.warm for item in wanted.items}
        for item in wanted.items:
            assert scores[item.id] == pytest.approx(item.score, abs=1e-5), (user, item.id)


def test_a_new_item_is_recommended_and_read_at_once(recommender: Recommender) -> None:
    old = recommender.search("telescope")[0]
    new = {"id": "NEW1", "title": old.title, "text": f"{old.title}. astronomy"}
    assert recommender.add_items([new, {"id": "NEW2", "title": "espresso machine"}]) == ["NEW1", "NEW2"]
    found = [item.id for item in recommender.search(old.title)]
    assert "NEW1" in found
    (answer,) = recommender.recommend([["NEW1"]], k=1000, explain=True)
    assert answer.unknown == []
    item = next(item for item in answer.items if item.id == "NEW2")
    assert item.title == "espresso machine"
    assert not item.warm
    assert item.why is not None
    assert item.why.parts["cf_0"] == 0
    assert recommender.info()["added"] == 2


@pytest.mark.parametrize("missing", ["as_is", "zero"])
def test_an_added_item_has_a_zero_cf_vector_under_either_choice(missing: str, tiny_run: TrainedRun) -> None:
    recommender = Recommender.load(tiny_run.checkpoint)
    recommender._trained.arguments["missing_cf"] = missing
    recommender.add_items([{"id": "NEW", "title": "road bike"}])
    state = recommender._snapshot
    (table,), vectors, present = state.restored.model.cf, state.catalogue.cf[0], state.catalogue.present[0]
    assert state.row["NEW"] == len(table) - 1
    assert not table[-1].any()
    assert torch.equal(table, vectors if missing == "as_is" else vectors * present[:, None])


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "no new items"),
        ([{"title": "x"}], "no column 'id'"),
        ([{"id": " ", "title": "x"}], "row 1: the id is blank"),
        ([{"id": "a", "title": "x"}, {"id": "a", "title": "y"}], "row 2: item 'a': it is there twice"),
        ([{"id": "a", "title": "x"}, {"id": "b", "title": ""}], "row 2: item 'b' has neither"),
        ([{"id": "a", "title": "x", "vector": [1.0, 2.0]}], "list of .* finite numbers"),
        ([{"id": "a", "title": "x", "vector": ["1", "2"]}], "list of .* finite numbers"),
        ([{"id": "a", "title": "x"}, 5], "not a table"),
    ],
)
def test_wrong_items_are_refused_whole(recommender: Recommender, items: list, said: str) -> None:
    before = recommender._snapshot
    with pytest.raises(DataError, match=said):
        recommender.add_items(items)
    assert recommender._snapshot is before


def test_a_known_item_is_refused(recommender: Recommender) -> None:
    with pytest.raises(DataError, match="has it already"):
        recommender.add_items([{"id": recommender._snapshot.catalogue.ids[5], "title": "x"}])


def test_removing(recommender: Recommender) -> None:
    own = recommender._snapshot.catalogue.ids
    with pytest.raises(DataError, match="'nope'"):
        recommender.remove_items([own[0], "nope"])
    with pytest.raises(DataError, match="nothing would be left"):
        recommender.remove_items(own)
    before = {item.id: item.score for item in recommender.recommend([own[5:8]], k=1000)[0].items}
    recommender.remove_items([own[0], own[9]])
    (answer,) = recommender.recommend([[own[0], *own[5:8]]], k=1000)
    assert answer.unknown == [own[0]]
    after = {item.id: item.score for item in answer.items}
    assert after == pytest.approx({own_: before[own_] for own_ in before if own_ not in (own[0], own[9])}, abs=1e-5)


def test_versions_survive_and_are_never_overwritten(tiny_run: TrainedRun, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(tiny_run.checkpoint.read_bytes())
    recommender = Recommender.load(checkpoint)
    own = recommender._snapshot.catalogue.ids
    asked = [own[3:6], ["NEW"], []]
    recommender.add_items(
        [{"id": "NEW", "title": "milk frother", "shelf": "3"}, {"id": "GONE", "title": "x dome tent"}]
    )
    recommender.remove_items(["GONE", own[1]])
    first = recommender.save()
    wanted = recommender.recommend(asked, k=50)
    assert first == tmp_path / "model.items-001"
    recommender.add_items([{"id": "NEWER", "title": "pruning shears"}])
    second = recommender.save()
    assert list_versions(checkpoint) == list_versions(first) == [first, second]
    with pytest.raises(DataError, match="never overwritten"):
        recommender.save(second)
    again = Recommender.load(first)
    assert again.recommend(asked, k=50) == wanted
    assert Recommender.load(second).search("pruning shears") == recommender.search("pruning shears")
    assert again.info()["added"] == 1
    assert again.info()["removed"] == 1
    again.add_items([{"id": "LATER", "title": "seed tray"}])
    with pytest.raises(DataError, match="has changed since this one was loaded"):
        again.save()  # or what came after it would be lost
    assert again.save(tmp_path / "other") == tmp_path / "other"  # a version of its own
    assert Recommender.load(tmp_path / "other").info()["added"] == 2
    current = Recommender.load(checkpoint)
    assert current.recommend(asked, k=50) == recommender.recommend(asked, k=50)
    current.add_items([{"id": "LATER", "title": "seed tray"}])
    assert current.save() == tmp_path / "model.items-003"
    assert not list(tmp_path.glob(".*"))


def test_a_version_moves_with_its_checkpoint(tiny_run: TrainedRun, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    checkpoint = tmp_path / "a/model.ckpt"
    checkpoint.write_bytes(tiny_run.checkpoint.read_bytes())
    recommender = Recommender.load(checkpoint)
    recommender.add_items([{"id": "NEW", "title": "milk frother"}])
    recommender.save()
    (tmp_path / "a").rename(tmp_path / "b")
    assert Recommender.load(tmp_path / "b/model.items-001", data=tiny_run.data).info()["added"] == 1


def test_a_damaged_version_is_refused(recommender: Recommender, tmp_path: Path) -> None:
    recommender.add_items([{"id": "NEW", "title": "milk frother"}])
    folder = recommender.save(tmp_path / "one")
    added = pl.read_parquet(folder / "added.parquet")
    added.with_columns(pl.lit("other").alias("title")).write_parquet(folder / "added.parquet")
    with pytest.raises(ConfigError, match="damaged"):
        Recommender.load(folder)
    (folder / "version.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read as a version of a catalogue"):
        Recommender.load(folder)


def test_what_tfidf_learned_encodes_the_known_texts_as_before(tiny_run: TrainedRun, table: pl.DataFrame) -> None:
    found = torch.from_numpy(TfidfSVD().encode_more(table, load_file(tiny_run.data / ENCODER)))
    torch.testing.assert_close(found, Catalogue.load(tiny_run.data).text, rtol=0, atol=1e-6)


def test_old_prepared_data_without_the_words_says_so(recommender: Recommender) -> None:
    recommender._encoders = ItemEncoders(recommender._trained._replace(encoder=None))
    with pytest.raises(DataError, match="prepare it again"):
        recommender.add_items([{"id": "NEW", "title": "milk frother"}])


def test_an_encoder_of_other_vectors_is_refused(recommender: Recommender) -> None:
    class Wrong(TfidfSVD):
        def encode_more(self, items, learned):  # type: ignore[no-untyped-def]
            return super().encode_more(items, learned)[:, ::-1].copy()

    with pytest.raises(DataError, match="other vectors than the model was trained on"):
        recommender.add_items([{"id": "NEW", "title": "milk frother"}], encoder=Wrong())
    recommender.add_items([{"id": "NEW", "title": "milk frother"}])  # the training's own is not forgotten


def test_a_file_of_vectors_needs_an_encoder_or_a_vector(recommender: Recommender) -> None:
    text = {"class_path": "setrec.text.TextFile", "init_args": {"file": "v.npy"}}
    recommender._encoders = ItemEncoders(recommender._trained._replace(text=text))
    with pytest.raises(DataError, match=r"v\.npy.*--encoder"):
        recommender.add_items([{"id": "NEW", "title": "milk frother"}])
    with pytest.raises(DataError, match="column `vector`"):
        recommender.add_items([{"id": "NEW", "title": "x"}], encoder=TextFile("other.npy"))
    recommender.add_items([{"id": "NEW", "title": "milk frother"}], encoder=TfidfSVD())
    recommender.add_items([{"id": "NEW2", "title": "milk frother"}])  # named once, known from then on
    codes = recommender._snapshot.restored.scorer.index.codes[-1]
    torch.testing.assert_close(codes[-1], codes[-2])


def test_a_model_without_semantic_slots_refuses_new_items(tmp_path: Path) -> None:
    run = train_tiny(tmp_path, "--model.n_sem=0", "--data.text=null")
    recommender = Recommender.load(run.checkpoint)
    with pytest.raises(ConfigError, match="collaborative slots only"):
        recommender.add_items([{"id": "NEW", "title": "milk frother"}])
    own = recommender._snapshot.catalogue.ids
    (answer,) = recommender.recommend([own[:3]], explain=True)
    assert sum(answer.items[0].why.parts.values()) == pytest.approx(answer.items[0].score, abs=1e-5)  # type: ignore[union-attr]


def test_a_sasrec_checkpoint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    from setrec.cli import run

    flags = ["--data.name=tiny", f"--data.root={tmp_path / 'data'}", "--data.reader=SyntheticWorld"]
    flags += ["--data.reader.users=60", "--data.reader.items=40", "--data.cleaning.k_core=2", "--data.text=null"]
    flags += [f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=2", "--trainer.enable_progress_bar=false"]
    run(["fit", "--model=SASRecModule", "--model.width=8", "--data.cf=[]", *flags])
    checkpoint = next((tmp_path / "lightning_logs/version_0/checkpoints").glob("*.ckpt"))
    with pytest.raises(ConfigError, match="is a SASRec checkpoint, and this command takes SETRec checkpoints only"):
        Recommender.load(checkpoint)


def unit(recommender: Recommender, length: float) -> list[float]:
    """A vector of this length."""
    text = recommender._snapshot.catalogue.text
    assert text is not None
    return [length, *[0.0] * (text.shape[1] - 1)]


@pytest.mark.parametrize("length", [3e38, -3e38, 1e39, float("inf"), float("nan"), 50.0])
def test_a_vector_far_from_all_others_is_refused_and_nothing_changes(recommender: Recommender, length: float) -> None:
    before = recommender._snapshot
    items = [
        {"id": "A", "title": "x", "vector": unit(recommender, 1.0)},
        {"id": "B", "title": "y", "vector": unit(recommender, length)},
    ]
    with pytest.raises(
        DataError, match=r"row 2: item 'B': (its vector must be a list of|the length of its vector is)"
    ) as caught:
        recommender.add_items(items)
    assert "\n" not in str(caught.value)
    assert recommender._snapshot is before
    recommender.add_items(items[:1])  # the other one is good
    recommender.add_items([{"id": "C", "title": "z", "vector": unit(recommender, 5.0)}])


def test_a_change_that_makes_scores_infinite_is_not_made(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: here the trial of the length is switched off."""
    before, kept = recommender._snapshot, []
    monkeypatch.setattr("setrec.inference.item_encoders.check_lengths", lambda *_: None)
    for length in (3e38, 1e30):
        with pytest.raises(DataError, match="scores would not be finite"):
            recommender.add_items(
                [{"id": "B", "title": "y", "vector": unit(recommender, length)}], keep=lambda: kept.append(1)
            )
    assert recommender._snapshot is before
    assert not kept


def test_what_cannot_be_kept_is_not_done(recommender: Recommender) -> None:
    """`keep` is called once the change has been tried, and before it is used."""
    before, own = recommender._snapshot, recommender.search("", 1)[0].id

    def full() -> None:
        assert recommender._snapshot is before
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        recommender.add_items([{"id": "NEW", "title": "road bike"}], keep=full)
    with pytest.raises(OSError, match="No space"):
        recommender.remove_items([own], keep=full)
    assert recommender._snapshot is before


def test_a_sick_model_does_not_answer(recommender: Recommender) -> None:
    """Weights that have become NaN, as by a fault of the memory."""
    with torch.no_grad():
        recommender._snapshot.restored.model.queries.fill_(float("nan"))
    with pytest.raises(ModelError, match="scores hold NaN"):
        recommender.recommend([[]])


def test_a_journal_is_applied_as_one_change(
    tiny_run: TrainedRun, recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many kinds of change it holds, the model is made ready once, and the catalogue is that of one after another."""
    path = tmp_path / "model.ckpt"
    shutil.copy(tiny_run.checkpoint, path)
    first, second, third = (item.id for item in recommender.search("", limit=3))
    new = [{"id": "N1", "title": "a lamp"}, {"id": first, "title": "another"}]
    recommender.remove_items([first, second])
    recommender.add_items(new)
    recommender.patch_items({"N1": {"price": 2.0}, third: {"title": "patched", "price": 1.0}})
    journal = Journal(journal_path(path))
    with journal.locked():
        journal.append(recommender._unsaved)
    counted: list[int] = []
    ready = setrec.recommend.rebuild
    monkeypatch.setattr(setrec.recommend, "rebuild", lambda *given: (counted.append(1), ready(*given))[1])
    loaded = Recommender.load(path)
    assert len(counted) == 1
    everyone = [[own] for own in loaded._snapshot.catalogue.ids]
    assert loaded._snapshot.catalogue.ids == recommender._snapshot.catalogue.ids
    assert loaded.recommend(everyone, k=20) == recommender.recommend(everyone, k=20)
    assert loaded.item(third) == recommender.item(third)

    before = loaded._snapshot
    with pytest.raises(DataError, match="'nope'"), loaded.at_once():  # noqa: PT012
        loaded.add_items([{"id": "N2", "title": "t"}])
        loaded.remove_items(["nope"])
    assert loaded._snapshot is before
    assert loaded._unsaved == []
    with loaded.at_once():
        loaded.add_items([{"id": "N2", "title": "t"}])
        assert "N2" not in loaded  # until the end
    assert "N2" in loaded
