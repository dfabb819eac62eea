"""The HTTP interface: its routes, under /v1, put together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from setrec.evaluation.results import package_versions
from setrec.serve.errors import add_error_handlers
from setrec.serve.events_routes import events_routes
from setrec.serve.feedback_routes import feedback_routes
from setrec.serve.file_watcher import watch
from setrec.serve.freshness import Freshness
from setrec.serve.guard import TOKEN
from setrec.serve.items_routes import items_routes
from setrec.serve.limits import RequestLimits
from setrec.serve.model_holder import ModelHolder
from setrec.serve.operations_routes import operations_routes
from setrec.serve.options import ServeOptions
from setrec.serve.page import page_routes
from setrec.serve.recommend_routes import recommend_routes
from setrec.serve.request_ids import RequestIds
from setrec.serve.service import Service
from setrec.serve.tracing import Tracing
from setrec.serve.users_routes import IdPaths, users_routes
from setrec.shop.events import EventStore

VERSION = "/v1"  # before every path; a change that breaks callers gets another one


def create_app(
    holder: ModelHolder, token: str | None, options: ServeOptions, store: EventStore | None = None, provider: Any = None
) -> FastAPI:
    """Make the application.

    Args:
        holder: the model in service.
        token: the bearer token for changes; None or "": nothing can be changed.
        options: see `ServeOptions`.
        provider: of traces, see tracing.py; None: none.
        store: users and events; None: there is no database.

    Returns:
        The application; its `state.service` holds what the routes share.
    """
    service = Service(holder, token, options, store, provider)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        if service.shop is not None:
            service.shop.start()
        watcher = asyncio.create_task(watch(holder, options.watch, service.take_over)) if options.watch else None
        sampler = asyncio.create_task(sample())
        yield
        if watcher is not None:
            watcher.cancel()
        sampler.cancel()
        await service.batcher.close()
        if service.shop is not None:
            await service.shop.close()

    async def sample() -> None:
        while True:
            service.sample()
            await asyncio.sleep(1)

    app = FastAPI(
        title="SETRec", version=package_versions().get("setrec", "unknown"), lifespan=lifespan, docs_url=None, redoc_url=None,
        description=f"Recommendations from a SETRec checkpoint. Requests that change something need the bearer token in {TOKEN}.",
    )  # fmt: skip
    app.state.service = service
    app.add_middleware(Freshness, holder=holder)
    app.add_middleware(IdPaths)
    app.add_middleware(RequestLimits, metrics=service.metrics)
    if provider is not None:
        app.add_middleware(Tracing, provider=provider)
    app.add_middleware(RequestIds)
    add_error_handlers(app)
    for make in (recommend_routes, items_routes, users_routes, events_routes, feedback_routes, operations_routes):
        routes = make(service)
        app.include_router(routes, prefix=VERSION)
        app.include_router(routes, include_in_schema=False)  # the paths of version 0.2.0
    app.include_router(page_routes())
    return app
