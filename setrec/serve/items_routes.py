"""/items, /popular, /latest, /changes: find items, what is similar to one, and change the catalogue."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Path, Query
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from setrec.recommend import Item
from setrec.serve import messages
from setrec.serve.errors import CHANGE_ERRORS, ERRORS
from setrec.serve.service import Service

_ID: TypeAdapter[str] = TypeAdapter(messages.ItemId)
Limit = Annotated[int, Query(ge=1, le=messages.MAX_FOUND)]
FilterQuery = Annotated[messages.Filter | None, Query()]
FOUND: dict[int | str, dict[str, Any]] = {422: ERRORS[422], 404: CHANGE_ERRORS[404]}


def item_of(id: Annotated[str, Path(description="The id of an item, percent-encoded; any character.")]) -> str:
    """The item that an address names."""
    try:
        return _ID.validate_python(unquote(id, errors="strict"))
    except (ValidationError, UnicodeDecodeError):
        raise HTTPException(422, "The id of the item must have 1 to 500 characters of UTF-8.") from None


Id = Annotated[str, Depends(item_of)]
MOST_COUNTED = 10_000  # items whose events are counted for /popular


def items_routes(service: Service) -> APIRouter:
    """Make the routes."""
    routes = APIRouter()
    holder = service.holder

    def known(ids: Sequence[str], what: str = "") -> None:
        holder.wait_for(ids)
        for own in ids:
            if own not in holder.current.recommender:
                raise HTTPException(404, f"{own!a} is not in the catalogue{what}.")

    @routes.get("/items", responses={422: ERRORS[422]})
    def find_items(
        search: Annotated[str, Query(max_length=200, description="Part of a title.")] = "",
        limit: Limit = 20,
        filter: FilterQuery = None,
    ) -> messages.ItemsOut:
        """Find items by a part of their title, the most bought first."""
        return _items_out(holder.current.recommender.search(search, limit=limit, filter=filter))

    @routes.get("/popular", responses={422: ERRORS[422]})
    def popular_items(
        limit: Limit = 20,
        filter: FilterQuery = None,
        days: Annotated[int, Query(ge=1, le=3650, description="Count the events of the last days.")] = 30,
    ) -> messages.ItemsOut:
        """The items with the most events of late; without a database, or events in it, by the counts of the training."""
        counts: dict[str, int] | None = None
        if service.shop is not None:
            since = time.time_ns() // 1000 - days * 86_400_000_000
            counts = dict(service.shop.store.popular(since, MOST_COUNTED)) or None
        return _items_out(holder.current.recommender.popular(limit, filter, counts))

    @routes.get("/latest", responses={422: ERRORS[422]})
    def latest_items(limit: Limit = 20, filter: FilterQuery = None) -> messages.ItemsOut:
        """The items that came last into the catalogue."""
        return _items_out(holder.current.recommender.latest(limit, filter))

    @routes.get("/items/{id:path}/similar", responses=FOUND)
    def similar_items(
        own: Id,
        by: Annotated[
            str,
            Query(
                max_length=100,
                description="text, co_occurrence, slots, cf, or a source of the item's vectors by its name.",
            ),
        ] = "text",
        limit: Limit = 10,
        filter: FilterQuery = None,
    ) -> messages.SimilarOut:
        """Items that are similar by one of the things that the model knows of items."""
        known([own])
        found = holder.current.recommender.similar(own, by, limit, filter)
        return messages.SimilarOut(items=[messages.SimilarItemOut(**one._asdict()) for one in found], by=by)

    @routes.get("/items/{id:path}", responses=FOUND)
    def get_item(own: Id) -> messages.ItemDetailsOut:
        """All that is known of an item."""
        known([own])
        return messages.ItemDetailsOut(**holder.current.recommender.item(own)._asdict())

    @routes.get("/changes", responses={422: ERRORS[422]})
    def changes(
        since: Annotated[
            datetime | None, Query(description="ISO 8601; without a zone: UTC. Nothing: all that is remembered.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=messages.MAX_CHANGES)] = 100,
    ) -> messages.ChangesOut:
        """What has changed in the catalogue, and which models began to serve, newest first."""
        start = since if since is None or since.tzinfo is not None else since.replace(tzinfo=UTC)
        recommender = holder.current.recommender
        found: list[messages.ChangeOut] = []
        for change in reversed(list(holder.journal.recent)):
            if len(found) == limit or (start is not None and (change.time is None or change.time < start)):
                break
            shown = change.ids[: messages.SHOWN_OF_A_CHANGE]
            titles = [recommender.item(own).title if own in recommender else None for own in shown]
            found.append(
                messages.ChangeOut(
                    time=None if change.time is None else change.time.isoformat(), kind=change.kind, count=len(change.ids),
                    items=[messages.ChangedItem(id=own, title=title) for own, title in zip(shown, titles, strict=True)],
                    fields=change.fields,
                )
            )  # fmt: skip
        return messages.ChangesOut(changes=found, models=_models(service, start, limit))

    @routes.post("/items", responses=CHANGE_ERRORS, dependencies=[Depends(service.guard)], status_code=201)
    def add_items(body: messages.ItemsBody) -> messages.ChangedOut:
        """Add items to the catalogue. They can be recommended at once, and stay after a restart."""
        return messages.ChangedOut(ids=holder.add([item.model_dump() for item in body.items]))

    @routes.patch("/items", responses=CHANGE_ERRORS, dependencies=[Depends(service.guard)])
    def patch_items(body: messages.PatchBody) -> messages.ChangedOut:
        """Change attributes of items, such as price or stock, or titles. No score changes; what changes stays after a restart."""
        patches: dict[str, dict[str, Any]] = {}
        for item in body.items:
            patches.setdefault(item.id, {}).update(item.fields)
        known(list(patches), "; nothing was changed")
        return messages.ChangedOut(ids=holder.patch(patches))

    @routes.delete("/items", responses=CHANGE_ERRORS, dependencies=[Depends(service.guard)])
    def remove_items(
        id: Annotated[list[messages.ItemId], Query(min_length=1, max_length=messages.MAX_NEW_ITEMS)],
    ) -> messages.ChangedOut:
        """Remove items from the catalogue."""
        known(id, "; nothing was removed")
        return messages.ChangedOut(ids=holder.remove(list(dict.fromkeys(id))))

    return routes


def _models(service: Service, start: datetime | None, limit: int) -> list[messages.TakeoverOut]:
    """The models that began to serve, newest first: as the database has it; without one, since this server was started."""
    if service.shop is not None:
        found = service.shop.takeovers.newest(0 if start is None else round(start.timestamp() * 1e6), limit)
        times = [datetime.fromtimestamp(one.time / 1e6, UTC) for one in found]
        rows = [(one.checkpoint, one.generation, when) for one, when in zip(found, times, strict=True)]
    else:
        memory = reversed(list(service.holder.taken_over))
        rows = [(str(path), generation, when) for path, generation, when in memory if start is None or when >= start]
    return [
        messages.TakeoverOut(checkpoint=path, generation=generation, since=when.isoformat(timespec="seconds"))
        for path, generation, when in rows[:limit]
    ]


def _items_out(items: Sequence[Item]) -> messages.ItemsOut:
    return messages.ItemsOut(items=[messages.ItemOut(**one._asdict()) for one in items])
