"""predict --histories and add-items: files in, files out, on the command line."""

import csv
import dataclasses
import gzip
import json
import shutil
import zipfile
from pathlib import Path

import polars as pl
import pytest

from setrec import Recommender
from setrec.cli import main
from setrec.commands import predict
from setrec.commands.predict_file import PredictFileOptions, read_candidates
from setrec.errors import DataError
from setrec.files.tables import read_table
from setrec.inference.history_file import read_history_file
from setrec.inference.journal import Journal
from setrec.inference.journal_place import journal_path
from setrec.recommend import Boost
from setrec.serve.options import ServeOptions
from tests.conftest import TrainedRun

WANTED = {"u3": ["a", "b", "c"], "u1": ["c"], "u2": ["b", "a"]}


def written(folder: Path, kind: str) -> Path:
    """WANTED in one of the forms that are read."""
    wide = pl.DataFrame({"user_id": list(WANTED), "history": list(WANTED.values())})
    events = [(user, item, 100 - i) for user, items in WANTED.items() for i, item in enumerate(reversed(items))]
    long = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")  # newest first
    path = folder / {"wide": "w", "long": "l", "order": "o", "spaces": "s", "json": "j"}[kind.partition(".")[0]]
    path = path.with_suffix("." + kind.partition(".")[2])
    if kind == "wide.parquet":
        wide.write_parquet(path)
    elif kind == "wide.jsonl":
        wide.write_ndjson(path)
    elif kind == "long.parquet":
        long.write_parquet(path)
    elif kind == "long.csv":
        long.write_csv(path)
    elif kind == "long.jsonl":
        long.write_ndjson(path)
    elif kind == "order.csv":
        long.reverse().drop("timestamp").sort("user_id", descending=True, maintain_order=True).write_csv(path)
    elif kind == "spaces.csv":
        wide.with_columns(pl.col("history").list.join(" ")).write_csv(path)
    else:
        wide.with_columns(pl.Series("history", [json.dumps(items) for items in WANTED.values()])).write_csv(path)
    return path


@pytest.mark.parametrize(
    "kind",
    ["wide.parquet", "wide.jsonl", "long.parquet", "long.csv", "long.jsonl", "order.csv", "spaces.csv", "json.csv"],
)
def test_every_form_is_read_alike(kind: str, tmp_path: Path) -> None:
    file = read_history_file(written(tmp_path, kind))
    found = dict(zip(file.users, file.histories, strict=True))
    assert found == WANTED
    if kind != "order.csv":
        assert file.users == list(WANTED)  # in order of appearance


