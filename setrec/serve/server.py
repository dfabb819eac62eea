"""`setrec serve`: open a socket, serve the application on it, and end in order."""

import signal
import socket
import sys
import threading
from pathlib import Path

from setrec.errors import ConfigError
from setrec.serve.options import ServeOptions
from setrec.serve.request_ids import log_as
from setrec.serve.supervisor import Supervisor, announce
from setrec.serve.worker import Worker


def run_server(ckpt_path: Path, options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C, in this process or in several.

    Args:
        ckpt_path: the first checkpoint.
        options: see `ServeOptions`.

    Raises:
        SETRecError: the checkpoint is broken, the port is taken, or workers die again and again.
    """
    listening = _listen(options.host, options.port)
    log_as(options.log_format)
    try:
        if options.workers > 1:
            return Supervisor(ckpt_path, listening, options).run()
        worker = Worker(ckpt_path, options)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=worker.take_over_again).start())
        announce(worker.said, listening, options)
        worker.run(listening)
    finally:
        listening.close()


def _listen(host: str, port: int) -> socket.socket:
    """Bind a socket before anything is loaded, so that a taken port is reported at once.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        if sys.platform != "win32":  # there it would let two servers share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f"--host {host} --port {port} cannot be bound ({error}); give another --port.") from None
    return listening
