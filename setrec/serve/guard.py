"""The token that requests need which change something."""

import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from setrec.errors import ConfigError

TOKEN = "SETREC_TOKEN"  # the environment variable


def token_of_environment() -> str:
    """The token in SETREC_TOKEN, or in the file that SETREC_TOKEN_FILE names; "" without either.

    Raises:
        ConfigError: the file cannot be read, or is empty.
    """
    file = os.environ.get(f"{TOKEN}_FILE", "")
    if not file:
        return os.environ.get(TOKEN, "")
    try:
        token = Path(file).read_text().strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{TOKEN}_FILE names {file}, which cannot be read ({error}).") from None
    if not token:
        raise ConfigError(f"{TOKEN}_FILE names {file}, which is empty.")
    return token


def make_guard(token: str | None) -> Callable[..., None]:
    """Make the dependency of routes that refuses requests without the token. None or "": it refuses all."""
    bearer = HTTPBearer(auto_error=False, description=f"The value of {TOKEN} where the server was started.")

    def guard(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        """Refuse a request without the token."""
        if not token:
            raise HTTPException(
                403,
                f"This server accepts no changes and shows no users: it was started without {TOKEN} in its environment.",
            )
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(
                401, f"This request needs the header 'Authorization: Bearer' with the value of {TOKEN}.",
                {"www-authenticate": "Bearer"},
            )  # fmt: skip

    return guard
