"""A live gallery: what was indexed, what was added since, and what of both was removed.

    live = Live(index, Gallery(table), version=7)
    live.apply(gallery_db.changes(7, fingerprint))
    live.view.search(queries, 10)

The index never changes. Images that were added later are kept beside it (`gallery.recent`). When
they, or the removed ones, have become many, a new index of `contents` replaces both.

Shapes: G images, D feature size, N added images, C capacity of an array.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycd.errors import GalleryError
from raycd.gallery.added import AddedRows
from raycd.gallery.recent import Recent
from raycd.gallery.records import Changes, Row
from raycd.gallery.static import SCHEMA, Gallery
from raycd.gallery.view import Additions, Sums, View
from raycd.index import Index

# A rebuild pays from this many additions, or removed images, or this share of the index.
REBUILD_FROM, REBUILD_SHARE = 4096, 0.25
# Where the memory of the index has a bound, additions take at most this share of it more
ADDED_SHARE = 0.25
_BLOCK = 4096  # images
_CAPACITY = 1 << 16  # images at first: memory that is not written to yet costs nothing


class Live:
    """A gallery that follows changes. One thread applies them; any thread reads `view`.

    Args:
        flat_up_to: Most images that a search compares one by one.
        memory_mib: Of the index, in MiB, as `index.memory_mib`; 0: no bound.

    Attributes:
        view: The newest state; it never changes itself.
        seen: Version up to which changes were applied. The view's is behind it while an image that
            changed up to there has changed again, in what is still to be applied.
        without: Ids of images that the view lacks, because they have no feature of its encoder.
    """

    def __init__(
        self,
        index: Index,
        gallery: Gallery,
        version: int,
        *,
        flat_up_to: int,
        memory_mib: int = 0,
    ) -> None:
        self._flat_up_to, self._memory_mib = flat_up_to, memory_mib
        self._features = _Rows(index.dim)
        self.without: set[str] = set()
        self.seen = version
        self.view = View(
            index,
            gallery,
            version=version,
            live=np.ones(len(gallery), np.bool_),
            additions=Additions(AddedRows(), Recent.none(index), self._features.lengths(0), {}),
            sums=Sums.of(index),
        )

    @property
    def recent(self) -> Recent:
        """The images that were added after the index was built."""
        return self.view.additions.features

    @property
    def needs_rebuild(self) -> bool:
        """Return whether so much has changed that a new index pays."""
        removed = self.view.size - len(self.view)
        many = max(REBUILD_FROM, int(REBUILD_SHARE * len(self.view.gallery)))
        if self._memory_mib:
            room = ADDED_SHARE * self._memory_mib * 2**20 / (4 * self.view.index.dim)
            many = min(many, max(REBUILD_FROM, int(room)))
        # Those that need a merge will be in lists soon, and not be compared one by one.
        compared = 0 if self.recent.needs_merge else self.recent.unindexed
        return len(self.recent) > many or removed > many or compared > self._flat_up_to

    def apply(self, changes: Changes) -> None:
        """Update the view by changes that follow `seen`, to their version where nothing is missing.

        Raises:
            GalleryError: A feature has another size than the index.
        """
        old = self.view
        positions = dict(old.additions.positions)
        gone = [
            position for row in changes.rows if (position := old.position(row.image_id)) is not None
        ]
        new = [row for row in changes.rows if row.feature is not None]
        unit_ND = self._append(new)
        live = np.concatenate([old.live, np.ones(len(new), np.bool_)])
        live[gone] = False
        for position, row in enumerate(new, start=old.size):
            positions[row.image_id] = position
        self._note_without(changes)
        # As many last changes as versions: none of these images has changed again later
        whole = old.version == self.seen and len(changes.rows) == changes.version - self.seen
        self.seen = changes.version
        rows, known = old.additions.rows, old.additions.features
        # The list is shared: older views do not look beyond their own size
        rows += [dataclasses.replace(row, feature=None) for row in new]
        count = old.size - len(old.gallery) + len(new)
        self.view = dataclasses.replace(
            old,
            version=old.version if changes.more and not whole else changes.version,
            live=live,
            additions=Additions(
                rows,
                known.grown(self._features.unit(count)),
                self._features.lengths(count),
                positions,
            ),
            sums=old.sums.changed(unit_ND, old.vectors(np.array(gone, np.int64))),
        )

    def take_lists(self, earlier: Recent) -> None:
        """Use the lists that another thread has made of an earlier state of `recent`."""
        features = self.recent.with_lists_of(earlier)
        additions = dataclasses.replace(self.view.additions, features=features)
        self.view = dataclasses.replace(self.view, additions=additions)

    def _append(self, new: list[Row]) -> NDArray[np.float32]:
        """Keep the features of new rows; return them normalised (N, D)."""
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
        least = np.finfo(np.float32).tiny
        unit_ND: NDArray[np.float32] = features_ND / np.maximum(lengths_N, least)[:, None]
        self._features.append(unit_ND, lengths_N)
        return unit_ND

    def _note_without(self, changes: Changes) -> None:
        for row in changes.rows:
            if row.deleted or row.feature is not None:
                self.without.discard(row.image_id)
            else:
                self.without.add(row.image_id)


class _Rows:
    """Arrays of features that grow; slices of them stay valid."""

    def __init__(self, dim: int) -> None:
        self._unit_CD, self._lengths_C = np.empty((0, dim), np.float32), np.empty(0, np.float32)
        self._count = 0

    def append(self, unit_ND: NDArray[np.float32], lengths_N: NDArray[np.float32]) -> None:
        """Keep normalised features (N, D) and their lengths (N,)."""
        start, end = self._count, self._count + len(unit_ND)
        if end > len(self._lengths_C):
            capacity = max(_CAPACITY, 2 * end)
            unit_CD = np.empty((capacity, unit_ND.shape[1]), np.float32)
            lengths_C = np.empty(capacity, np.float32)
            unit_CD[:start], lengths_C[:start] = self._unit_CD[:start], self._lengths_C[:start]
            self._unit_CD, self._lengths_C = unit_CD, lengths_C
        self._unit_CD[start:end], self._lengths_C[start:end] = unit_ND, lengths_N
        self._count = end

    def unit(self, count: int) -> NDArray[np.float32]:
        """Return the first normalised features (count, D)."""
        return self._unit_CD[:count]

    def lengths(self, count: int) -> NDArray[np.float32]:
        """Return the first lengths (count,)."""
        return self._lengths_C[:count]


class Kept:
    """The features (G, D) of a view's live images, in parts: a `blocks.Features`."""

    def __init__(self, view: View) -> None:
        self._view, self._position_G = view, np.flatnonzero(view.live)
        self.shape = len(self._position_G), view.index.dim

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        position_N = self._position_G[rows]
        found_ND = np.empty((len(position_N), self.shape[1]), np.float32)
        # In blocks: numpy holds Python's lock while it gathers rows, and the service answers
        # meanwhile.
        for start in range(0, len(position_N), _BLOCK):
            some = slice(start, start + _BLOCK)
            found_ND[some] = self._view.features(position_N[some])
        return found_ND


def contents(view: View) -> tuple[pa.Table, Kept]:
    """Return what a new index is made of: a table of `static.SCHEMA`, and its features (G, D)."""
    positions = np.flatnonzero(view.live)
    base = len(view.gallery)
    added = [view.additions.rows[row] for row in (positions[positions >= base] - base).tolist()]
    columns = {
        "image_id": [row.image_id for row in added],
        "categories": [list(row.categories) for row in added],
        "path": [row.path for row in added],
        "attributes": [list(row.attributes.items()) for row in added],
    }
    kept = view.gallery.table.filter(pa.array(view.live[:base])).select(SCHEMA.names).cast(SCHEMA)
    return pa.concat_tables([kept, pa.table(columns, schema=SCHEMA)]), Kept(view)
