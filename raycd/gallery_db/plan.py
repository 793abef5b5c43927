"""What a list of changes comes to: which rows are written, and what each change is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raycd.gallery_db.records import Change, Done, Put


@dataclass(frozen=True)
class Planned:
    """The rows after all changes, by what is done to them."""

    version: int
    """The gallery database's after them."""
    done: list[Done]
    """Of each change."""
    put: list[tuple[Put, int]]
    """Images that are there afterwards, and their versions."""
    deleted: dict[str, int]
    """Ids of images that have gone, and the versions at which they went."""
    replaced: set[str]
    """Ids of images that were there before, whose features go."""


def changes(wanted: Sequence[Change], version: int, known: Mapping[str, str | None]) -> Planned:
    """`known` are those of the images that are there, with the paths of their pictures; `version`
    is the last one.
    """
    now, done = dict(known), []
    put: dict[str, tuple[Put, int]] = {}
    deleted: dict[str, int] = {}
    for change in wanted:
        image_id = change.image_id
        existed = image_id in now
        if isinstance(change, Put) or existed:
            version += 1
        done.append(Done(version, existed, now.get(image_id)))
        if isinstance(change, Put):
            now[image_id] = change.path
            put[image_id] = (change, version)
            deleted.pop(image_id, None)
        elif existed:
            del now[image_id]
            put.pop(image_id, None)
            deleted[image_id] = version
    return Planned(version, done, list(put.values()), deleted, set(known))
