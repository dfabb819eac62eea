"""The HTTP interface: its routes, the token that changes need, and the form of errors."""

import asyncio
import base64
import hashlib
import hmac
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from setrec.errors import ConfigError, DataError, ModelError, SETRecError
from setrec.evaluation.results import package_versions
from setrec.recommend import RankedItem, Why
from setrec.serve import messages
from setrec.serve.batching import Batcher, BusyError
from setrec.serve.connections import NOSNIFF
from setrec.serve.file_watcher import watch
from setrec.serve.journal import JournalWriteError
from setrec.serve.model_calls import RequestResult, answer_batch, answer_in_pieces, refuse_unknown
from setrec.serve.model_holder import ModelHolder, TakeoverRunningError
from setrec.serve.options import ServeOptions
from setrec.serve.prometheus import ServerMetrics, method_label, route_label

HEALTHY_FOR = 1.0  # seconds after a good answer in which /health does not ask the model
PAGE = Path(__file__).parent / "page.html"
TOKEN = "SETREC_TOKEN"  # the environment variable
log = logging.getLogger("uvicorn.error")

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": messages.ErrorOut, "description": why}
    for code, why in {
        400: "The body cannot be read.",
        413: "The body is too large.",
        422: "Something in the body is wrong; the sentence says what and where.",
        503: "Too many requests are waiting: try again; or the model gives no finite scores: see /health.",
    }.items()
}
CHANGE_ERRORS: dict[int | str, dict[str, Any]] = ERRORS | {
    401: {"model": messages.ErrorOut, "description": "The bearer token is missing or wrong."},
    403: {
        "model": messages.ErrorOut,
        "description": f"The server was started without {TOKEN}: nothing can be changed.",
    },
    404: {"model": messages.ErrorOut, "description": "No such item."},
    409: {"model": messages.ErrorOut, "description": "Another takeover is running."},
    507: {"model": messages.ErrorOut, "description": "The change could not be written to the disk; it was not made."},
}


