"""The feedback in the gallery database: searches and events, written by the service."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, func, select

from raycd.api.events import Action
from raycd.feedback.records import Event, LoggedSearch
from raycd.gallery_db import GalleryDatabase, tables

_FETCHED = 2000  # rows at a time


def write(gallery_db: GalleryDatabase, records: Sequence[LoggedSearch | Event]) -> None:
    """Store searches and events in one transaction; what is there already stays as it is.

    Raises:
        GalleryError: Nothing was stored, but for the reason unreachable.
        DataError: A text cannot be stored; nothing was.
    """
    rows = {
        tables.searches: [_search_row(one) for one in records if isinstance(one, LoggedSearch)],
        tables.events: [asdict(one) for one in records if isinstance(one, Event)],
    }
    with gallery_db.transaction("writing feedback") as connection:
        for table, own in rows.items():
            if own:
                connection.execute(gallery_db.insert(table).on_conflict_do_nothing(), own)


def forget(gallery_db: GalleryDatabase, before: float) -> int:
    """Remove the searches and events of before a time (seconds since 1970); return how many."""
    with gallery_db.transaction("removing feedback") as connection:
        return sum(
            connection.execute(delete(table).where(table.c.at < before)).rowcount
            for table in (tables.events, tables.searches)
        )


def searches(gallery_db: GalleryDatabase, since: float = 0.0) -> Iterator[LoggedSearch]:
    """Yield the searches from a time on, the oldest first."""
    table = tables.searches
    wanted = select(table).where(table.c.at >= since).order_by(table.c.at, table.c.query_id)
    with gallery_db.reading() as connection:
        for row in connection.execution_options(yield_per=_FETCHED).execute(wanted):
            results = json.loads(row.results)
            yield LoggedSearch(
                *(row.query_id, row.at, row.reference, row.text, row.text_hash, row.bundle),
                row.first,
                tuple(image_id for image_id, _ in results),
                tuple(score for _, score in results),
                None if row.explored is None else tuple(json.loads(row.explored)),
            )


def events(
    gallery_db: GalleryDatabase, since: float = 0.0, *, without: Sequence[Action] = ()
) -> Iterator[Event]:
    """Yield the events from a time on, the oldest first, but for some actions."""
    table = tables.events
    wanted = select(table).where(table.c.at >= since, table.c.action.not_in(without))
    wanted = wanted.order_by(table.c.at, table.c.event_id)
    with gallery_db.reading() as connection:
        for row in connection.execution_options(yield_per=_FETCHED).execute(wanted):
            yield Event(row.event_id, row.query_id, row.at, row.action, row.image_id)


def count(gallery_db: GalleryDatabase) -> tuple[int, int]:
    """Return the numbers of searches and of events."""
    with gallery_db.reading() as connection:
        wanted = (select(func.count()).select_from(t) for t in (tables.searches, tables.events))
        searches, events = (int(connection.execute(one).scalar_one()) for one in wanted)
    return searches, events


def _search_row(search: LoggedSearch) -> dict[str, Any]:
    results = [
        [image_id, round(score, 4)]
        for image_id, score in zip(search.results, search.scores, strict=True)
    ]
    row = asdict(search) | {
        "results": tables.as_json(results),
        "explored": None if search.explored is None else tables.as_json(list(search.explored)),
    }
    del row["scores"]  # beside the results
    return row
