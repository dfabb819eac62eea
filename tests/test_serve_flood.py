"""300 half-sent requests and 40 unfinished bodies of 7 MiB at once: the server stays small and quick, and closes them all.

`pytest -s tests/test_serve_flood.py` prints memory and latency.
"""

import socket
import statistics
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from setrec.serve import messages
from tests.test_serve_connections import HEAD
from tests.test_serve_process import folder, served  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.process]

HALF, BODIES, SIZE, LIMIT = 300, 40, 7 << 20, 8.0


def memory(pid: int) -> float:
    """MiB of a process that are in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def closed(client: socket.socket) -> bytes:
    """What the server said before it closed."""
    found = b""
    try:
        while part := client.recv(1 << 16):
            found += part
    except ConnectionError:
        pass
    return found


def test_a_flood(folder: Path) -> None:  # noqa: F811
    with served(folder, "--client_timeout", str(LIMIT)) as (process, url):
        address = ("127.0.0.1", urlsplit(url).port or 0)
        for _ in range(20):
            assert httpx.post(f"{url}/recommend", json={"histories": [[]]}).status_code == 200
        before, seconds, sizes = memory(process.pid), [], []

        def upload(body: socket.socket) -> None:
            try:
                body.sendall(HEAD + b"content-length: %d\r\n\r\n" % (SIZE + 1) + b" " * SIZE)
            except ConnectionError:  # refused: too many bodies
                return

        begin = time.perf_counter()
        half = [socket.create_connection(address, timeout=60) for _ in range(HALF)]
        for place, client in enumerate(half):
            client.sendall((b"", b"GET /hea", HEAD)[place % 3])
        bodies = [socket.create_connection(address, timeout=60) for _ in range(BODIES)]
        threads = [threading.Thread(target=upload, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        with httpx.Client(timeout=60) as web:
            while len(seconds) < 20 or time.perf_counter() - begin < LIMIT - 1:
                start = time.perf_counter()
                assert web.get(f"{url}/health").status_code == 200
                seconds.append(time.perf_counter() - start)
                sizes.append(memory(process.pid))
                time.sleep(0.05)
        answers = [closed(client)[9:12] for client in (*half, *bodies)]
        late = time.perf_counter() - begin
        for thread in threads:
            thread.join()
        for client in (*half, *bodies):
            client.close()
        after = httpx.get(f"{url}/health")
        print(
            f"\nmemory {before:.0f} MiB, meanwhile at most {max(sizes):.0f}, afterwards {memory(process.pid):.0f}; "
            f"/health {len(seconds)} times: median {1000 * statistics.median(seconds):.0f} ms, slowest "
            f"{1000 * max(seconds):.0f} ms; all {len(answers)} closed {late:.1f} s after the first, "
            f"answers { ({said.decode(): answers.count(said) for said in set(answers)}) }"
        )
    assert after.status_code == 200
    assert late < LIMIT + 60
    assert set(answers) <= {b"408", b"503", b""}
    assert max(sizes) - before < 3.5 * messages.MAX_BODIES / (1 << 20)
    assert max(seconds) < 5
    assert statistics.median(seconds) < 0.5
