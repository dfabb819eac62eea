"""Where figures come from: the commit, the command, the seeds and the machine, recorded when they are computed."""

import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

_SOURCE = Path(__file__).resolve().parents[2]  # the clone, where setrec runs from one


def provenance(seed: int | None, origin: dict[str, Any] | None = None) -> dict[str, Any]:
    """Describe this run in plain types.

    Args:
        seed: Seed of the order of batches.
        origin: What the run that wrote the checkpoint said of itself; None: there is none.

    Returns:
        {"commit", "changed", "command", "seeds", "machine"}, and "from", the run before, where it was another command. commit is
        None outside a clone; changed says whether its files differ from the commit.
    """
    seeds = {"data": seed, "everything": os.environ.get("PL_GLOBAL_SEED")}
    run = {
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": shlex.join(["setrec", *sys.argv[1:]]),
        "seeds": {name: int(value) for name, value in seeds.items() if value is not None},
        "machine": machine(),
    }
    if isinstance(origin, dict):
        before = origin.get("from") if origin.get("command") == run["command"] else origin
        run |= {"from": before} if before else {}
    return run


def machine() -> dict[str, str | int]:
    """The processor, its cores that this process may use, threads of torch, the GPU if there is one, and the system."""
    found: dict[str, str | int] = {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if _LINUX else os.cpu_count() or 1,
    }
    found |= {"threads": torch.get_num_threads(), "system": f"{platform.system()} {platform.machine()}"}
    if torch.cuda.is_available():
        found["gpu"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return found


_LINUX = hasattr(os, "sched_getaffinity")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@cache
def _git(*words: str) -> str | None:
    """What git says of the clone; None without git, or where setrec does not run from a clone of its own."""

    def ask(*words: str) -> str:
        call = subprocess.run(
            ["git", "-C", str(_SOURCE), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return call.stdout.strip()

    try:
        return ask(*words) if Path(ask("rev-parse", "--show-toplevel")) == _SOURCE else None
    except (OSError, subprocess.SubprocessError):
        return None
