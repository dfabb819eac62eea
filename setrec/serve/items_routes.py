"""/items: find items, add them, remove them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.exceptions import HTTPException

from setrec.serve import messages
from setrec.serve.errors import CHANGE_ERRORS, ERRORS
from setrec.serve.service import Service


def items_routes(service: Service) -> APIRouter:
    """Make the routes."""
    routes = APIRouter()

    @routes.get("/items", responses={422: ERRORS[422]})
    def find_items(
        search: Annotated[str, Query(max_length=200, description="Part of a title.")] = "",
        limit: Annotated[int, Query(ge=1, le=messages.MAX_FOUND)] = 20,
    ) -> messages.ItemsOut:
        """Find items by a part of their title."""
        found = service.holder.current.recommender.search(search, limit=limit)
        return messages.ItemsOut(items=[messages.ItemOut(id=one.id, title=one.title, warm=one.warm) for one in found])

    @routes.post("/items", responses=CHANGE_ERRORS, dependencies=[Depends(service.guard)], status_code=201)
    def add_items(body: messages.ItemsBody) -> messages.ChangedOut:
        """Add items to the catalogue. They can be recommended at once, and stay after a restart."""
        return messages.ChangedOut(ids=service.holder.add([item.model_dump() for item in body.items]))

    @routes.delete("/items", responses=CHANGE_ERRORS, dependencies=[Depends(service.guard)])
    def remove_items(
        id: Annotated[list[messages.ItemId], Query(min_length=1, max_length=messages.MAX_NEW_ITEMS)],
    ) -> messages.ChangedOut:
        """Remove items from the catalogue."""
        for name in id:
            if name not in service.holder.current.recommender:
                raise HTTPException(404, f"{name!a} is not in the catalogue; nothing was removed.")
        return messages.ChangedOut(ids=service.holder.remove(list(dict.fromkeys(id))))

    return routes
