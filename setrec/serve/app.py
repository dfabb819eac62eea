"""The HTTP interface: what may be asked, who may change things, and what errors look like."""

import asyncio
import base64
import hashlib
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from setrec.errors import SETRecError
from setrec.serve import messages
from setrec.serve.answering import Answered, answer_batch, answer_in_pieces, refuse_unknown
from setrec.serve.batching import Batcher, BusyError
from setrec.serve.journal import NotKeptError
from setrec.serve.measures import Measures, method_of, route_of
from setrec.serve.models import Models, TakeoverRunningError
from setrec.serve.watching import watch

PAGE = Path(__file__).parent / "page.html"
TOKEN = "SETREC_TOKEN"
log = logging.getLogger("uvicorn.error")

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": messages.ErrorOut, "description": why}
    for code, why in {
        400: "The body can't be read.",
        413: "The body is too large.",
        422: "Something in the body is wrong; the sentence says what and where.",
        503: "Too many requests wait already: try again.",
    }.items()
}
GUARDED: dict[int | str, dict[str, Any]] = ERRORS | {
    401: {"model": messages.ErrorOut, "description": "The bearer token is missing or wrong."},
    403: {
        "model": messages.ErrorOut,
        "description": f"The server was started without {TOKEN}: nothing can be changed.",
    },
    404: {"model": messages.ErrorOut, "description": "No such item."},
    409: {"model": messages.ErrorOut, "description": "Another takeover is running."},
    507: {"model": messages.ErrorOut, "description": "The change could not be kept on disk; it was not made."},
}


class RequestLimits:
    """The outermost layer: refuses bodies that are too large before they are read whole, and counts what is answered."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self.app, self.measures = app, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status, size = time.perf_counter(), 500, 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > messages.MAX_BODY:
                raise HTTPException(413, f"The body is larger than {messages.MAX_BODY} bytes.", {"connection": "close"})
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.measures.in_flight.inc()
        try:
            await self.app(scope, limited, noted)
        finally:
            self.measures.in_flight.dec()
            self.measures.answered(route_of(scope), method_of(scope), status, time.perf_counter() - start)


def create_app(
    models: Models,
    token: str | None = None,
    max_batch: int = 32,
    max_wait: float = 0.002,
    max_waiting: int = 4096,
    watch_every: float = 0.0,
) -> FastAPI:
    """The application.

    Args:
        models: what is being served.
        token: the bearer token for what changes something; None or "": nothing can be changed.
        max_batch: histories answered by one call of the model.
        max_wait: seconds that a request waits for others to share a call with.
        max_waiting: histories that may wait; further requests are refused with 503.
        watch_every: seconds between two looks at the checkpoint's file, which is taken over when it has changed; 0: never.
    """
    measures = Measures()
    batcher: Batcher[messages.RecommendBody, Answered] = Batcher(
        lambda requests: answer_batch(models.served, requests),
        max_batch, max_wait, max_waiting, measures.batch.observe,
    )  # fmt: skip
    measures.waiting.set_function(lambda: batcher.size)
    measures.generation.set_function(lambda: models.served.generation)
    measures.items.set_function(lambda: models.served.recommender.info()["n_items"])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        watcher = asyncio.create_task(watch(models, watch_every, measures)) if watch_every else None
        yield
        if watcher is not None:
            watcher.cancel()
        await batcher.close()

    app = FastAPI(
        title="SETRec", version=version("setrec"), lifespan=lifespan, docs_url=None, redoc_url=None,
        description=f"Recommendations from a SETRec checkpoint. What changes something needs the bearer token in {TOKEN}.",
    )  # fmt: skip
    app.add_middleware(RequestLimits, measures=measures)
    _add_error_handlers(app)
    bearer = HTTPBearer(auto_error=False, description=f"The value of {TOKEN} where the server was started.")

    def guard(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        """Let only the token's holder pass."""
        if not token:
            raise HTTPException(
                403, f"This server takes no changes: it was started without {TOKEN} in its environment."
            )
        if given is None or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(
                401, f"This call needs the header 'Authorization: Bearer' with the value of {TOKEN}.",
                {"www-authenticate": "Bearer"},
            )  # fmt: skip

    @app.post("/recommend", responses=ERRORS, response_model=messages.RecommendOut)
    async def recommend(body: messages.RecommendBody) -> Response:
        """Recommend items for histories, known users' or not."""
        refuse_unknown(models.served.recommender, body)
        answered = await answer_in_pieces(batcher, body)
        return Response(_recommend_out(answered).model_dump_json(), media_type="application/json")

    @app.get("/items", responses={422: ERRORS[422]})
    def find_items(
        search: Annotated[str, Query(max_length=200, description="Part of a title.")] = "",
        limit: Annotated[int, Query(ge=1, le=messages.MAX_FOUND)] = 20,
    ) -> messages.ItemsOut:
        """Find items by a part of their title."""
        found = models.served.recommender.search(search, limit=limit)
        return messages.ItemsOut(items=[messages.ItemOut(id=one.id, title=one.title, warm=one.warm) for one in found])

    @app.post("/items", responses=GUARDED, dependencies=[Depends(guard)], status_code=201)
    def add_items(body: messages.ItemsBody) -> messages.ChangedOut:
        """Add items to the catalogue; they can be recommended at once, and are there after a restart."""
        return messages.ChangedOut(ids=models.add([item.model_dump() for item in body.items]))

    @app.delete("/items", responses=GUARDED, dependencies=[Depends(guard)])
    def remove_items(
        id: Annotated[list[messages.ItemId], Query(min_length=1, max_length=messages.MAX_NEW_ITEMS)],
    ) -> messages.ChangedOut:
        """Take items out of the catalogue."""
        for name in id:
            if name not in models.served.recommender:
                raise HTTPException(404, f"{name!a} is not in the catalogue; nothing was removed.")
        return messages.ChangedOut(ids=models.remove(list(dict.fromkeys(id))))

    @app.post("/model/reload", responses=GUARDED, dependencies=[Depends(guard)])
    def reload(body: messages.ReloadBody) -> messages.ModelOut:
        """Take over a checkpoint; a broken one is refused, and the old one goes on serving."""
        path = models.served.path if body.path is None else models.allowed(body.path)
        try:
            models.take_over(path)
        except TakeoverRunningError:
            raise HTTPException(409, "Another checkpoint is being loaded right now; try again.") from None
        except Exception:
            measures.takeovers.labels("refused").inc()
            raise
        measures.takeovers.labels("done").inc()
        return model()

    @app.get("/model")
    def model() -> messages.ModelOut:
        """What is being served."""
        served = models.served
        return messages.ModelOut(
            checkpoint=str(served.path), generation=served.generation, since=served.since.isoformat(timespec="seconds"),
            limits=messages.LIMITS, info=served.recommender.info(),
        )  # fmt: skip

    @app.get("/health")
    async def health() -> messages.HealthOut:
        """Whether the server answers."""
        return messages.HealthOut(status="ok", checkpoint=str(models.served.path), generation=models.served.generation)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(measures.show(), media_type=measures.content_type)

    html = PAGE.read_text()
    headers = page_headers(html)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    return app


