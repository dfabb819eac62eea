"""Clocks and gauges of the benchmarks: seconds, peak memory, and what the machine's matrix products reach."""

import ctypes
import gc
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def clock(cpu: bool) -> Callable[[], float]:
    """Seconds on the wall, or of this process's own computing: on a busy machine the latter says what a quiet one would."""
    return time.process_time if cpu else time.perf_counter


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(_status("VmRSS")) * 1024


def reset_peak() -> None:
    """Give freed memory back to the system, then forget the peak so far. Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most bytes held at once since `reset_peak`."""
    return int(_status("VmHWM")) * 1024


class OwnMemory:
    """The most bytes that this process held at once which are in no file: `peak` without memory-mapped files. Linux only."""

    def __enter__(self) -> "OwnMemory":
        self.most, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self.most = max(self.most, int(_status("RssAnon")) * 1024)


def _status(field: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return line.split()[1]
    raise RuntimeError(f"/proc/self/status has no {field}")


def matmul_peak(dtype: torch.dtype, seconds: float = 1.0, size: int = 2048, cpu: bool = False) -> float:
    """Floating-point operations a second of square matrix products, the best of some."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    now, best = clock(cpu), float("inf")
    torch.mm(a, b)
    start = now()
    while now() - start < seconds:
        begin = now()
        torch.mm(a, b)
        best = min(best, now() - begin)
    return 2 * size**3 / best


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write beside, then rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(beside, path)


def tell(found: dict[str, Any], path: Path | None) -> None:
    """Print figures, a line each, and write them where asked."""
    for key, value in found.items():
        print(f"{key:28} {value:.4g}" if isinstance(value, float) else f"{key:28} {value}")
    if path:
        write_json(path, found)
