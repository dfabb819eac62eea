"""/model, /health and /metrics: what runs, how it is, and how to exchange the model."""

import logging
import time

from fastapi import APIRouter, Depends, Response
from starlette.exceptions import HTTPException

from setrec.errors import SETRecError
from setrec.serve import messages
from setrec.serve.batching import BusyError
from setrec.serve.errors import CHANGE_ERRORS
from setrec.serve.model_holder import TakeoverRunningError
from setrec.serve.service import Service

HEALTHY_FOR = 1.0  # seconds after a good answer in which /health does not ask the model
log = logging.getLogger("uvicorn.error")


def operations_routes(service: Service) -> APIRouter:
    """Make the routes."""
    routes = APIRouter()

    @routes.post("/model/reload", responses=CHANGE_ERRORS, dependencies=[Depends(service.guard)])
    def reload(body: messages.ReloadBody) -> messages.ModelOut:
        """Take over a checkpoint. A broken one is refused, and the old one stays in service."""
        path = service.holder.current.path if body.path is None else service.holder.allowed(body.path)
        try:
            service.holder.take_over(path)
        except TakeoverRunningError:
            raise HTTPException(409, "Another checkpoint is being loaded right now; try again.") from None
        except Exception:
            service.metrics.takeovers.labels("refused").inc()
            raise
        service.metrics.takeovers.labels("done").inc()
        return model()

    @routes.get("/model")
    def model() -> messages.ModelOut:
        """Describe the model in service."""
        served = service.holder.current
        return messages.ModelOut(
            checkpoint=str(served.path), generation=served.generation, since=served.since.isoformat(timespec="seconds"),
            limits=messages.LIMITS, info=served.recommender.info(),
        )  # fmt: skip

    @routes.get("/health", responses={503: {"model": messages.ErrorOut, "description": "The model cannot answer."}})
    async def health() -> messages.HealthOut:
        """Say that the model answers. It is asked for the first item of an empty history, unless it has just answered others."""
        if time.monotonic() - service.holder.answered > HEALTHY_FOR:
            try:
                await service.batcher.submit(messages.RecommendBody(histories=[[]], k=1))
            except BusyError:
                pass  # it is at work
            except Exception as error:
                log.error("the model cannot answer: %s: %s", type(error).__name__, error)
                reason = str(error) if isinstance(error, SETRecError) else f"it fails ({type(error).__name__})."
                raise HTTPException(503, f"The model in service cannot answer: {reason}") from error
        return messages.HealthOut(
            status="ok", checkpoint=str(service.holder.current.path), generation=service.holder.current.generation
        )

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.show(), media_type=service.metrics.content_type)

    return routes
