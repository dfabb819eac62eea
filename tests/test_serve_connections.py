"""The limits of connections, on a real socket: time, number, heads, bodies, the Host header."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest

from setrec.serve import messages
from setrec.serve.app import create_app
from setrec.serve.connections import MAX_HEAD, HostCheck, limited, own_names
from setrec.serve.model_holder import ModelHolder
from setrec.serve.options import ServeOptions
from tests.serve_fake import TOKEN, listening

LIMIT = 0.6  # seconds
HEAD = b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
WHOLE = b"GET /model HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture
def address(holder: ModelHolder) -> Iterator[tuple[str, int]]:
    """A server with short limits and at most 20 connections."""
    app = create_app(holder, TOKEN, ServeOptions(max_wait_ms=0))
    app.add_middleware(HostCheck, names=own_names("127.0.0.1") | {"shop.example", "*.test"})
    with listening(app, http=limited(LIMIT, 20), ws="none", timeout_keep_alive=5) as url:
        yield "127.0.0.1", urlsplit(url).port or 0


@contextmanager
def connected(address: tuple[str, int], *parts: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=10) as client:
        for part in parts:
            client.sendall(part)
        yield client


def rest(client: socket.socket) -> tuple[bytes, float]:
    """Everything that comes until the server closes, and after how many seconds it does."""
    start, found = time.perf_counter(), b""
    try:
        while part := client.recv(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    return found, time.perf_counter() - start


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([], b""),  # nothing at all
        ([b"GET /hea"], b"408"),
        ([WHOLE[:-2]], b"408"),
        ([HEAD + b"content-length: 100\r\n\r\n"], b"408"),
        ([HEAD + b"content-length: 100\r\n\r\n", b'{"histories"'], b"408"),
        ([HEAD + b"transfer-encoding: chunked\r\n\r\n", b"5\r\n{    \r\n"], b"408"),
        ([WHOLE], b"200"),  # idle after an answer
        ([WHOLE, b"\r\n\r\n"], b"200"),
        ([WHOLE[:-2] + b"content-length: 9000\r\n\r\n", b"x" * 500], b"200"),  # a body that nobody asked for
        ([WHOLE[:-2] + b"upgrade: websocket\r\nconnection: upgrade\r\n\r\n"], b"200"),
    ],
)
def test_a_client_that_keeps_the_server_waiting_is_cut_off(
    address: tuple[str, int], parts: list[bytes], status: bytes
) -> None:
    with connected(address, *parts) as client:
        found, seconds = rest(client)
    assert found[9:12] == status
    assert 0.5 * LIMIT < seconds < LIMIT + 8
    if status == b"408":
        head, _, body = found.partition(b"\r\n\r\n")
        assert "did not arrive" in json.loads(body)["error"]
        assert b"x-content-type-options: nosniff" in head


@pytest.mark.parametrize("start", [b"G", HEAD + b"x-a: ", HEAD + b"content-length: 100\r\n\r\n", WHOLE])
def test_dripping_does_not_help(address: tuple[str, int], start: bytes) -> None:
    """One byte every 50 ms: the limit is for the whole head, body or pause, not for a byte."""
    begin = time.perf_counter()
    with connected(address, start) as client:
        client.settimeout(0.05)
        while time.perf_counter() - begin < 20:
            try:
                client.sendall(b"\n" if start == WHOLE else b"E")
                if client.recv(1 << 16) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert time.perf_counter() - begin < LIMIT + 8


def test_a_client_that_does_not_read_is_cut_off(address: tuple[str, int], holder: ModelHolder) -> None:
    holder.current.recommender.titles = {f"A{i:05d}": "t" * 2000 for i in range(6000)}
    holder.current.recommender.warm = dict.fromkeys(holder.current.recommender.titles, True)
    body = json.dumps({"histories": [[]] * 20, "k": 500}).encode()  # 20 MB of answer: more than the sockets hold
    request = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    with connected(address, request, request) as client:  # the second one waits for the first to be read
        time.sleep(LIMIT + 2.5)
        with pytest.raises(OSError):  # noqa: PT012  (reset, or closed while writing)
            for _ in range(100):
                client.sendall(b"x")
                time.sleep(0.02)
    assert httpx.get(f"http://127.0.0.1:{address[1]}/health").status_code == 200


def test_a_slow_model_is_not_a_slow_client(address: tuple[str, int], holder: ModelHolder) -> None:
    holder.current.recommender.delay = 2.5 * LIMIT
    answer = httpx.post(f"http://127.0.0.1:{address[1]}/recommend", json={"histories": [[]]}, timeout=10)
    assert answer.status_code == 200


def test_a_connection_is_used_again(address: tuple[str, int]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
        for _ in range(4):
            assert client.get("/health").status_code == 200
            time.sleep(0.4 * LIMIT)


def test_new_connections_take_the_place_of_idle_ones(holder: ModelHolder) -> None:
    app = create_app(holder, TOKEN, ServeOptions(max_wait_ms=0))
    with listening(app, http=limited(60.0, 20), ws="none") as url:
        idle = [socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=10) for _ in range(40)]
        try:
            for client in idle[::2]:
                client.sendall(b"GET /")
            assert httpx.get(f"{url}/health", timeout=30).status_code == 200  # long before the time limit
            assert idle[1].recv(9) == b""  # the oldest has gone
            idle[-1].sendall(WHOLE)
            assert idle[-1].recv(12)[9:] == b"200"  # the newest has not
        finally:
            for client in idle:
                client.close()


def test_too_many_requests_at_work_are_refused(address: tuple[str, int], holder: ModelHolder) -> None:
    holder.current.recommender.delay = 1.0
    request = HEAD + b'content-length: 18\r\n\r\n{"histories":[[]]}'
    busy = [socket.create_connection(address, timeout=20) for _ in range(20)]
    try:
        for client in busy:
            client.sendall(request)
        time.sleep(0.3)
        with connected(address) as one_more:
            found, _ = rest(one_more)
        assert found[9:12] == b"503"
        assert {client.recv(12)[9:] for client in busy} == {b"200"}
    finally:
        for client in busy:
            client.close()


def test_a_head_has_a_largest_size(address: tuple[str, int]) -> None:
    for head in (b"GET /" + b"a" * MAX_HEAD, HEAD + b"x: " + b"b" * MAX_HEAD, HEAD + b"x: y\r\n" * (MAX_HEAD // 5)):
        with connected(address, head) as client:
            assert rest(client)[0][9:12] == b"431"
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n{\r\n" + b"0\r\n" + b"x: y\r\n" * MAX_HEAD
    with connected(address, chunked) as client:  # fields after the body
        assert rest(client)[0][9:12] == b"431"
    with connected(address, b"\x16\x03\x01 hello") as client:
        found, _ = rest(client)
    assert found[9:12] == b"400"
    assert b"nosniff" in found


def test_bodies_have_a_largest_size_together(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_BODIES", 300_000)
    part = HEAD + b"content-length: 200000\r\n\r\n" + b" " * 199_000
    with connected(address, part) as first:
        time.sleep(0.2)
        with connected(address, part) as second:
            assert rest(second)[0][9:12] == b"503"
        assert rest(first)[0][9:12] == b"408"
    with connected(address, part) as third:  # what was held is given back
        assert rest(third)[0][9:12] == b"408"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("10.1.2.3", 200),
        ("shop.example", 200), ("a.test", 200), ("localhost.:80", 200), (socket.gethostname(), 200),
        ("evil.example", 400), ("evil.example:8000", 400), ("localhost.evil.example", 400), ("eviltest", 400),
        ("localhost:x", 400), ("shop.example@evil.example", 400), ("", 400),
    ],
)  # fmt: skip
def test_the_host_header_is_checked(address: tuple[str, int], host: str, status: int) -> None:
    answer = httpx.get(f"http://127.0.0.1:{address[1]}/health", headers={"host": host})
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    if status == 400:
        assert "--allowed_hosts" in answer.json()["error"]


def test_two_hosts_or_none(address: tuple[str, int]) -> None:
    for head, status in (
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nx: y\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.0\r\n\r\n", b"200"),  # a load balancer
    ):
        with connected(address, head) as client:
            assert client.recv(12)[9:] == status
