"""The records of feedback: searches with what they showed, and events on their results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from raycd.api.events import Action

LIKED: tuple[Action, ...] = ("click", "add_to_cart", "purchase")
"""Actions that say a result is right, the weakest first."""


@dataclass(frozen=True)
class LoggedSearch:
    """A search and the results that its answer had, in the order shown."""

    query_id: str
    at: float
    """Seconds since 1970."""
    reference: str | None
    """Image of the gallery; None: the picture was sent, and is not kept, or there was none."""
    text: str | None
    """None: there was none, or its hash alone is kept."""
    text_hash: str | None
    """SHA-256 of the text; None: there was none."""
    bundle: str
    """Prefix of the digest of the bundle that answered."""
    first: int
    """Results that were left out before the first one: the page's offset."""
    results: tuple[str, ...]
    """Image ids."""
    scores: tuple[float, ...]
    """Relative scores of the results: comparable between searches."""
    explored: tuple[int, int] | None = None
    """Two positions, from 0, whose results were swapped by the toss of a coin; None: it is not of
    the randomised slice.
    """


@dataclass(frozen=True)
class Event:
    """What somebody did with a result. Who did it is not known."""

    event_id: str
    query_id: str
    at: float
    action: Action
    image_id: str


@dataclass
class LoggedSession:
    """A search, and the actions on each of its results."""

    search: LoggedSearch
    actions: dict[str, set[Action]] = field(default_factory=dict)

    @property
    def liked(self) -> set[str]:
        """The results with one of LIKED."""
        return {image_id for image_id, own in self.actions.items() if not own.isdisjoint(LIKED)}


def sessions(searches: Iterable[LoggedSearch], events: Iterable[Event]) -> Iterator[LoggedSession]:
    """Yield each search with its events. Events on what it did not show are left out."""
    by_query: dict[str, list[Event]] = {}
    for event in events:
        by_query.setdefault(event.query_id, []).append(event)
    for search in searches:
        session, shown = LoggedSession(search), set(search.results)
        for event in by_query.get(search.query_id, ()):
            if event.image_id in shown:
                session.actions.setdefault(event.image_id, set()).add(event.action)
        yield session
