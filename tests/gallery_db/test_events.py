"""Searches and events in the gallery database."""

from __future__ import annotations

from dataclasses import replace

from raycd.feedback.records import Event
from raycd.gallery_db import GalleryDatabase, events
from tests.feedback.logs import search


def click(event_id: str, at: float = 2.0) -> Event:
    return Event(event_id, "q1", at, "click", "größe")


def test_what_is_written_is_read_again_and_written_twice_counts_once(
    gallery_db: GalleryDatabase,
) -> None:
    asked = replace(search("q1", ["größe", "b"], explored=(0, 1)), scores=(2.5, -0.125))
    bare = search("q2", [], reference=None, text=None, text_hash="0" * 64, at=3.0)
    events.write(gallery_db, [bare, click("e1"), asked])
    events.write(gallery_db, [replace(click("e1"), action="purchase"), click("e2"), asked])
    assert list(events.searches(gallery_db)) == [asked, bare]
    assert list(events.events(gallery_db)) == [click("e1"), click("e2")]
    assert events.count(gallery_db) == (2, 2)


def test_what_is_too_old_goes_and_a_reader_may_begin_later(gallery_db: GalleryDatabase) -> None:
    old, new = search("q1", "a", at=10.0), search("q2", "a", at=20.0)
    events.write(gallery_db, [old, new, click("e1", 10.0), click("e2", 20.0)])
    assert list(events.searches(gallery_db, since=20.0)) == [new]
    assert list(events.events(gallery_db, since=20.0)) == [click("e2", 20.0)]
    assert events.forget(gallery_db, before=20.0) == 2
    assert (list(events.searches(gallery_db)), list(events.events(gallery_db))) == (
        [new],
        [click("e2", 20.0)],
    )
