"""POST /feedback: an item of an answer was taken."""

import time

from fastapi import APIRouter, Depends

from setrec.serve import messages
from setrec.serve.errors import CHANGE_ERRORS
from setrec.serve.service import Service
from setrec.serve.users_routes import the_shop


def feedback_routes(service: Service) -> APIRouter:
    """Make the route."""
    routes = APIRouter(dependencies=[Depends(service.guard)])

    @routes.post("/feedback", responses=CHANGE_ERRORS, status_code=201)
    def add_feedback(body: messages.FeedbackBody) -> messages.FeedbackOut:
        """Say that an item of an answer was taken. It is no event of a user: send an event that names the answer for both."""
        stored = the_shop(service).answers.feedback(body.answer, body.item, body.kind, time.time_ns() // 1000)
        return messages.FeedbackOut(stored=stored)

    return routes
