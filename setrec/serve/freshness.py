"""Changes that other processes make to the catalogue reach an answer before it is given."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from setrec.serve.model_holder import ModelHolder

LONGEST = 1.0  # seconds that a request waits; many new items to be encoded take longer
_NEVER = ("/health", "/metrics")  # paths that tell how the server is, whatever the catalogue


class Freshness:
    """Has the catalogue brought up to date, in a thread, before a request goes on.

    A request waits for a second at most, then gets its answer from the catalogue as it was. So a large change holds up no answers.

    Args:
        app: the application behind it.
        holder: the model in service.
    """

    def __init__(self, app: ASGIApp, holder: ModelHolder) -> None:
        self.app, self.holder = app, holder
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request of the ASGI protocol."""
        path = scope.get("path", "").removeprefix("/v1")
        if scope["type"] == "http" and not path.startswith(_NEVER) and self.holder.behind():
            if self._running is None or self._running.done():
                self._running = asyncio.create_task(asyncio.to_thread(self.holder.catch_up))
            await asyncio.wait({self._running}, timeout=LONGEST)
        await self.app(scope, receive, send)