def test_files_are_read_as_those_of_the_training(tmp_path: Path) -> None:
    """Any separator, encoding and packing, floats for ids, dates in words."""
    rows = [("ü", "1.0", "01/07/2014"), ("ü", " 2.0", "31/07/2014"), ("x", "3.0", "02/07/2014")]
    wanted = (["ü", "x"], [["1", "2"], ["3"]], None)
    for separator in ",;\t|":
        text = "\n".join(separator.join(row) for row in [("user_id", "item_id", "timestamp"), *rows])
        for name, content in (
            ("h.csv", text.encode()),
            ("h.tsv", text.encode("cp1252")),
            ("h.txt", text.encode("utf-16")),
        ):
            (tmp_path / name).write_bytes(content)
            assert read_history_file(tmp_path / name) == wanted
    (tmp_path / "h.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert read_history_file(tmp_path / "h.csv.gz") == wanted
    lines = "".join(json.dumps({"user_id": u, "item_id": float(i), "timestamp": t}) + "\n" for u, i, t in rows)
    (tmp_path / "h.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert read_history_file(tmp_path / "h.jsonl.gz") == wanted
    with zipfile.ZipFile(tmp_path / "h.zip", "w") as archive:
        archive.writestr("h.jsonl", lines)
    assert read_history_file(tmp_path / "h.zip") == wanted
    (tmp_path / "h.csv").write_text("user_id;history\nu;1.0 2.0\nv;\n")
    assert read_history_file(tmp_path / "h.csv") == (["u", "v"], [["1", "2"], []], None)


def test_numbers_are_ids_and_an_empty_history_is_one(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text('{"user": 7, "bought": [1, 2]}\n{"user": 8, "bought": []}\n{"user": 9, "bought": null}\n')
    assert read_history_file(path, user="user", history="bought") == (["7", "8", "9"], [["1", "2"], [], []], None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user,item\nu,a\n", r"h\.csv needs a column 'user_id'.*it has user, item"),
        ("user_id,item_id\nu,a\nu,\n", "row 2: no item"),
        ("user_id,item_id\n,a\n", "row 1: no user"),
        ("user_id,item_id,timestamp\nu,a,2020-01-01\nu,b,soon\n", "row 2: 'soon' in column 'timestamp'"),
        ("user_id,item_id\nu,a\nu,b,c\n", r"h\.csv has 1 malformed line: line 3 \(3 fields, not 2\)"),
        ("user_id,item_id,timestamp\nu,a,01/02/2020\n", "'01/02/2020' nobody can know.*write the dates as"),
        ("user_id,history\nu,a b\nv,c\nu,d\n", "row 3: user 'u' is there twice"),
        ('user_id,history\nu,"[""a"", "\n', "row 1: the history is no JSON list"),
        ('user_id,history\nu,"[""a"", null]"\n', "row 1: the history of user 'u' holds an empty item"),
    ],
)
def test_wrong_files_are_refused_with_the_row(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_history_file(path)


@pytest.fixture(scope="module")
def histories(tiny_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 made-up users of the tiny world, three blocks of them, some with unknown items, one without any."""
    own = pl.read_parquet(tiny_run.data / "items.parquet")["id"].to_list()
    rows = [[own[(7 * u + i * i) % len(own)] for i in range(u % 9)] for u in range(600)]
    rows[5].append("nope")
    path = tmp_path_factory.mktemp("histories") / "h.parquet"
    pl.DataFrame({"user_id": [f"x{u}" for u in range(600)], "history": rows}).write_parquet(path)
    return path


def predicted(run: TrainedRun, histories: Path, output: Path, *more: str) -> pl.DataFrame:
    main(["predict", "--ckpt_path", str(run.checkpoint), f"--histories={histories}", f"--output={output}", *more])
    assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]
    if output.suffix == ".parquet":
        return pl.read_parquet(output)
    return pl.read_ndjson(output) if output.suffix == ".jsonl" else pl.read_csv(output)


def test_predictions_are_those_of_recommend_each_user_once(
    tiny_run: TrainedRun, histories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = predicted(tiny_run, histories, tmp_path / "out.parquet", "--k=5")
    assert "1 ids of the histories are not in the catalogue and were skipped: nope" in capsys.readouterr().out
    file = read_history_file(histories)
    answers = Recommender.load(tiny_run.checkpoint).recommend(file.histories, k=5)
    expected = [
        (user, rank, item.id, item.title)
        for user, answer in zip(file.users, answers, strict=True)
        for rank, item in enumerate(answer.items, 1)
    ]
    assert table.select("user_id", "rank", "item_id", "title").rows() == expected
    assert len(expected) == 600 * 5


@pytest.mark.process
def test_processes_share_the_work_and_change_nothing(tiny_run: TrainedRun, histories: Path, tmp_path: Path) -> None:
    one, two = (
        predicted(tiny_run, histories, tmp_path / f"{n}.parquet", f"--processes={n}", "--explain") for n in (1, 2)
    )
    assert one.equals(two)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_other_files_say_the_same_with_reasons(
    kind: str, tiny_run: TrainedRun, histories: Path, tmp_path: Path
) -> None:
    whole = predicted(tiny_run, histories, tmp_path / "out.parquet", "--explain")
    other = predicted(tiny_run, histories, tmp_path / f"out.{kind}", "--explain")
    assert (
        other.columns
        == whole.columns
        == ["user_id", "rank", "item_id", "score", "title", "parts", "nearest_text", "nearest_cf"]
    )
    assert other["item_id"].to_list() == whole["item_id"].to_list()
    first = json.loads(other["parts"][0]) if kind == "csv" else other["parts"][0]
    assert first == pytest.approx(whole["parts"][0], abs=1e-5)
    sums = whole.select(sum=pl.sum_horizontal(pl.col("parts").struct.unnest()))["sum"]
    assert (sums - whole["score"]).abs().max() < 1e-4  # type: ignore[operator]


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--processes=0", "--processes is 0"), ("--output=a.txt", "must end in .parquet"), ("--k=0", "k is 0")],
)
def test_wrong_options_are_refused_before_anything_is_read(
    flag: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--ckpt_path=none.ckpt", "--histories=none.csv", flag])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_the_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the Recommender, too, whose words stand in another class."""
    for command, options in (("predict --histories=x", PredictFileOptions), ("serve", ServeOptions)):
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        text = " ".join(capsys.readouterr().out.split())
        for field in dataclasses.fields(options):
            explained = text[text.rindex(f" --{field.name} ") :]  # the first place is in the usage line
            assert explained[: explained.index("(type:")].count(" ") > 4, field.name
            assert "default:" in explained


def test_candidates_and_refused_ids(
    tiny_run: TrainedRun, histories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = pl.read_parquet(tiny_run.data / "items.parquet")["id"].to_list()[::4]
    pl.DataFrame({"id": some}).write_csv(tmp_path / "stock.csv")
    table = predicted(tiny_run, histories, tmp_path / "out.csv", f"--candidates={tmp_path / 'stock.csv'}")
    assert set(table["item_id"]) == set(some)
    with pytest.raises(SystemExit) as stop:
        predicted(tiny_run, histories, tmp_path / "no.csv", "--unknown=refuse")
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "history 5: item 'nope'" in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "no.csv").exists()


def test_unknown_candidates_are_named_and_all_unknown_is_refused(
    tiny_run: TrainedRun, histories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = pl.read_parquet(tiny_run.data / "items.parquet")["id"].to_list()
    stock = tmp_path / "stock.csv"
    stock.write_text("\n".join(["id", *own[:5], "gone", "sold"]) + "\n")
    table = predicted(tiny_run, histories, tmp_path / "out.csv", f"--candidates={stock}", "--processes=2")
    assert set(table["item_id"]) == set(own[:5])
    assert "2 ids of the candidates are not in the catalogue and were skipped: gone, sold" in capsys.readouterr().out
    others = tmp_path / "h.csv"
    others.write_text("user_id,item_id\nu,nope\nv,never\n")
    for flags, said in (
        (
            [f"--histories={histories}", f"--candidates={stock}"],
            "no id of the candidates is in the catalogue (such as 'gone')",
        ),
        ([f"--histories={histories}", f"--candidates={stock}", "--processes=2"], "no id of the candidates"),
        ([f"--histories={others}"], "no id of the histories is in the catalogue (such as 'nope')"),
    ):
        stock.write_text("id\ngone\nsold\n")
        with pytest.raises(SystemExit, match="2"):
            main(["predict", "--ckpt_path", str(tiny_run.checkpoint), f"--output={tmp_path / 'no.csv'}", *flags])
        assert said in capsys.readouterr().err
    for text, said in (
        ("id\n", "holds no candidates"),
        ("id,x\na,1\n,2\n", "row 2: no id"),
        ("x\n1\n", "has no column 'id'"),
    ):
        stock.write_text(text)
        with pytest.raises(DataError, match=said):
            read_candidates(str(stock))
    assert not (tmp_path / "no.csv").exists()


def test_add_items_on_the_command_line(
    tiny_run: TrainedRun, histories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "model.ckpt"
    checkpoint.write_bytes(tiny_run.checkpoint.read_bytes())
    (tmp_path / "new.csv").write_text("id,title\nNEW1,milk frother\nNEW2,road bike\n")
    main(["add-items", "--ckpt_path", str(checkpoint), f"--items={tmp_path / 'new.csv'}"])
    (tmp_path / "more.jsonl").write_text('{"id": "NEW3", "title": "seed tray"}\n')
    main(["add-items", "--ckpt_path", str(checkpoint), f"--items={tmp_path / 'more.jsonl'}", "--remove=[NEW1]"])
    version = tmp_path / "model.items-002"
    assert str(version) in capsys.readouterr().out
    assert Recommender.load(version).info()["added"] == 2
    (tmp_path / "only.csv").write_text("id\nNEW2\nNEW3\n")
    run = tiny_run._replace(checkpoint=version)
    table = predicted(run, histories, tmp_path / "out.parquet", f"--candidates={tmp_path / 'only.csv'}")
    assert set(table["item_id"]) == {"NEW2", "NEW3"}
    with pytest.raises(SystemExit) as stop:
        main(["add-items", "--ckpt_path", str(checkpoint)])
    assert stop.value.code == 2
    assert "--items FILE" in capsys.readouterr().err


def test_no_cell_of_a_csv_is_a_formula(tiny_run: TrainedRun, tmp_path: Path) -> None:
    """Ids and titles by somebody else; the file comes back as it was, as a file of histories too."""
    evil = ['=HYPERLINK("http://evil","x")', "@SUM(1)", "+1+1", "-2+3", "\t=1", "\r=1", "'=1"]
    new = pl.DataFrame({"id": [f"{text}_{i}" for i, text in enumerate(evil)], "title": evil})
    new.write_parquet(tmp_path / "new.parquet")
    version = tmp_path / "version"
    words = ["add-items", "--ckpt_path", str(tiny_run.checkpoint), f"--items={tmp_path / 'new.parquet'}"]
    main([*words, f"--output={version}"])
    ids = [own.strip() for own in new["id"]]
    pl.DataFrame({"user_id": ["=u", "-7"], "history": [ids[:2], ids]}).write_parquet(tmp_path / "h.parquet")
    run = tiny_run._replace(checkpoint=version)
    flags = ["--k=100", "--exclude_seen=false", "--explain"]
    whole = predicted(run, tmp_path / "h.parquet", tmp_path / "out.parquet", *flags)
    predicted(run, tmp_path / "h.parquet", tmp_path / "out.csv", *flags)
    with (tmp_path / "out.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert set(ids) <= {line["item_id"].removeprefix("'") for line in lines}
    for line in lines:
        for name, cell in line.items():
            assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r") or float(cell) < 0, (name, cell)
    found = read_table(tmp_path / "out.csv")
    for column in ("user_id", "item_id", "title"):
        assert found[column].to_list() == whole[column].to_list()
    assert found["score"].cast(pl.Float32).to_list() == pytest.approx(whole["score"].to_list(), rel=1e-6)
    again = read_history_file(tmp_path / "out.csv", time="rank")
    assert again.users == ["=u", "-7"]
    assert set(ids) <= set(again.histories[0])


def test_filter_caps_and_boosts_on_the_command_line(tiny_run: TrainedRun, tmp_path: Path) -> None:
    recommender = Recommender.load(tiny_run.checkpoint)
    columns = recommender.info()["attributes"]
    column = next(iter(columns))
    known = [item.id for item in recommender.popular(5)]
    value = recommender.item(known[0]).attributes[column]
    users = tmp_path / "users.jsonl"
    users.write_text(json.dumps({"user_id": "u", "history": known}) + "\n")
    rules = {"diversity": 0.4, "caps": {column: 2}, "boosts": [{"filter": f"{column} = '{value}'", "add": 0.5}]}
    words = [f"--{name}={json.dumps(given)}" for name, given in rules.items()]
    common = [
        f"--ckpt_path={tiny_run.checkpoint}",
        f"--histories={users}",
        f"--output={tmp_path / 'out.parquet'}",
        "--explain",
    ]
    main(["predict", *common, *words, f"--filter={column} is not null"])
    found = pl.read_parquet(tmp_path / "out.parquet")
    boosts = [Boost(boost["filter"], boost["add"]) for boost in rules["boosts"]]  # type: ignore[index, union-attr]
    (expected,) = recommender.recommend(
        [known], diversity=0.4, caps={column: 2}, boosts=boosts, filter=f"{column} is not null"
    )  # fmt: skip
    assert found["item_id"].to_list() == [item.id for item in expected.items]
    assert set(found["parts"][0]) >= {boosts[0].part, "diversity"}


def test_predict_for_the_users_of_the_data_says_that_the_catalogue_has_changed(
    tiny_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("setrec.commands.fit.run", asked.append)
    path = tmp_path / "model.ckpt"
    shutil.copy(tiny_run.checkpoint, path)
    words = ["--ckpt_path", str(path)]
    predict.from_words(words)
    assert capsys.readouterr().err == ""
    Journal(journal_path(path)).remove(["A1"])
    predict.from_words(words)
    assert "predict ranks the items of the training" in capsys.readouterr().err
    assert asked == [["predict", *words]] * 2
