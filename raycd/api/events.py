"""Events over HTTP, in the form of OpenSearch's User Behavior Insights (UBI), for service and
client.

Of an event the action, the answer and the result are kept, and nothing of who did it.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from raycd.filters import Name

Action = Literal["impression", "click", "add_to_cart", "purchase", "dismiss"]
EventId = Annotated[str, Field(pattern=r"^[!-~]{1,64}$")]
QueryId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class _Part(BaseModel):
    """A part of an event. UBI has more fields than these, which are not read."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)


class EventObject(_Part):
    """The result that somebody did something with."""

    object_id: Name
    """Its image_id."""


class EventAttributes(_Part):
    """What an event is about."""

    object: EventObject


class UserEvent(_Part):
    """An event of UBI. Its other fields (client_id, session_id, user_query, message, ...) may be
    sent and are not kept.
    """

    action_name: Action
    query_id: QueryId
    """That of the answer which had the result."""
    event_attributes: EventAttributes
    event_id: EventId | None = None
    """Of two events with one id the first counts. Absent: a hash of this event."""
    timestamp: str | int | float | None = None
    """When it happened; a part of that hash, and not kept."""

    @classmethod
    def of(cls, query_id: str, action: Action, image_id: str) -> Self:
        """Return an event of now, with an id of its own."""
        about = EventAttributes(object=EventObject(object_id=image_id))
        return cls(
            action_name=action,
            query_id=query_id,
            event_attributes=about,
            event_id=uuid4().hex,
        )

    @property
    def key(self) -> str:
        """The id, or the hash that stands for it."""
        if self.event_id is not None:
            return self.event_id
        said = (self.query_id, self.action_name, self.event_attributes.object.object_id)
        return hashlib.sha256("\n".join((*said, str(self.timestamp))).encode()).hexdigest()


class EventsRequest(BaseModel):
    """Several events."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    events: Annotated[list[UserEvent], Field(min_length=1)]
    """All are taken, or none."""


class EventsTaken(BaseModel):
    """The events that will be written within a second or two."""

    taken: int
