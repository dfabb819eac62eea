"""The options of `setrec serve`."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from setrec.errors import ConfigError
from setrec.text import TextVectors


@dataclass(frozen=True)
class ServeOptions:
    """How a model is served.

    Args:
        host: Address to listen at; 127.0.0.1: this machine only; 0.0.0.0: everyone who can reach it.
        port: TCP port; 0: any free one.
        workers: Number of processes that share the port, the journal and the work; each holds a model.
        device: Where the model computes: cpu, cuda.
        index: Search approximately by faiss: PQ (for large catalogues), or any it builds, such as IVF4096,Flat; null: exactly.
        prefix_cache: MiB for what the model has read of histories, so that a history that has grown costs its new items only; 0:
            none. With it, a history longer than max_history is cut where the cut moves in steps of max_history / 5 items.
        max_batch: Most histories in one call of the model.
        max_wait_ms: Milliseconds that a request waits for others to share a call with.
        max_waiting: Most histories that may wait; further requests get status 503.
        items: File that keeps the items added to and removed from the catalogue; default: beside ckpt_path. Name one file to keep
            them when ckpt_path changes.
        models: Folder that checkpoints named by POST /model/reload must lie in; default: the working directory.
        watch: Seconds between two looks at ckpt_path, which is loaded again when it has changed; 0: never.
        allowed_hosts: Names in the Host header that are answered, a list or with commas between, beside addresses, localhost and
            the name of this machine: shop.example,*.shop.example; *: any.
        client_timeout: Seconds that a client may take to send the head of a request, to send the body, to read the answer, and
            until its next request.
        max_connections: Most open connections; a new one takes the place of the one that has been idle longest.
        drain: Seconds that running requests get after SIGTERM.
        encoder: Text encoder for new items, such as SentenceTransformerText, if the data holds ready vectors and names no encoder.
            It must make the vectors that the model was trained on.
        log_format: text; or json: one object a line, with time, level, message, request_id.
        database: Users, events and the log of answers: a file (SQLite) or postgresql://USER@HOST/NAME; default: a file beside
            ckpt_path. Without SETREC_TOKEN there is none, unless it is named here.
        log_answers: Share of the answers that are written to the log, 0 to 1.
        log_days: Days that an answer stays in the log.
        explore: Share of the answers in which one place is left to chance, 0 to 1.
        challenger: A second model that answers a part of the users.
        challenger_share: Share of the users that the challenger answers, 0 to 1.
        shadow: A model that answers in the background, for the log only.

    Raises:
        ConfigError: a value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    device: str = "cpu"
    index: str | None = None
    prefix_cache: int = 256
    max_batch: int = 32
    max_wait_ms: float = 2.0
    max_waiting: int = 4096
    items: Path | None = None
    models: Path = Path()
    watch: float = 0.0
    allowed_hosts: list[str] | str = ""
    client_timeout: float = 20.0
    max_connections: int = 512
    drain: int = 30
    encoder: TextVectors | None = None
    log_format: Literal["text", "json"] = "text"

    database: str | None = None
    log_answers: float = 1.0
    log_days: float = 90.0
    explore: float = 0.0
    challenger: Path | None = None
    challenger_share: float = 0.5
    shadow: Path | None = None

    def for_worker(self) -> "ServeOptions":
        """The options of one of several workers: the supervisor watches the file."""
        return replace(self, watch=0.0)

    @property
    def allowed_names(self) -> set[str]:
        """The names that `allowed_hosts` gives, in lower case."""
        given = self.allowed_hosts.split(",") if isinstance(self.allowed_hosts, str) else self.allowed_hosts
        return {name.strip().lower() for name in given} - {""}

    def __post_init__(self) -> None:
        """Check the numbers and names."""
        smallest = {
            "workers": 1, "prefix_cache": 0, "max_batch": 1, "max_wait_ms": 0, "max_waiting": 1, "watch": 0, "drain": 0,
            "client_timeout": 0.1, "max_connections": 1, "log_days": 0,
        }  # fmt: skip
        for option, least in smallest.items():
            value = getattr(self, option)
            if not value >= least:  # this way round it refuses NaN, too
                raise ConfigError(f"--{option} is {value}; it must be {least} or more.")
        for option in ("log_answers", "explore", "challenger_share"):
            if not 0 <= getattr(self, option) <= 1:
                raise ConfigError(f"--{option} is {getattr(self, option)}; it must be between 0 and 1.")
        for name in self.allowed_names:
            if not re.fullmatch(r"\*|(\*\.)?[^*:/\s]+", name):
                raise ConfigError(f"--allowed_hosts {name!r} is no name, such as shop.example or *.shop.example.")
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"--port is {self.port}; it must be between 0 and 65535.")
