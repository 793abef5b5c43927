"""The recorder of feedback: what it loses, what it keeps, and that nobody waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raycd.feedback.records import Event
from raycd.gallery_db import GalleryDatabase, events
from serve.args import ServeArgs
from serve.live import recorder
from serve.live.recorder import Recorder
from tests.feedback.logs import search


class Told:
    """What a recorder says of itself."""

    def __init__(self) -> None:
        self.written = self.lost = 0

    def feedback(self, written: int, lost: int) -> None:
        self.written += written
        self.lost += lost


@contextmanager
def recording(
    file: Path, busy_s: float = 0.05, **settings: object
) -> Iterator[tuple[Recorder, GalleryDatabase, Told]]:
    args, told = ServeArgs.model_validate({"events": True, **settings}), Told()
    with GalleryDatabase.open(str(file), busy_s=busy_s) as gallery_db:
        own = Recorder(gallery_db, args, told)
        yield own, gallery_db, told
        own.stop()


def clicks(*event_ids: str) -> list[Event]:
    return [Event(event_id, "q", time.time(), "click", "a") for event_id in event_ids]


def test_what_finds_no_room_is_lost_as_a_whole_and_counted(tmp_path: Path) -> None:
    with recording(tmp_path / "g.sqlite", events_queue=3, max_events=3) as (own, gallery_db, told):
        assert own.put(clicks("a", "b"))
        assert not own.put(clicks("c", "d"))
        assert own.put(clicks("e"))
        own.stop()
        assert [one.event_id for one in events.events(gallery_db)] == ["a", "b", "e"]
        assert (told.written, told.lost) == (3, 2)


def test_a_database_that_is_locked_delays_nobody_and_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "g.sqlite"
    busy = recording(file, busy_s=0.05)  # each put that waited would wait so long
    with busy as (own, gallery_db, told), GalleryDatabase.open(str(file)) as other:
        with other.transaction("holding the lock"):
            began = time.monotonic()
            assert all(own.put(clicks(f"e{n}")) for n in range(1000))
            assert time.monotonic() - began < 5
            time.sleep(2 * recorder.PAUSE_S)
            assert told.written == 0
        own.stop()
        assert events.count(gallery_db) == (0, 1000)
        assert (told.written, told.lost) == (1000, 0)


def test_a_record_that_no_database_takes_takes_no_other_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with recording(tmp_path / "g.sqlite") as (own, gallery_db, told):
        assert own.put([*clicks("a"), search("q", "a", text="\ud800"), *clicks("b")])
        own.stop()
        assert events.count(gallery_db) == (0, 2)
        assert (told.written, told.lost) == (2, 1)
        assert "feedback was lost" in caplog.text


def test_what_is_older_than_it_may_be_goes_by_itself(tmp_path: Path) -> None:
    file, old = tmp_path / "g.sqlite", time.time() - 3 * recorder.DAY_S
    with GalleryDatabase.open(str(file)) as gallery_db:
        events.write(gallery_db, [search("old", "a", at=old), search("new", "a", at=time.time())])
    with recording(file, events_days=2) as (_, gallery_db, _):
        until = time.monotonic() + 10
        while events.count(gallery_db) != (1, 0) and time.monotonic() < until:
            time.sleep(0.05)
        assert [one.query_id for one in events.searches(gallery_db)] == ["new"]


def test_what_its_database_does_not_take_at_the_end_is_counted_as_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    file = tmp_path / "g.sqlite"
    with recording(file) as (own, _, told), GalleryDatabase.open(str(file)) as other:
        with other.transaction("holding the lock"):
            assert own.put(clicks("a", "b"))
            own.stop()
        assert (told.written, told.lost) == (0, 2)
        assert "2 searches and events were lost" in caplog.text
        assert not own.put(clicks("c"))