def page_headers(html: str) -> dict[str, str]:
    """Headers under which a page runs the scripts and styles it was written with, and nothing from anywhere else."""

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return " ".join(f"'sha256-{_base64(hashlib.sha256(part.encode()).digest())}'" for part in parts)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _recommend_out(answered: Answered) -> messages.RecommendOut:
    def ranked(one: Any) -> messages.RankedOut:
        why = None
        if one.why is not None:
            near = [[messages.Near(id=name, cosine=cosine) for name, cosine in pairs] for pairs in one.why[1:]]
            why = messages.WhyOut(parts=one.why.parts, nearest_text=near[0], nearest_cf=near[1])
        return messages.RankedOut(id=one.id, title=one.title, score=one.score, warm=one.warm, why=why)

    rows = [
        messages.RecommendationOut(items=[ranked(i) for i in r.items], unknown=r.unknown)
        for r in answered.recommendations
    ]
    return messages.RecommendOut(recommendations=rows, generation=answered.generation)


def _add_error_handlers(app: FastAPI) -> None:
    """Every error is {"error": one sentence}."""

    def sentence(status: int, text: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": text}, status, headers=headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        text = {
            404: f"There is nothing at {ascii(request.url.path)[:200]}; see /openapi.json.",
            405: f"{request.method} is not allowed here; see /openapi.json.",
            400: "The body can't be read: send JSON in UTF-8.",
        }
        plain = error.detail in ("Not Found", "Method Not Allowed", "There was an error parsing the body")
        return sentence(error.status_code, text[error.status_code] if plain else str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return sentence(422, messages.complaint(error.errors()))

    @app.exception_handler(SETRecError)
    async def refused(request: Request, error: SETRecError) -> JSONResponse:
        return sentence(422, str(error))

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        return sentence(503, "Too many requests wait already; try again in a second.", {"retry-after": "1"})

    @app.exception_handler(NotKeptError)
    async def disk(request: Request, error: NotKeptError) -> JSONResponse:
        log.error("%s %s: %s", request.method, request.url.path, error)
        return sentence(507, f"The change could not be written to the disk and was not made ({error}).")

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return sentence(500, "The server failed at this request; its log says how.")
