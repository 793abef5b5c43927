"""One state of a gallery, as a query sees it from beginning to end while the gallery changes on.

A position below the size of the index is a row of its `Gallery`; from there on it is an addition.

Shapes: G positions (index and additions), A additions, B queries, N images at some positions, D
    feature size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raycd.gallery.recent import Recent
from raycd.gallery.static import KEPT_MASKS, Gallery
from raycd.gallery_db.records import Row
from raycd.index import Index
from raycd.index.blocks import Moments
from raycd.index.structure import Found, Mask, best


@dataclass(frozen=True)
class Additions:
    """Images that came after the index was built."""

    rows: list[Row]
    """In the order in which they came. The list is every view's: only the first A of it are this
    one's.
    """
    features: Recent
    """Normalised."""
    lengths_A: NDArray[np.float32]
    places: Mapping[str, int]
    """The last position of each id among the additions."""


@dataclass(frozen=True)
class Sums:
    """What mean and covariance are made of, of normalised features as seen from `origin_D`, so that
    little cancels.
    """

    count: int
    origin_D: NDArray[np.float64]
    sum_D: NDArray[np.float64]
    square_DD: NDArray[np.float64]

    @classmethod
    def of(cls, index: Index) -> Self:
        """Those of an index."""
        moments = index.moments()
        mean_D = moments.mean_D.astype(np.float64)
        return cls(
            index.size,
            mean_D,
            np.zeros_like(mean_D),
            index.size * moments.covariance_DD.astype(np.float64),
        )

    def changed(self, added_ND: NDArray[np.float32], gone_MD: NDArray[np.float32]) -> Self:
        """With normalised features more and less."""
        origin_D = self.origin_D.astype(
            np.float32
        )  # products of float32 take half the time; their sum is float64
        added_ND, gone_MD = added_ND - origin_D, gone_MD - origin_D
        return type(self)(
            self.count + len(added_ND) - len(gone_MD),
            self.origin_D,
            self.sum_D + added_ND.sum(axis=0) - gone_MD.sum(axis=0),
            self.square_DD + (added_ND.T @ added_ND - gone_MD.T @ gone_MD),
        )

    def moments(self) -> Moments:
        """Mean and covariance."""
        off_D = self.sum_D / max(self.count, 1)
        covariance_DD = self.square_DD / max(self.count, 1) - np.outer(off_D, off_D)
        return Moments((self.origin_D + off_D).astype(np.float32), covariance_DD.astype(np.float32))


@dataclass(frozen=True, eq=False)
class View:
    """What can be found at one version. It never changes; any thread may read it."""

    index: Index
    gallery: Gallery
    """Of the images in the index."""
    version: int
    live: Mask
    """(G,): the positions whose images have not gone."""
    additions: Additions
    sums: Sums

    @classmethod
    def of(cls, index: Index, gallery: Gallery, version: int = 0) -> Self:
        """An index and its gallery as they are."""
        none = Additions([], Recent.none(index), np.empty(0, np.float32), {})
        return cls(index, gallery, version, np.ones(len(gallery), np.bool_), none, Sums.of(index))

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        return int(self.live.sum())

    @property
    def size(self) -> int:
        """G, the positions."""
        return len(self.live)

    @cached_property
    def _index_live(self) -> Mask | None:
        """(I,): what of the index has not gone; None: all of it is there."""
        live = self.live[: len(self.gallery)]
        return None if live.all() else live

    def position(self, image_id: str) -> int | None:
        """Where the image is; None where it is not in the gallery."""
        place = self.additions.places.get(image_id)
        if place is None:
            place = self.gallery.position(image_id)
        return place if place is not None and self.live[place] else None

    def image_id(self, position: int) -> str:
        """The image at a position."""
        added = self._added(position)
        return self.gallery.image_id(position) if added is None else added.image_id

    def path(self, position: int) -> str | None:
        """Path, URI or location of the image's picture, where it has one. Not for answers."""
        added = self._added(position)
        return self.gallery.path(position) if added is None else added.path

    def category(self, position: int) -> str:
        """The first category of the image; empty where it has none."""
        added = self._added(position)
        return (
            self.gallery.category(position) if added is None else next(iter(added.categories), "")
        )

    def attributes(self, position: int) -> dict[str, str]:
        """The attributes of the image."""
        added = self._added(position)
        return self.gallery.attributes(position) if added is None else dict(added.attributes)

    def _added(self, position: int) -> Row | None:
        return (
            None
            if position < len(self.gallery)
            else self.additions.rows[position - len(self.gallery)]
        )

    def _living(self) -> Iterable[Row]:
        """The additions that have not gone."""
        places = np.flatnonzero(self.live[len(self.gallery) :])
        return (self.additions.rows[place] for place in places.tolist())

    def mask(
        self, categories: Sequence[str] = (), attributes: Mapping[str, Sequence[str]] | None = None
    ) -> Mask | None:
        """Images (G,) in one of the categories and with one of the values in each attribute; None:
        all there are.

        The same filter gives the same array.
        """
        wanted = {name: tuple(sorted(set(values))) for name, values in (attributes or {}).items()}
        if not categories and not wanted:
            return None
        return self._mask(tuple(sorted(set(categories))), tuple(sorted(wanted.items())))

    @cached_property
    def _mask(self) -> Callable[..., Mask]:
        return lru_cache(KEPT_MASKS)(self._made)

    def _made(
        self, categories: tuple[str, ...], attributes: tuple[tuple[str, tuple[str, ...]], ...]
    ) -> Mask:
        found = self.live.copy()
        base = len(self.gallery)
        indexed = self.gallery.mask(categories, dict(attributes))
        assert indexed is not None, "a filter"
        found[:base] &= indexed
        for place in (base + np.flatnonzero(found[base:])).tolist():
            row = self.additions.rows[place - base]
            found[place] = (
                not categories or not set(categories).isdisjoint(row.categories)
            ) and all(row.attributes.get(name) in values for name, values in attributes)
        found.flags.writeable = False  # it is kept
        return found

    @cached_property
    def category_counts(self) -> dict[str, int]:
        """Images of each category, most of them first."""
        counts = Counter(self.gallery.category_counts(self._index_live))
        counts.update(category for row in self._living() for category in row.categories)
        return _most_first(counts)

    @cached_property
    def attribute_counts(self) -> dict[str, dict[str, int]]:
        """Images of each value of each attribute, by name; the values most of them first."""
        counts = {
            name: Counter(values)
            for name, values in self.gallery.attribute_counts(self._index_live).items()
        }
        for row in self._living():
            for name, value in row.attributes.items():
                counts.setdefault(name, Counter())[value] += 1
        return {name: _most_first(values) for name, values in sorted(counts.items())}

    def search(
        self,
        query_BD: NDArray[np.float32],
        k: int,
        *,
        exact: bool = False,
        allowed: Mask | None = None,
    ) -> Found:
        """L2-normalised queries (B, D) -> cosines (B, k) and positions (B, k), best first, then by
        position.

        Args:
            k: Cut to the number of positions. Where fewer images are allowed, position -1 and score
                -inf stand at the end.
            exact: Compare with every image, whatever the index.
            allowed: A mask that `mask` made; None: all.
        """
        base = len(self.gallery)
        found = []
        if base:
            indexed = self._index_live if allowed is None else allowed[:base]
            found.append(self.index.search(query_BD, k, exact=exact, allowed=indexed))
        if self.size > base:
            live = (self.live if allowed is None else allowed)[base:]
            scores, positions = self.additions.features.search(query_BD, k, live, exact=exact)
            found.append((scores, np.where(positions < 0, -1, positions + base)))
        if not found:
            return np.empty((len(query_BD), 0), np.float32), np.empty((len(query_BD), 0), np.int64)
        return found[0] if len(found) == 1 else best(found, k)

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """L2-normalised features (N, D) of the images at positions (N,)."""
        if not len(self.additions.features):
            return self.index.vectors(positions)
        found = np.empty((len(positions), self.index.dim), np.float32)
        added = positions >= len(self.gallery)
        found[~added] = self.index.vectors(positions[~added])
        found[added] = self.additions.features.unit_AD[positions[added] - len(self.gallery)]
        return found

    def features(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features (N, D) of the images at positions (N,), of the length that they had; exact to
        float32's rounding.
        """
        added = positions >= len(self.gallery)
        lengths_N = np.empty(len(positions), np.float32)
        lengths_N[~added] = self.index.lengths(positions[~added])
        lengths_N[added] = self.additions.lengths_A[positions[added] - len(self.gallery)]
        return self.vectors(positions) * lengths_N[:, None]

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance of the normalised features."""
        return self.sums.moments()


def _most_first(counts: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in counts.most_common() if count}
