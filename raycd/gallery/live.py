"""A gallery that changes while it is searched: what was indexed, what came since, and what of both
has gone.

    live = Live(index, Gallery(table), version=7)
    live.apply(gallery_db.changes(7, fingerprint))
    live.view.search(queries, 10)

The index never changes. Images that came later are kept beside it (`index.recent`); when they, or
the gone ones, have become many, a new index of all that `contents` gives takes the place of both.

Shapes: D feature size, N new images, M images that have gone.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycd.errors import GalleryError
from raycd.gallery.recent import Recent
from raycd.gallery.static import SCHEMA, Gallery
from raycd.gallery.view import Additions, Sums, View
from raycd.gallery_db.records import Changes, Row
from raycd.index import Index

FEW, SHARE = (
    4096,
    0.25,
)  # additions, or gone images, that never ask for a new index; the share of it from which they do
_BLOCK = 4096  # images
_ROOM = (
    1 << 16
)  # images that there is room for at first: memory that is not written to yet costs nothing


class Live:
    """A gallery that follows changes. One thread applies them; any thread reads `view`, a state
    that stays as it is.

    Attributes:
        view: The newest state.
        without: Ids of images that are there, but not in the view, because they have no feature of
            its encoder.
    """

    def __init__(self, index: Index, gallery: Gallery, version: int, *, flat_up_to: int) -> None:
        self._flat_up_to = flat_up_to
        self._features = _Rows(index.dim)
        self.without: set[str] = set()
        self.view = View(
            index,
            gallery,
            version=version,
            live=np.ones(len(gallery), np.bool_),
            additions=Additions([], Recent.none(index), self._features.lengths(0), {}),
            sums=Sums.of(index),
        )

    @property
    def recent(self) -> Recent:
        """What came after the index was built."""
        return self.view.additions.features

    @property
    def worn(self) -> bool:
        """Whether so much has changed that a new index pays."""
        gone = self.view.size - len(self.view)
        many = max(FEW, int(SHARE * len(self.view.gallery)))
        compared = (
            0 if self.recent.crowded else self.recent.waiting
        )  # the crowded ones will be in lists soon
        return len(self.recent) > many or gone > many or compared > self._flat_up_to

    def apply(self, changes: Changes) -> None:
        """Bring the view to the version of the changes. Raises GalleryError for features of
        another size.
        """
        old = self.view
        places = dict(old.additions.places)
        gone = [place for row in changes.rows if (place := old.position(row.image_id)) is not None]
        new = [row for row in changes.rows if row.feature is not None]
        unit_ND = self._append(new)
        live = np.concatenate([old.live, np.ones(len(new), np.bool_)])
        live[gone] = False
        for place, row in enumerate(new, start=old.size):
            places[row.image_id] = place
        self._note_without(changes)
        rows, known = old.additions.rows, old.additions.features
        rows += new  # older views do not look beyond their own size
        count = old.size - len(old.gallery) + len(new)
        self.view = dataclasses.replace(
            old,
            version=changes.version,
            live=live,
            additions=Additions(
                rows, known.grown(self._features.unit(count)), self._features.lengths(count), places
            ),
            sums=old.sums.changed(unit_ND, old.vectors(np.array(gone, np.int64))),
        )

    def take_lists(self, earlier: Recent) -> None:
        """Take over the lists into which another thread has put what `recent` was at some time."""
        additions = dataclasses.replace(
            self.view.additions, features=self.recent.with_lists_of(earlier)
        )
        self.view = dataclasses.replace(self.view, additions=additions)

    def _append(self, new: list[Row]) -> NDArray[np.float32]:
        """The normalised features (N, D) of new rows, which are kept."""
        features = [row.feature for row in new if row.feature is not None]
        dim = self.view.index.dim
        if wrong := {len(feature_D) for feature_D in features} - {dim}:
            raise GalleryError(
                "the gallery database has features of another size",
                "mismatch",
                got=wrong,
                expected=dim,
            )
        features_ND = np.array(features, np.float32).reshape(len(features), dim)
        lengths_N = np.linalg.norm(features_ND, axis=1)
        unit_ND: NDArray[np.float32] = features_ND / np.maximum(lengths_N, 1e-12)[:, None]
        self._features.append(unit_ND, lengths_N)
        return unit_ND

    def _note_without(self, changes: Changes) -> None:
        for row in changes.rows:
            if row.deleted or row.feature is not None:
                self.without.discard(row.image_id)
            else:
                self.without.add(row.image_id)


class _Rows:
    """Features that only grow: what was given out stays where it is."""

    def __init__(self, dim: int) -> None:
        self._unit_CD, self._lengths_C = np.empty((0, dim), np.float32), np.empty(0, np.float32)
        self._count = 0

    def append(self, unit_ND: NDArray[np.float32], lengths_N: NDArray[np.float32]) -> None:
        """Keep normalised features (N, D) and their lengths (N,)."""
        start, end = self._count, self._count + len(unit_ND)
        if end > len(self._lengths_C):
            room = max(_ROOM, 2 * end)
            unit_CD, lengths_C = (
                np.empty((room, unit_ND.shape[1]), np.float32),
                np.empty(room, np.float32),
            )
            unit_CD[:start], lengths_C[:start] = self._unit_CD[:start], self._lengths_C[:start]
            self._unit_CD, self._lengths_C = unit_CD, lengths_C
        self._unit_CD[start:end], self._lengths_C[start:end] = unit_ND, lengths_N
        self._count = end

    def unit(self, count: int) -> NDArray[np.float32]:
        """The first ones (count, D)."""
        return self._unit_CD[:count]

    def lengths(self, count: int) -> NDArray[np.float32]:
        """Their lengths (count,)."""
        return self._lengths_C[:count]


def contents(view: View) -> tuple[pa.Table, NDArray[np.float32]]:
    """The images of a view as a table of `gallery.SCHEMA`, and their features (G, D): what a new
    index is made of.
    """
    places = np.flatnonzero(view.live)
    base = len(view.gallery)
    added = [view.additions.rows[place - base] for place in places[places >= base].tolist()]
    columns = {
        "image_id": [row.image_id for row in added],
        "categories": [list(row.categories) for row in added],
        "path": [row.path for row in added],
        "attributes": [list(row.attributes.items()) for row in added],
    }
    kept = view.gallery.table.filter(pa.array(view.live[:base])).select(SCHEMA.names).cast(SCHEMA)
    features_GD = np.empty((len(places), view.index.dim), np.float32)
    for start in range(0, len(places), _BLOCK):  # numpy holds Python's lock while it gathers rows
        features_GD[start : start + _BLOCK] = view.features(places[start : start + _BLOCK])
    return pa.concat_tables([kept, pa.table(columns, schema=SCHEMA)]), features_GD
