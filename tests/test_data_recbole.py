"""RecBole's atomic files."""

import zipfile

import pytest

from setrec.data import RecBoleFiles
from setrec.errors import DataError
from tests.raw_data import events_of, items_of, write

INTER = 'user_id:token\titem_id:token\trating:float\ttimestamp:float\n"1\t7\t4\t978300760.5\n2\t7\t3\t978300000\n'


ITEM = "item_id:token\tmovie_title:token_seq\tyear:float\tclass:token_seq\n7\tToy Story\t1995\tAnimation Comedy\n8\tX\t\t\n"


@pytest.mark.parametrize("where", ["folder", "below", "zip"])
def test_recbole(tmp_path, where):
    if where == "zip":
        with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
            archive.writestr("ml-x/ml-x.inter", INTER)
            archive.writestr("ml-x/ml-x.item", ITEM)
    else:
        folder = tmp_path / "ml-x" if where == "below" else tmp_path
        write(folder / "ml-x.inter", INTER)
        write(folder / "ml-x.item", ITEM)
    log = RecBoleFiles().read(tmp_path)
    assert events_of(log) == [('"1', "7", 978300760_500000, 4), ("2", "7", 978300000_000000, 3)]
    row = items_of(log)["7"]
    assert row["title"] == "Toy Story"
    assert row["text"] == "movie_title: Toy Story; class: Animation Comedy"
    assert set(items_of(RecBoleFiles(keep_unreviewed=True).read(tmp_path))) == {"7", "8"}
    assert items_of(RecBoleFiles(text_fields=["year"]).read(tmp_path))["7"]["text"] == "year: 1995"
    assert {path.suffix for path in RecBoleFiles().sources(tmp_path)} == (
        {".zip"} if where == "zip" else {".inter", ".item"}
    )


def test_recbole_that_is_none(tmp_path):
    with pytest.raises(DataError, match=r"must hold one .inter.*has none"):
        RecBoleFiles().read(tmp_path)
    write(tmp_path / "a.inter", "user_id\titem_id\ttimestamp\n1\t2\t3\n")
    with pytest.raises(DataError, match="names no types"):
        RecBoleFiles().read(tmp_path)
    write(tmp_path / "a.inter", "user_id:token\titem_id:token\n1\t2\n")
    with pytest.raises(DataError, match="a.inter has no column 'timestamp'"):
        RecBoleFiles().read(tmp_path)
    write(tmp_path / "b.inter", INTER)
    with pytest.raises(DataError, match="name the data set with --data.reader.dataset"):
        RecBoleFiles().read(tmp_path)
    assert len(RecBoleFiles(dataset="b").read(tmp_path).events) == 2
    for path in tmp_path.iterdir():
        path.unlink()
    write(tmp_path / "c.zip", b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match="c.zip is no zip archive"):
        RecBoleFiles().read(tmp_path)
