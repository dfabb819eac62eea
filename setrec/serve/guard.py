"""The token that requests need which change something."""

import hmac
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

TOKEN = "SETREC_TOKEN"  # the environment variable


def make_guard(token: str | None) -> Callable[..., None]:
    """Make the dependency of routes that refuses requests without the token. None or "": it refuses all."""
    bearer = HTTPBearer(auto_error=False, description=f"The value of {TOKEN} where the server was started.")

    def guard(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        """Refuse a request without the token."""
        if not token:
            raise HTTPException(
                403, f"This server accepts no changes: it was started without {TOKEN} in its environment."
            )
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(
                401, f"This request needs the header 'Authorization: Bearer' with the value of {TOKEN}.",
                {"www-authenticate": "Bearer"},
            )  # fmt: skip

    return guard
