"""Downloads, against a server on this machine that breaks off, lies, forgets and changes its mind."""

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from setrec.cf import CFFile
from setrec.data import OfficialRelease, SETRecDataModule, Source, TableFiles
from setrec.data.readers import amazon, download, official
from setrec.data.readers.download import fetch
from setrec.errors import ConfigError, DataError

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content` at every path not in `files`; each misdeed is a field that a test sets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag = CONTENT, '"one"'
        self.files: dict[str, bytes] = {}
        self.break_after: list[int | None] = []  # for each request in turn: bytes sent before hanging up; None: all
        self.lie = 0  # added to Content-Length
        self.ranges = True
        self.wrong_range = False
        self.no_length = False
        self.chunked = False
        self.status: list[int] = []  # for each request in turn: an error to answer with, or 0
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/some/file.bin"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # which chunks belong to; every answer closes the connection
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((self.path, wanted))
        status = server.status.pop(0) if server.status else 0
        content = server.files.get(self.path.rsplit("/", 1)[-1]) if server.files else server.content
        if status or content is None:
            return self.send_error(status or 404)
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if self.headers.get("If-Range") not in (None, server.tag):
            begin = 0
        if begin >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return None
        body = content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            first = begin + 7 if server.wrong_range else begin
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif not server.no_length:
            self.send_header("Content-Length", str(len(body) + server.lie))
        if server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        stop = server.break_after.pop(0) if server.break_after else None
        if server.chunked:
            self.wfile.write(f"{len(body):x}\r\n".encode())
        self.wfile.write(body[:stop])
        if server.chunked and stop is None:
            self.wfile.write(b"\r\n0\r\n\r\n")
        self.close_connection = True
        return None


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server: Server, folder: Path, **source) -> list[Path]:
    return fetch([Source(server.url, **source)], folder, tries=3, wait=0.001, timeout=5)


def there(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".download.lock"}


def test_a_whole_file(server, tmp_path):
    assert get(server, tmp_path / "raw") == [tmp_path / "raw" / "file.bin"]
    assert (tmp_path / "raw" / "file.bin").read_bytes() == CONTENT
    assert there(tmp_path / "raw") == {"file.bin"}
    get(server, tmp_path / "raw", sha256=SHA)
    assert len(server.asked) == 1  # it was there, and right
    assert get(server, tmp_path / "raw", file="other")[0].read_bytes() == CONTENT


def test_broken_connections_are_resumed(server, tmp_path):
    server.break_after = [100_000, 50_000, 0, 0, 10_000]
    assert get(server, tmp_path, sha256=SHA)[0].read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [
        None, "bytes=100000-", "bytes=150000-", "bytes=150000-", "bytes=150000-", "bytes=160000-"
    ]  # fmt: skip


def test_it_gives_up_and_goes_on_in_a_later_run(server, tmp_path):
    server.break_after = [100_000, 0, 0, 0]
    with pytest.raises(
        DataError, match=rf"cannot download {server.url} \(the connection ended after 100,000 of 300,000"
    ):
        get(server, tmp_path)
    assert there(tmp_path) == {"file.bin.part", "file.bin.part.about"}  # half a file is never called file.bin
    assert get(server, tmp_path)[0].read_bytes() == CONTENT
    assert server.asked[-1][1] == "bytes=100000-"
    assert there(tmp_path) == {"file.bin"}


@pytest.mark.parametrize("tag", ['"one"', "", 'W/"weak"'])
def test_ranges_that_are_ignored(server, tmp_path, tag):
    server.tag, server.ranges, server.break_after = tag, False, [100_000, 200_000]
    assert get(server, tmp_path)[0].read_bytes() == CONTENT
    assert server.asked[1][1] == "bytes=100000-"


def test_a_file_that_changes_meanwhile(server, tmp_path):
    server.break_after = [100_000, 0, 0, 0]
    with pytest.raises(DataError):
        get(server, tmp_path)
    server.content, server.tag = CONTENT[::-1], '"two"'
    assert get(server, tmp_path)[0].read_bytes() == CONTENT[::-1]


def test_a_file_that_changes_its_length_without_saying_so(server, tmp_path):
    server.tag, server.break_after = "", [100_000, 0, 0, 0]
    with pytest.raises(DataError):
        get(server, tmp_path)
    server.content = CONTENT[::-1] + b"more"
    assert get(server, tmp_path)[0].read_bytes() == server.content


def test_a_stale_part_with_a_known_hash_is_begun_anew(server, tmp_path):
    server.tag, server.break_after = "", [100_000, 0, 0, 0]
    with pytest.raises(DataError):
        get(server, tmp_path)
    server.content = CONTENT[::-1]  # as long as before: only the hash can tell
    sha = hashlib.sha256(server.content).hexdigest()
    assert get(server, tmp_path, sha256=sha)[0].read_bytes() == server.content


def test_a_server_that_sends_chunks(server, tmp_path):
    server.chunked, server.tag, server.break_after = True, "", [100_000, 50_000]
    assert get(server, tmp_path)[0].read_bytes() == CONTENT
    assert len(server.asked) == 3


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_says_no_length(server, tmp_path, ranges):
    server.no_length, server.ranges, server.break_after = True, ranges, [100_000, 150_000] if ranges else [100_000]
    assert get(server, tmp_path)[0].read_bytes() == CONTENT  # an end that may be a broken connection is asked about


def test_a_part_that_is_complete_already(server, tmp_path):
    assert get(server, tmp_path)[0].read_bytes() == CONTENT
    (tmp_path / "file.bin").rename(tmp_path / "file.bin.part")
    (tmp_path / "file.bin.part.about").write_text(f'{{"url": "{server.url}"}}')  # killed just before the renaming
    assert get(server, tmp_path)[0].read_bytes() == CONTENT
    assert there(tmp_path) == {"file.bin"}


def test_a_part_from_nowhere_is_not_trusted(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 100)
    assert get(server, tmp_path)[0].read_bytes() == CONTENT
    (tmp_path / "file.bin").unlink()
    (tmp_path / "file.bin.part").write_bytes(b"x" * 100)
    (tmp_path / "file.bin.part.about").write_text('{"url": "http://elsewhere/file.bin"}')
    assert get(server, tmp_path)[0].read_bytes() == CONTENT


def test_a_length_that_is_too_big(server, tmp_path):
    server.lie, server.ranges = 1000, False
    with pytest.raises(DataError, match="the connection ended after 300,000 of 301,000 bytes; 3 attempts"):
        get(server, tmp_path)
    assert "file.bin" not in there(tmp_path)
    server.ranges = True  # asked for what lies beyond the end, it tells the true length
    assert get(server, tmp_path)[0].read_bytes() == CONTENT


def test_a_length_that_is_too_small(server, tmp_path):
    server.lie = -1000
    with pytest.raises(DataError, match=r"is not the expected file \(sha256"):
        get(server, tmp_path, sha256=SHA)
    assert there(tmp_path) == set()


def test_a_range_that_is_another(server, tmp_path):
    server.wrong_range, server.break_after = True, [100_000]
    assert get(server, tmp_path)[0].read_bytes() == CONTENT  # begun anew rather than glued together


def test_a_wrong_hash(server, tmp_path):
    with pytest.raises(DataError, match=rf"{server.url} is not the expected file.*pass --data.raw DIR"):
        get(server, tmp_path, sha256="0" * 64)
    assert there(tmp_path) == set()
    (tmp_path / "file.bin").write_bytes(b"damaged")
    assert get(server, tmp_path, sha256=SHA)[0].read_bytes() == CONTENT


def test_errors_of_the_server(server, tmp_path):
    server.status = [503, 429, 500]
    with pytest.raises(DataError, match=r"the server says 500 .*; 3 attempts"):
        get(server, tmp_path)
    server.status = [503, 503]
    assert get(server, tmp_path)[0].read_bytes() == CONTENT
    server.status, server.asked = [403], []
    with pytest.raises(DataError, match=r"the server says 403 Forbidden\); check the network.*--data.raw DIR"):
        get(server, tmp_path / "x")
    assert len(server.asked) == 1
    server.status = [404]
    assert get(server, tmp_path / "x", optional=True) == []


def test_a_server_that_falls_silent(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(DataError, match="timed out; 2 attempts"):
            fetch([Source(url)], tmp_path, tries=2, wait=0.001, timeout=0.2)


def test_no_server(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}/x"
    with pytest.raises(DataError, match=rf"cannot download {url} \(.*refused.*pass --data.raw DIR with the folder"):
        fetch([Source(url)], tmp_path, tries=2, wait=0.001)

    def nobody(*_args, **_options):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(DataError, match=r"cannot download http://nowhere.example/x \(no network, or no such server"):
        fetch([Source("http://nowhere.example/x")], tmp_path, tries=99, wait=99)


def test_a_full_disk(server, tmp_path, monkeypatch):
    def full(*_args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="cannot download to .*No space left on device"):
        get(server, tmp_path)
    assert "file.bin" not in there(tmp_path)


@pytest.mark.parametrize("source", [Source("file:///etc/passwd"), Source("http://x/"), Source("http://x/a", "../a"),
                                    Source("http://x/a", ".a"), Source("http://x/%2e%2e")])  # fmt: skip
def test_sources_that_are_refused(source, tmp_path):
    with pytest.raises(ConfigError):
        fetch([source], tmp_path)


def test_prepare_downloads_what_is_not_given(server, tmp_path, monkeypatch):
    rows = "".join(f"u{t % 5},i{t % 7},{t}\n" for t in range(100))
    server.files = {"events.csv": f"user_id,item_id,timestamp\n{rows}".encode()}
    server.break_after = [200]
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    source = Source(server.url.replace("file.bin", "events.csv"))

    def data() -> SETRecDataModule:
        reader = TableFiles(download=[source])
        return SETRecDataModule(name="shop", reader=reader, text=None, cf=[], root=str(tmp_path))

    data().prepare_data()
    assert there(tmp_path / "raw" / "shop") == {"events.csv"}
    ready = data()
    ready.prepare_data()
    ready.setup()
    assert ready.catalogue.n_items == 7
    assert len(server.asked) == 2  # once, resumed once; what is prepared needs no network


def test_the_official_release_from_its_server(server, tiny_release, tmp_path, monkeypatch):
    server.files = {path.name: path.read_bytes() for path in tiny_release.iterdir() if path.name != "warm_item.npy"}
    monkeypatch.setattr(official, "_PUBLIC", server.url.removesuffix("/file.bin"))
    data = SETRecDataModule(name="toys", text=None, cf=[CFFile()], root=str(tmp_path / "data"))
    data.prepare_data()
    data.setup()
    assert (data.catalogue.n_items, len(data.histories.ids)) == (40, 60)
    assert "/some/toys/training_dict.npy" in [path for path, _ in server.asked]
    assert "warm_item.npy" not in there(tmp_path / "data" / "raw" / "toys")
    assert OfficialRelease().public("mine") == []


def test_what_amazon_fetches():
    reader = amazon.AmazonReviews
    with pytest.raises(ConfigError, match="--data.reader.category"):
        reader().public("x")
    names = {year: [s.name for s in reader(year, "Toys_and_Games").public("x")] for year in (None, 2018, 2023)}
    assert names == {
        None: ["reviews_Toys_and_Games_5.json.gz", "meta_Toys_and_Games.json.gz"],
        2018: ["Toys_and_Games_5.json.gz", "meta_Toys_and_Games.json.gz"],
        2023: ["Toys_and_Games.jsonl.gz", "meta_Toys_and_Games.jsonl.gz"],
    }
    assert all(source.url.startswith("https://") for source in reader(2018, "Beauty").public("x"))