class RequestLimits:
    """The outermost layer: refuses a body that is too large before all of it is read, answers HEAD, and counts requests."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self.app, self.metrics = app, metrics
        self.held = 0  # bytes of the bodies of all requests in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request of the ASGI protocol."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status, size = time.perf_counter(), 500, 0
        head = scope["method"] == "HEAD"  # GET without the body
        inner = {**scope, "method": "GET"} if head else scope

        async def receive_limited() -> Message:
            nonlocal size
            message = await receive()
            part = len(message.get("body", b""))
            size += part
            self.held += part
            if size > messages.MAX_BODY:
                raise HTTPException(413, f"The body is larger than {messages.MAX_BODY} bytes.", {"connection": "close"})
            if self.held > messages.MAX_BODIES:
                sentence = "Too many large requests are on their way; try again in a second."
                raise HTTPException(503, sentence, {"connection": "close", "retry-after": "1"})
            return message

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(NOSNIFF)
            elif head:
                message = {**message, "body": b""}
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self.app(inner, receive_limited, send_noting_status)
        finally:
            self.held -= size
            self.metrics.in_flight.dec()
            self.metrics.count_request(route_label(inner), method_label(scope), status, time.perf_counter() - start)


def create_app(holder: ModelHolder, token: str | None, options: ServeOptions) -> FastAPI:
    """Make the application.

    Args:
        holder: the model in service.
        token: the bearer token for changes; None or "": nothing can be changed.
        options: see `ServeOptions`.
    """
    server_metrics = ServerMetrics()

    def answer(requests: Sequence[messages.RecommendBody]) -> list[RequestResult | Exception]:
        answers = answer_batch(holder.current, requests)
        faulty = any(isinstance(one, Exception) and not isinstance(one, ConfigError | DataError) for one in answers)
        holder.answered = -math.inf if faulty else time.monotonic()
        return answers

    batcher: Batcher[messages.RecommendBody, RequestResult] = Batcher(
        answer,
        options.max_batch, options.max_wait_ms / 1000, options.max_waiting, server_metrics.batch.observe,
    )  # fmt: skip
    server_metrics.waiting.set_function(lambda: batcher.size)
    server_metrics.generation.set_function(lambda: holder.current.generation)
    server_metrics.cache_bytes.set_function(lambda: holder.current.recommender.prefix_cache_bytes)
    server_metrics.items.set_function(lambda: holder.current.recommender.info()["n_items"])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        watcher = asyncio.create_task(watch(holder, options.watch, server_metrics)) if options.watch else None
        yield
        if watcher is not None:
            watcher.cancel()
        await batcher.close()

    app = FastAPI(
        title="SETRec", version=package_versions().get("setrec", "unknown"), lifespan=lifespan, docs_url=None, redoc_url=None,
        description=f"Recommendations from a SETRec checkpoint. Requests that change something need the bearer token in {TOKEN}.",
    )  # fmt: skip
    app.add_middleware(RequestLimits, metrics=server_metrics)
    _add_error_handlers(app)
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

    @app.post("/recommend", responses=ERRORS, response_model=messages.RecommendOut)
    async def recommend(body: messages.RecommendBody) -> Response:
        """Recommend items for histories. The users need not be in the training data."""
        refuse_unknown(holder.current.recommender, body)
        start = time.perf_counter()
        result = await answer_in_pieces(batcher, body)
        took = 1000 * (time.perf_counter() - start)
        kept, items = sum(one.kept for one in result.recommendations), sum(map(len, body.histories))
        server_metrics.count_items(kept, items - kept)
        timing = f'model;dur={took:.1f}, prefix_cache;desc="{kept} of {items} items"'
        content = _recommend_out(result).model_dump_json()
        return Response(content, media_type="application/json", headers={"server-timing": timing})

    @app.get("/items", responses={422: ERRORS[422]})
    def find_items(
        search: Annotated[str, Query(max_length=200, description="Part of a title.")] = "",
        limit: Annotated[int, Query(ge=1, le=messages.MAX_FOUND)] = 20,
    ) -> messages.ItemsOut:
        """Find items by a part of their title."""
        found = holder.current.recommender.search(search, limit=limit)
        return messages.ItemsOut(items=[messages.ItemOut(id=one.id, title=one.title, warm=one.warm) for one in found])

    @app.post("/items", responses=CHANGE_ERRORS, dependencies=[Depends(guard)], status_code=201)
    def add_items(body: messages.ItemsBody) -> messages.ChangedOut:
        """Add items to the catalogue. They can be recommended at once, and stay after a restart."""
        return messages.ChangedOut(ids=holder.add([item.model_dump() for item in body.items]))

    @app.delete("/items", responses=CHANGE_ERRORS, dependencies=[Depends(guard)])
    def remove_items(
        id: Annotated[list[messages.ItemId], Query(min_length=1, max_length=messages.MAX_NEW_ITEMS)],
    ) -> messages.ChangedOut:
        """Remove items from the catalogue."""
        for name in id:
            if name not in holder.current.recommender:
                raise HTTPException(404, f"{name!a} is not in the catalogue; nothing was removed.")
        return messages.ChangedOut(ids=holder.remove(list(dict.fromkeys(id))))

    @app.post("/model/reload", responses=CHANGE_ERRORS, dependencies=[Depends(guard)])
    def reload(body: messages.ReloadBody) -> messages.ModelOut:
        """Take over a checkpoint. A broken one is refused, and the old one stays in service."""
        path = holder.current.path if body.path is None else holder.allowed(body.path)
        try:
            holder.take_over(path)
        except TakeoverRunningError:
            raise HTTPException(409, "Another checkpoint is being loaded right now; try again.") from None
        except Exception:
            server_metrics.takeovers.labels("refused").inc()
            raise
        server_metrics.takeovers.labels("done").inc()
        return model()

    @app.get("/model")
    def model() -> messages.ModelOut:
        """Describe the model in service."""
        served = holder.current
        return messages.ModelOut(
            checkpoint=str(served.path), generation=served.generation, since=served.since.isoformat(timespec="seconds"),
            limits=messages.LIMITS, info=served.recommender.info(),
        )  # fmt: skip

    @app.get("/health", responses={503: {"model": messages.ErrorOut, "description": "The model cannot answer."}})
    async def health() -> messages.HealthOut:
        """Say that the model answers. It is asked for the first item of an empty history, unless it has just answered others."""
        if time.monotonic() - holder.answered > HEALTHY_FOR:
            try:
                await batcher.submit(messages.RecommendBody(histories=[[]], k=1))
            except BusyError:
                pass  # it is at work
            except Exception as error:
                log.error("the model cannot answer: %s: %s", type(error).__name__, error)
                reason = str(error) if isinstance(error, SETRecError) else f"it fails ({type(error).__name__})."
                raise HTTPException(503, f"The model in service cannot answer: {reason}") from error
        return messages.HealthOut(
            status="ok", checkpoint=str(holder.current.path), generation=holder.current.generation
        )

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(server_metrics.show(), media_type=server_metrics.content_type)

    html = PAGE.read_text()
    headers = page_headers(html)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    return app


def page_headers(html: str) -> dict[str, str]:
    """Headers that allow the page's own scripts and styles, and nothing from anywhere else."""

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return " ".join(f"'sha256-{_base64(hashlib.sha256(part.encode()).digest())}'" for part in parts)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"content-security-policy": policy, "referrer-policy": "no-referrer"}


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _recommend_out(result: RequestResult) -> messages.RecommendOut:
    def similar(pairs: list[tuple[str, float]]) -> list[messages.SimilarItem]:
        return [messages.SimilarItem(id=own, cosine=cosine) for own, cosine in pairs]

    def why_out(why: Why) -> messages.WhyOut:
        return messages.WhyOut(
            parts=why.parts, nearest_text=similar(why.nearest_text), nearest_cf=similar(why.nearest_cf)
        )

    def ranked_out(item: RankedItem) -> messages.RankedOut:
        why = None if item.why is None else why_out(item.why)
        return messages.RankedOut(id=item.id, title=item.title, score=item.score, warm=item.warm, why=why)

    rows = [
        messages.RecommendationOut(items=[ranked_out(item) for item in one.items], unknown=one.unknown)
        for one in result.recommendations
    ]
    return messages.RecommendOut(recommendations=rows, generation=result.generation)


