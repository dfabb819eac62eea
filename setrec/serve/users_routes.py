"""/users: what is kept of a user, erasure, and recommendations by user."""

import inspect
from typing import Annotated, Any, get_args, get_origin
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Path, Query
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from setrec.serve import messages
from setrec.serve.errors import CHANGE_ERRORS
from setrec.serve.limits import LINES
from setrec.serve.recommend_routes import recommend_out
from setrec.serve.service import Service
from setrec.serve.shop import Shop

PLAIN = (str, int, float, bool, type(None))
_USER: TypeAdapter[str] = TypeAdapter(messages.Text)


class IdPaths:
    """Lets the id of a user or an item in an address hold any character, / too, and sends bulks of events to their own route."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request of the ASGI protocol."""
        if scope["type"] == "http":
            path = scope.get("raw_path", b"").partition(b"?")[0].decode("ascii", "replace")
            if path.removeprefix("/v1").startswith(("/users/", "/items/")):
                scope = {**scope, "path": path}  # the id is decoded by the route
            elif path in ("/events", "/v1/events") and dict(scope["headers"]).get(b"content-type", b"").startswith(
                LINES
            ):
                scope = {**scope, "path": f"{path}/lines"}
        await self.app(scope, receive, send)


def user_of(id: Annotated[str, Path(description="Your id of the user, percent-encoded; any character.")]) -> str:
    """The user that an address names."""
    try:
        return _USER.validate_python(unquote(id, errors="strict"))
    except (ValidationError, UnicodeDecodeError):
        raise HTTPException(422, "The id of the user must have 1 to 500 characters of UTF-8, and no NUL.") from None


def options_of_query(**given: Any) -> messages.AnswerOptions:
    """The options of an answer in an address."""
    return messages.AnswerOptions(**given)


def _is_plain(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return _is_plain(get_args(kind)[0])
    return (
        kind in PLAIN
        or (get_args(kind) != () and get_origin(kind) is not dict and all(map(_is_plain, get_args(kind))))
        or (isinstance(kind, str))
    )


# All options that an address can hold: texts, numbers, lists of them. The others need POST /users/recommendations.
options_of_query.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
    inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
        annotation=Annotated[(field.annotation, *field.metadata, Query(description=field.description))],
    )
    for name, field in messages.AnswerOptions.model_fields.items() if _is_plain(field.annotation)
])  # fmt: skip


def the_shop(service: Service) -> Shop:
    """The database, where there is one."""
    if service.shop is None:
        raise HTTPException(403, "This server keeps no users: it was started without a database.")
    return service.shop


def users_routes(service: Service) -> APIRouter:
    """Make the routes. All need the token: what is kept of a user is personal."""
    routes = APIRouter(dependencies=[Depends(service.guard)])
    errors = CHANGE_ERRORS | {404: {"model": messages.ErrorOut, "description": "Nothing is kept of this user."}}

    @routes.post("/users/recommendations", responses=CHANGE_ERRORS)
    async def recommend_to_users(body: messages.UsersBody) -> messages.UserAnswersOut:
        """Recommend items to users, by their newest events. A user without events gets what anyone would."""
        shop = the_shop(service)
        found = await shop.histories(body.users)
        options = body.model_dump(exclude={"users"})
        messages.RecommendBody(histories=[[]] * len(found), **options)  # refuses an answer that would be too large
        variants = [shop.variant_of(user) for user in body.users]
        answers: list[messages.RecommendationOut] = [None] * len(found)  # type: ignore[list-item]
        for variant in dict.fromkeys(variants):
            places = [place for place, one in enumerate(variants) if one == variant]
            histories = [found[place].items for place in places]
            kinds = [found[place].kinds for place in places]
            asked = messages.RecommendBody(histories=histories, kinds=kinds, **options)
            await service.wait_for(asked)
            result = await shop.recommend(asked, variant, [found[place].key for place in places])
            kept = sum(one.kept for one in result.recommendations)
            service.metrics.count_items(kept, sum(map(len, histories)) - kept)
            for place, one in zip(places, recommend_out(result).recommendations, strict=True):
                answers[place] = one
        return messages.UserAnswersOut(recommendations=answers, variants=variants)

    @routes.get("/users/{id}/recommendations", responses=CHANGE_ERRORS)
    async def recommend_to_user(
        user: Annotated[str, Depends(user_of)], options: Annotated[messages.AnswerOptions, Depends(options_of_query)]
    ) -> messages.UserAnswersOut:
        """Recommend items to one user, by the newest events."""
        return await recommend_to_users(messages.UsersBody(users=[user], **options.model_dump()))

    @routes.get("/users/{id}", responses=errors)
    def export(user: Annotated[str, Depends(user_of)]) -> messages.UserOut:
        """All that is kept of a user."""
        found = the_shop(service).store.user(user)
        if found is None:
            raise HTTPException(404, "Nothing is kept of this user.")
        return messages.UserOut(**found)

    @routes.delete("/users/{id}", responses=CHANGE_ERRORS)
    async def erase(user: Annotated[str, Depends(user_of)]) -> messages.ErasedOut:
        """Erase a user: events, answers, feedback and the id, also from the free space of the database's files."""
        return messages.ErasedOut(deleted=await the_shop(service).erasing.submit(user))

    return routes
