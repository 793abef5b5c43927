"""POST /v1/events: what people did with the results of searches."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Depends, Request

from raycd.api.events import EventsRequest, EventsTaken
from raycd.feedback.records import Event
from serve.api import batches, bodies, problems
from serve.api.served import Asked, Served
from serve.api.wellformed import known_parameters

_FIELDS = 10  # of an event, with those that are not read


def router(asked: Asked, prefix: str) -> APIRouter:
    """Return the route that takes events of the gallery that is asked."""
    routes = APIRouter(prefix=prefix, tags=["feedback"], dependencies=[Depends(known_parameters)])

    @routes.post(
        "/events",
        status_code=202,
        responses=problems.responses(400, 403, 408, 413, 415, 422, 503),
        openapi_extra=batches.body_of(EventsRequest),
    )
    async def events(request: Request, to: Served = asked) -> EventsTaken:
        """Take events in the form of User Behavior Insights. They are written soon after the
        answer; one that was sent before counts once.
        """
        replica = to.replica
        if replica.recorder is None:
            raise problems.ProblemError(
                403, "this service keeps no events: start it with a database and --events"
            )
        batches.check_json(request)
        most = replica.args.max_events
        async with replica.deadline():
            replica.events.check()
            await to.intake.read(request, _FIELDS * most)
            with replica.events.slot():
                body = await bodies.parsed(request)
                # Of a thousand it takes as long as a search: beside the event loop
                taken = await replica.run_in_thread(lambda: _events(body, most))
        if not replica.recorder.put(taken):
            raise problems.busy("too many events wait to be written (events_queue)")
        return EventsTaken(taken=len(taken))

    return routes


def _events(body: Any, most: int) -> list[Event]:
    """Return the events of a body. Raises ProblemError."""
    asked = bodies.validated(EventsRequest, body).events
    if len(asked) > most:
        raise problems.beyond(
            "max_events",
            "too many events",
            got=len(asked),
            most=most,
            field="events",
            do="send fewer",
        )
    now = time.time()
    return [
        Event(
            *(one.key, one.query_id, now, one.action_name),
            one.event_attributes.object.object_id,
        )
        for one in asked
    ]
