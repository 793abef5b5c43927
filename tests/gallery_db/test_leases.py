"""Leases: one holder at a time, on both databases."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.leases import Lease


def test_a_lease_goes_to_another_holder_when_its_time_is_over(gallery_db: GalleryDatabase) -> None:
    one, other = (Lease(gallery_db, "x", holder, 1.0) for holder in ("one", "other"))
    assert (one.hold(), other.hold(), one.hold()) == (True, False, True)
    assert 0 < one.left_s <= 1
    assert other.left_s == 0
    end = time.monotonic() + 60
    while not other.hold():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not one.hold()
    assert one.left_s == 0


def test_a_lease_that_is_given_back_is_free(gallery_db: GalleryDatabase) -> None:
    one, other, third = (Lease(gallery_db, "x", holder, 600.0) for holder in ("1", "2", "3"))
    assert one.hold()
    other.release()  # it is not theirs
    assert not other.hold()
    one.release()
    assert other.hold()
    assert not third.hold()
    assert Lease(gallery_db, "another", "3", 600.0).hold()


def test_of_many_that_ask_at_once_one_gets_it(url: str, gallery_db: GalleryDatabase) -> None:
    with GalleryDatabase.open(url) as second, ThreadPoolExecutor(8) as threads:
        holders = [
            Lease(database, "x", str(number), 600.0)
            for number, database in enumerate([gallery_db, second] * 4)
        ]
        held = list(threads.map(Lease.hold, holders))
    assert sum(held) == 1
