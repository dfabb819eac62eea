"""serve: recommendations over HTTP; needs the extra `serve`."""

from pathlib import Path
from typing import Any

import setrec.encoders  # noqa: F401  # so that --encoder takes their names without a module
from setrec.errors import ConfigError
from setrec.serve.options import ServeOptions


def serve(ckpt_path: Path, **options: Any) -> None:
    """Serve recommendations over HTTP, and a page at /, until SIGTERM or Ctrl-C. Running requests are finished first.

    Requests that change something (POST and DELETE /items, POST /model/reload) need the header `Authorization: Bearer TOKEN`
    with the value of SETREC_TOKEN in the server's environment, or of the file that SETREC_TOKEN_FILE names; without them the server
    refuses such requests. SIGHUP loads ckpt_path again.

    Args:
        ckpt_path: A checkpoint, or a published folder.
        options: see `ServeOptions`.

    Raises:
        ConfigError: the extra is not installed, the port is taken, or a value is out of range.
        SETRecError: the checkpoint is broken.
    """
    chosen = ServeOptions(**options)
    try:
        from setrec.serve.server import run_server  # here: the extra may be missing
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'setrec[serve]'.") from None

    run_server(ckpt_path, chosen)