def _add_error_handlers(app: FastAPI) -> None:
    """Give every error the form {"error": one sentence}."""

    def sentence(status: int, text: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": text}, status, headers=headers)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        text = {
            404: f"There is nothing at {ascii(request.url.path)[:200]}; see /openapi.json.",
            405: f"{request.method} is not allowed here; see /openapi.json.",
            400: "The body cannot be read: send JSON in UTF-8.",
        }
        plain = error.detail in ("Not Found", "Method Not Allowed", "There was an error parsing the body")
        return sentence(error.status_code, text[error.status_code] if plain else str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return sentence(422, messages.validation_sentence(error.errors()))

    @app.exception_handler(SETRecError)
    async def refused(request: Request, error: SETRecError) -> JSONResponse:
        return sentence(422, str(error))

    @app.exception_handler(ModelError)
    async def sick(request: Request, error: ModelError) -> JSONResponse:
        log.error("%s %s: %s", request.method, request.url.path, error)
        return sentence(503, str(error))

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        return sentence(503, "Too many requests are waiting; try again in a second.", {"retry-after": "1"})

    @app.exception_handler(JournalWriteError)
    async def disk(request: Request, error: JournalWriteError) -> JSONResponse:
        log.error("%s %s: %s", request.method, request.url.path, error)
        return sentence(507, f"The change could not be written to the disk and was not made ({error}).")

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return sentence(
            500, "The server failed at this request; its log says why.", NOSNIFF
        )  # outside of RequestLimits
