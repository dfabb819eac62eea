"""POST /events: what users did, as JSON or, in bulk, as JSON lines."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from setrec.errors import DataError
from setrec.serve import messages
from setrec.serve.errors import CHANGE_ERRORS
from setrec.serve.service import Service
from setrec.serve.users_routes import the_shop
from setrec.shop.events import Event

PIECE = 2_000  # lines that are stored at a time
MAX_LINE = 20_000  # bytes
AHEAD = 86_400_000_000  # microseconds that an event may lie in the future


def events_routes(service: Service) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(dependencies=[Depends(service.guard)])

    async def store(events: Sequence[Event]) -> messages.EventsOut:
        added = await the_shop(service).adding.submit(events, len(events))
        service.metrics.events.labels("stored").inc(added.stored)
        service.metrics.events.labels("duplicate").inc(added.duplicates)
        known = service.holder.current.recommender
        unknown = sum(event.item not in known for event in events)
        return messages.EventsOut(stored=added.stored, duplicates=added.duplicates, unknown_items=unknown)

    @routes.post("/events", responses=CHANGE_ERRORS, status_code=201)
    async def add_events(body: messages.EventsBody) -> messages.EventsOut:
        """Store events. The answer comes when they are on the disk.

        For many, send JSON lines, an event a line, as application/x-ndjson.

        An event with the id of another, or without an id and with the same user, item, time and kind, is a duplicate.
        """
        events = []
        for place, one in enumerate(body.events):
            try:
                events.append(event_of(one))
            except DataError as error:
                raise DataError(f"events[{place}].{error}") from None
        return await store(events)

    @routes.post("/events/lines", include_in_schema=False, status_code=201)
    async def add_lines(request: Request) -> messages.EventsOut:
        the_shop(service)
        total, number, rest = messages.EventsOut(stored=0, duplicates=0, unknown_items=0), 0, b""
        piece: list[Event] = []

        async def flush() -> None:
            if piece:
                done = await store(piece)
                for name in ("stored", "duplicates", "unknown_items"):
                    setattr(total, name, getattr(total, name) + getattr(done, name))
                piece.clear()

        async def refuse(sentence: str) -> HTTPException:
            await flush()
            before = f"the lines before it are stored ({total.stored} new, {total.duplicates} known already)"
            return HTTPException(422, f"line {number}: {sentence.rstrip('.')}; {before}.")

        async for part in request.stream():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines if part else [*lines, rest]:  # the last part is empty
                number += 1
                if not line.strip():
                    continue
                try:
                    if len(line) > MAX_LINE:
                        raise DataError(f"it is longer than {MAX_LINE} bytes")
                    piece.append(event_of(messages.EventIn.model_validate_json(line)))
                except ValidationError as error:
                    raise await refuse(
                        messages.validation_sentence([{**one, "loc": ("line", *one["loc"])} for one in error.errors()])
                    ) from None
                except DataError as error:
                    raise await refuse(str(error)) from None
                if len(piece) == PIECE:
                    await flush()
            if len(rest) > MAX_LINE:
                number += 1
                raise await refuse(f"it is longer than {MAX_LINE} bytes")
        await flush()
        return total

    return routes


def event_of(given: messages.EventIn) -> Event:
    """An event of a request in the form of the database.

    Raises:
        DataError: its time cannot be read, or lies in the future.
    """
    return Event(given.user, given.item, micros(given.time), given.kind, given.id, given.answer)


def micros(given: str | int | float | None) -> int:
    """A time in microseconds since 1970. Numbers count by their size, as in files: seconds, milliseconds or microseconds.

    Raises:
        DataError: it cannot be read, or lies in the future.
    """
    now = time.time_ns() // 1000
    if given is None:
        return now
    if isinstance(given, str):
        try:
            when = datetime.fromisoformat(given)
            found = round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1e6)
        except (ValueError, OverflowError, OSError):
            raise DataError(f"time: {given[:40]!a} is not ISO 8601, such as 2026-11-27T10:00:00Z.") from None
    else:
        found = round(given * (1_000_000 if abs(given) < 1e11 else 1_000 if abs(given) < 1e14 else 1))
    if not 0 <= found <= now + AHEAD:
        raise DataError(f"time: {str(given)[:40]!a} is before 1970 or more than a day ahead.")
    return found
