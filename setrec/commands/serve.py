"""Serving a checkpoint over HTTP; needs the extra `serve`."""

from collections.abc import Sequence
from pathlib import Path

from setrec.commands.words import call, ckpt_path_of
from setrec.errors import ConfigError
from setrec.recommend import Recommender
from setrec.text import TextVectors


def serve(
    ckpt_path: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "cpu",
    max_batch: int = 32,
    max_wait_ms: float = 2.0,
    max_waiting: int = 4096,
    items: Path | None = None,
    models: Path = Path(),
    watch: float = 0.0,
    drain: int = 30,
    encoder: TextVectors | None = None,
) -> None:
    """Serve recommendations over HTTP, and a page at /, until SIGTERM or Ctrl-C; what is in flight then is finished.

    What changes something (POST and DELETE /items, POST /model/reload) needs the header `Authorization: Bearer TOKEN` with
    the value of SETREC_TOKEN in the server's environment; without that variable it is refused.

    Args:
        ckpt_path: A checkpoint, or a published folder.
        host: Address to listen at; 127.0.0.1: this machine only; 0.0.0.0: everyone who can reach it.
        port: TCP port; 0: any free one.
        device: Where the model computes: cpu, cuda.
        max_batch: Histories that are answered by one call of the model.
        max_wait_ms: Milliseconds that a request waits for others to share a call with.
        max_waiting: Histories that may wait to be answered; further requests get 503.
        items: File of the items added to and removed from the catalogue; default: beside ckpt_path. Name one file to keep
            them when ckpt_path changes.
        models: Folder that checkpoints named by POST /model/reload must lie in; default: the working directory.
        watch: Seconds between two looks at ckpt_path, which is taken over when it has changed; 0: never.
        drain: Seconds that requests in flight get after SIGTERM.
        encoder: What encodes new items where the data holds ready vectors and names no encoder, such as
            SentenceTransformerText; it must give the vectors that the model was trained on.

    Raises:
        ConfigError: the extra isn't installed, the port is taken, a value is out of range.
        SETRecError: the checkpoint is broken.
    """
    for option, value, least in (
        ("max_batch", max_batch, 1), ("max_wait_ms", max_wait_ms, 0), ("max_waiting", max_waiting, 1),
        ("watch", watch, 0), ("drain", drain, 0),
    ):  # fmt: skip
        if not value >= least:
            raise ConfigError(f"--{option} is {value}; it must be {least} or more.")
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port is {port}; it must be between 0 and 65535.")
    try:
        from setrec.serve.server import run_server  # here: an extra may be missing
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'setrec[serve]'.") from None
    run_server(
        lambda path: Recommender.load(path, device=device),
        ckpt_path, host, port, max_batch, max_wait_ms, max_waiting, items, models, watch, drain, encoder,
    )  # fmt: skip


def from_words(words: Sequence[str]) -> None:
    """Run `serve`."""
    ckpt_path_of(words)
    call(serve, "serve", words)
