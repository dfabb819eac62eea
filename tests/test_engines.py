"""Engines of cleaning, split and counts: polars, DuckDB and Spark prepare the same files."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import polars as pl
import pytest

from setrec.cf import CooccurrenceSVD
from setrec.data import (
    Cleaning,
    DuckDBEngine,
    Engine,
    LeaveOneOut,
    PolarsEngine,
    SETRecDataModule,
    SparkEngine,
    SyntheticWorld,
    TableFiles,
    TimeRatioSplit,
    TimestampSplit,
)  # fmt: skip
from setrec.data.catalogue import read_manifest
from setrec.errors import ConfigError, DataError

needs_duckdb = pytest.mark.skipif(
    importlib.util.find_spec("duckdb") is None, reason="DuckDB is not here: pip install 'setrec[duckdb]'"
)
needs_spark = pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="Spark is not here: pip install 'setrec[spark]', and apt-get install default-jre-headless",
)
SPARK = {
    "spark.sql.shuffle.partitions": "1",
    "spark.sql.codegen.wholeStage": "false",
    "spark.driver.memory": "1g",
    "spark.ui.enabled": "false",
}
START = 1_400_000_000


def events(n: int = 3000, seed: int = 0) -> pl.DataFrame:
    """Events with everything that preparing meets: ties, repeats, equal rows, kinds, ratings, blanks around ids, null words."""
    rng = np.random.default_rng(seed)
    user = [f" u{number}" if number % 7 == 0 else f"u{number}" for number in rng.integers(150, size=n)]
    item = [f"{'é' * (number % 3)}i{number}" for number in (60 * rng.random(n) ** 2).astype(int)]
    time = START + rng.integers(0, 40, n) * 43_200 - (rng.random(n) < 0.1) * START * 2  # some before 1970
    frame = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": time}).with_columns(
        rating=pl.Series(rng.integers(1, 6, n) / 1.1), what=pl.Series(rng.choice(["view", "buy", "", " cart"], n))
    )
    frame = pl.concat([frame, frame.sample(200, seed=1)])  # equal rows
    odd = pl.DataFrame(
        {"user_id": ["nan", "u1", None, "only"], "item_id": ["i1", "", "i2", "NULL"], "timestamp": [START] * 4}
    )
    return pl.concat([frame, odd], how="diagonal_relaxed").sample(fraction=1, shuffle=True, seed=2)


def write_parts(frame: pl.DataFrame, folder: Path, parts: int = 3) -> None:
    folder.mkdir(parents=True)
    size = -(-len(frame) // parts)
    for part in range(parts):
        frame[part * size : (part + 1) * size].write_parquet(folder / f"part-{part:05d}.parquet")
    (folder / "_SUCCESS").touch()


def write_items(raw: Path) -> None:
    items = [f"{'é' * (number % 3)}i{number}" for number in range(50)]
    pl.DataFrame({"item_id": items, "title": [f"title of {own}" for own in items]}).write_csv(raw / "items.csv")


def prepared(folder: Path, engine: Engine, reader, raw: Path | None, **options) -> dict:
    """Prepare a data set. Returns the hashes of its files and the report."""
    options = {"text": None, "cf": [CooccurrenceSVD(width=4)], "cleaning": Cleaning(k_core=3)} | options
    name = type(engine).__name__
    data = SETRecDataModule(
        name=name, reader=reader, raw=str(raw) if raw is not None else None, root=str(folder), engine=engine, **options
    )
    data.prepare_data()
    manifest = read_manifest(folder / name)
    assert manifest is not None
    assert not list(folder.glob(".*.engine"))
    report = manifest["report"]
    for about in report["files"].values():  # what was wrong with rows, an engine counts in one number
        about.pop("reasons", None), about.pop("encoding", None), about.pop("separator", None)
    return {"files": manifest["files"], "report": report, "counts": manifest["counts"]}


CASES: dict[str, dict] = {
    "parts": {"split": TimeRatioSplit()},
    "kinds": {"split": LeaveOneOut(), "reader": {"kind": "what"}},
    "ratings": {"split": LeaveOneOut(), "cleaning": Cleaning(min_rating=1.1, k_core=2, repeats="first")},
    "latest": {"split": TimestampSplit(START + 5 * 86_400, START + 12 * 86_400),
               "cleaning": Cleaning(k_core=2, repeats="last", max_user_events=9, drop_duplicates=False)},
    "everything": {"split": LeaveOneOut(), "reader": {"kind": "what"},
                   "cleaning": Cleaning(min_rating=1.1, k_core=2, repeats="last", max_user_events=15)},
}  # fmt: skip


def compare(tmp_path: Path, engine: Engine, reader: Callable[[], object], raw: Path | None, **options) -> dict:
    ours = prepared(tmp_path / "data", PolarsEngine(), reader(), raw, **options)
    assert prepared(tmp_path / "data", engine, reader(), raw, **options) == ours
    return ours


def check_case(tmp_path: Path, case: str, engine: Engine) -> None:
    options = dict(CASES[case])
    write_parts(events(), tmp_path / "events")
    write_items(tmp_path)
    arguments = {"rating": "rating"} | options.pop("reader", {})
    found = compare(tmp_path, engine, lambda: TableFiles("events", "items.csv", **arguments), tmp_path, **options)
    assert found["report"]["read"]["events"] == 3200
    assert found["report"]["files"]["events"] == {"rows": 3204, "skipped": 4}
    assert found["counts"]["train"] > 40
    assert found["counts"]["items"] > 20


@needs_duckdb
@pytest.mark.parametrize("case", CASES)
def test_duckdb_prepares_the_same_files(tmp_path: Path, case: str) -> None:
    check_case(tmp_path, case, DuckDBEngine(memory="500MB", threads=2))


@needs_duckdb
@pytest.mark.parametrize("store", ["memory", "file"])
def test_parts_in_an_object_store(tmp_path: Path, store: str) -> None:
    write_parts(events(), tmp_path / "events")
    url = f"file://{tmp_path}/events"
    if store == "memory":
        url = "memory://shop/events"
        fsspec.filesystem("memory").put(str(tmp_path / "events"), "/shop/", recursive=True)
    found = compare(tmp_path, DuckDBEngine(), lambda: TableFiles(url, None), None, split=LeaveOneOut())
    local = prepared(tmp_path / "local", PolarsEngine(), TableFiles("events", None), tmp_path, split=LeaveOneOut())
    assert found["files"] == local["files"]
    if store == "memory":
        fsspec.filesystem("memory").rm("/shop", recursive=True)
        with pytest.raises(DataError, match="holds no file that ends in .parquet"):
            prepared(tmp_path / "gone", PolarsEngine(), TableFiles(url, None), None)


@needs_duckdb
@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_csv_is_read_by_the_engine(tmp_path: Path, separator: str) -> None:
    write_items(tmp_path)
    table = events().filter(pl.col("user_id").is_not_null(), pl.col("timestamp") != START)
    table.write_csv(tmp_path / "events.csv", separator=separator, quote_style="non_numeric")
    options = {"split": LeaveOneOut(), "cleaning": Cleaning(min_rating=2, k_core=2)}
    reader = {"rating": "rating", "kind": "what", "item_separator": ","}
    compare(tmp_path, DuckDBEngine(), lambda: TableFiles("events.csv", "items.csv", **reader), tmp_path, **options)


@needs_duckdb
@pytest.mark.parametrize("unit", ["auto", "ms", "us", "ns", "dates", "numbers"])
def test_times_and_ids_of_parquet(tmp_path: Path, unit: str) -> None:
    frame = events().drop("rating", "what").filter(pl.col("timestamp") > START)
    factor = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}.get(unit, 1)
    time = pl.col("timestamp") * factor
    if unit == "dates":
        time = pl.from_epoch("timestamp").cast(pl.Datetime("ms"))
    if unit == "numbers":  # ids too
        frame = frame.with_columns(user_id=pl.col("user_id").str.extract(r"(\d+)").cast(pl.Float64))
    write_parts(frame.with_columns(timestamp=time), tmp_path / "events", 2)
    reader = {"items": None, "time_unit": unit if unit in ("ms", "us", "ns") else "auto"}
    compare(tmp_path, DuckDBEngine(), lambda: TableFiles("events/*.parquet", **reader), tmp_path, split=LeaveOneOut())


@needs_duckdb
def test_what_another_reader_reads_goes_to_the_engine(tmp_path: Path) -> None:
    compare(tmp_path, DuckDBEngine(), lambda: SyntheticWorld(users=80, items=50), None)


@needs_duckdb
def test_what_an_engine_cannot_do_is_said(tmp_path: Path) -> None:
    write_parts(events(), tmp_path / "events")
    frame = events().filter(pl.col("user_id").is_not_null())
    frame.with_columns(timestamp=pl.from_epoch("timestamp").dt.to_string("iso")).write_parquet(
        tmp_path / "text.parquet"
    )
    frame.write_csv(tmp_path / "a.csv", quote_style="non_numeric")
    (tmp_path / "b.csv").write_text("user_id,item_id,timestamp\nu,i,5\nu,j,tomorrow\n")
    (tmp_path / "c.jsonl").write_text('{"user_id": "u", "item_id": "i", "timestamp": 5}\n')

    def refused(engine: Engine, why: str, file: str = "events", paper_ids: bool = False, **reader) -> None:
        with pytest.raises((ConfigError, DataError), match=why) as caught:
            prepared(tmp_path / "data", engine, TableFiles(file, None, **reader), tmp_path, paper_ids=paper_ids)
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "data").glob(".*.engine"))

    duckdb = DuckDBEngine()
    refused(duckdb, "paper_ids needs the order of the raw rows, which DuckDBEngine does not keep", paper_ids=True)
    refused(duckdb, "without times, the order of the rows counts", timestamp=None)
    refused(duckdb, "text.parquet, column 'timestamp' holds VARCHAR: DuckDBEngine reads times that are", "text.parquet")
    refused(duckdb, "DuckDBEngine cannot do it .*tomorrow", "b.csv")
    refused(duckdb, "c.jsonl is neither parquet nor a plain CSV", "c.jsonl")
    refused(duckdb, "only PolarsEngine reads times in a form of their own", "a.csv", time_format="%Y")
    refused(duckdb, "events has 4 malformed lines, more than max_bad_lines", max_bad_lines=3)
    refused(DuckDBEngine(memory="no"), "DuckDBEngine cannot do it")


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for engine, package, extra in ((DuckDBEngine(), "duckdb", "duckdb"), (SparkEngine(), "pyspark.sql", "spark")):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(ConfigError, match=rf"pip install 'setrec\[{extra}\]'"):
            prepared(tmp_path, engine, SyntheticWorld(users=20, items=20), None)


@needs_spark
@pytest.mark.process
@pytest.mark.slow
def test_spark_prepares_the_same_files(tmp_path: Path) -> None:
    pyspark = pytest.importorskip("pyspark.sql")
    builder = pyspark.SparkSession.builder.master("local[2]").config("spark.sql.ansi.enabled", "false")
    for name, value in (SPARK | {"spark.sql.session.timeZone": "UTC"}).items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()  # one for all cases
    engine = SparkEngine("local[2]", SPARK)
    try:
        check_case(tmp_path / "parts", "everything", engine)
        folder = tmp_path / "csv"
        folder.mkdir()
        events().filter(pl.col("user_id").is_not_null()).write_csv(folder / "events.csv", quote_style="non_numeric")
        compare(folder, engine, lambda: TableFiles("events.csv", None), folder, cleaning=Cleaning(k_core=0), cf=[])
        frame = events().filter(pl.col("timestamp") > START).with_columns(pl.from_epoch("timestamp"))
        write_parts(frame, tmp_path / "dates/events")
        compare(
            tmp_path / "dates",
            engine,
            lambda: TableFiles("events", None),
            tmp_path / "dates",
            cleaning=Cleaning(k_core=0),
        )
        part = tmp_path / "dates/events/part-00000.parquet"
        fsspec.filesystem("memory").pipe("/here/a.parquet", part.read_bytes())
        with pytest.raises(DataError, match="lies in the memory of this process"):
            prepared(tmp_path / "remote", engine, TableFiles("memory://here", None), None)
    finally:
        session.stop()
