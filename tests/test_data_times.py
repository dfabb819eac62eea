"""Prepared data keeps the time and the kind of every event, beside its item, through cleaning and splitting."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from setrec.data import Cleaning, TableFiles
from setrec.data.catalogue import HISTORIES, Catalogue, Histories, read_manifest
from setrec.data.preparation import Preparation
from setrec.data.prepare import prepare
from setrec.data.split import LeaveOneOut, TimeRatioSplit
from setrec.errors import DataError
from setrec.files.ragged import Ragged
from setrec.files.times import UNKNOWN

KINDS = ("view", "cart", "buy")


def prepared(folder: Path, rows: list[tuple], cleaning: Cleaning, split: object, **reader) -> Histories:
    pl.DataFrame(rows, ["user_id", "item_id", "timestamp", "what"], orient="row").write_csv(folder / "events.csv")
    made = Preparation(TableFiles(**reader), None, [], cleaning, split, False)  # type: ignore[arg-type]
    prepare("x", folder / "x", made, folder)
    return Histories.load(folder / "x")


def events_of(histories: Histories, catalogue: Catalogue) -> list[tuple[str, str, int, str]]:
    """Every event that is kept, as (user, item, time, kind)."""
    found = []
    for split in ("train", "validation", "test"):
        rows = (getattr(histories, split), getattr(histories.times, split), getattr(histories.kinds, split))
        for u, own in enumerate(histories.ids):
            for item, time, kind in zip(*(of.row(u).tolist() for of in rows), strict=True):
                found.append((own, catalogue.ids[item], time, histories.kind_names[kind]))
    return found


event = st.tuples(st.sampled_from("abc"), st.sampled_from("uvwxyz"), st.integers(1, 40), st.sampled_from(KINDS))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(event, min_size=12, max_size=40, unique_by=lambda row: row[:3]),
    repeats=st.sampled_from(["keep", "first", "last"]),
    by_time=st.booleans(),
)
def test_times_and_kinds_stay_with_their_events(tmp_path_factory, rows, repeats, by_time) -> None:
    folder = tmp_path_factory.mktemp("times")
    cleaning = Cleaning(repeats=repeats, k_core=2)
    try:
        split = TimeRatioSplit(min_train=1) if by_time else LeaveOneOut(min_train=1)
        found = prepared(folder, rows, cleaning, split, kind="what")
    except DataError:  # nothing is left
        return
    kept = events_of(found, Catalogue.load(folder / "x"))
    assert set(kept) <= {(user, item, time * 1_000_000, kind) for user, item, time, kind in rows}
    assert len(set(kept)) == len(kept) == read_manifest(folder / "x")["report"]["kept"]["events"]
    for rows_of in found.times:  # oldest first
        assert all((np.diff(rows_of.row(u)) >= 0).all() for u in range(len(rows_of)))


def test_of_two_events_of_one_second_the_first_keeps_its_time_and_kind(tmp_path: Path) -> None:
    rows = [("a", "u", "1970-01-01 00:00:05.25", "view"), ("a", "u", "1970-01-01 00:00:05.75", "buy"),
            ("a", "v", "1970-01-01 00:00:09", ""), ("a", "w", "1970-01-01 00:00:11", "buy")]  # fmt: skip
    found = prepared(tmp_path, rows, Cleaning(k_core=0), LeaveOneOut(min_train=1), kind="what")
    assert events_of(found, Catalogue.load(tmp_path / "x")) == [
        ("a", "u", 5_250_000, "view"), ("a", "v", 9_000_000, ""), ("a", "w", 11_000_000, "buy")
    ]  # fmt: skip
    assert found.kind_names == ("", "buy", "view")


def test_without_times_and_kinds_the_files_hold_none(tmp_path: Path) -> None:
    rows = [(user, item, 0, "view") for user in "ab" for item in "uvw"]
    found = prepared(tmp_path, rows, Cleaning(k_core=0), LeaveOneOut(min_train=1), timestamp=None)
    assert (found.times, found.kinds, found.kind_names) == (None, None, ())
    names = {f"{split}_{part}" for split in ("train", "validation", "test") for part in ("offsets", "items")}
    assert set(load_file(tmp_path / "x" / HISTORIES)) == names


def test_times_do_not_change_what_the_catalogue_is(tmp_path: Path) -> None:
    identities = []
    for shift in (0, 5):
        folder = tmp_path / str(shift)
        folder.mkdir()
        rows = [(user, item, t + shift, "view") for user in "ab" for t, item in enumerate("uvw")]
        prepared(folder, rows, Cleaning(k_core=0), LeaveOneOut(min_train=1))
        identities.append(Catalogue.load(folder / "x").identity)
    assert identities[0] == identities[1]


def test_too_many_kinds_are_one_sentence(tmp_path: Path) -> None:
    rows = [("a", f"i{n}", n, f"kind {n}") for n in range(300)]
    with pytest.raises(DataError, match="300 different values"):
        prepared(tmp_path, rows, Cleaning(k_core=0), LeaveOneOut(min_train=1), kind="what")


def test_joined_rows_keep_their_type() -> None:
    late = Ragged(np.array([0, 1, 2]), np.array([UNKNOWN, 1 << 50]))
    assert late.joined(late).items.tolist() == [UNKNOWN, UNKNOWN, 1 << 50, 1 << 50]
