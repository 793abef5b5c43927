"""A view: one state of a gallery, which a query sees from begin to end while the gallery changes.

A position below the size of the index is a row of its `Gallery`; from there on it is an addition.

Shapes: G positions (index and additions), A additions, B queries, D feature size,
    N images at some positions, added ones or removed ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raycd.gallery import conditions
from raycd.gallery.added import AddedRows
from raycd.gallery.conditions import Conditions, Wanted
from raycd.gallery.recent import Recent
from raycd.gallery.records import Row
from raycd.gallery.state import Image, Nearest, Page
from raycd.gallery.static import Gallery, MaskOf, kept
from raycd.index import Index
from raycd.index.blocks import Moments
from raycd.index.structure import Found, Mask, best


@dataclass(frozen=True)
class Additions:
    """Images that were added after the index was built."""

    rows: AddedRows
    """All views share the list: only the first A belong to this one."""
    features: Recent
    """Normalised."""
    lengths_A: NDArray[np.float32]
    positions: Mapping[str, int]
    """Id -> its last position."""


@dataclass(frozen=True)
class Sums:
    """Sums for the mean and covariance of normalised features, relative to `origin_D`.

    The origin is the mean of the index: sums around it lose few digits to cancellation.
    """

    count: int
    origin_D: NDArray[np.float64]
    sum_D: NDArray[np.float64]
    square_DD: NDArray[np.float64]

    @classmethod
    def of(cls, index: Index) -> Self:
        """Return the sums of an index."""
        moments = index.moments()
        mean_D = moments.mean_D.astype(np.float64)
        square_DD = index.size * moments.covariance_DD.astype(np.float64)
        return cls(index.size, mean_D, np.zeros_like(mean_D), square_DD)

    def changed(self, added_ND: NDArray[np.float32], removed_ND: NDArray[np.float32]) -> Self:
        """Return the sums after normalised features were added and removed."""
        # Products of float32 take half the time; the sums that they are added to are float64.
        origin_D = self.origin_D.astype(np.float32)
        added_ND, removed_ND = added_ND - origin_D, removed_ND - origin_D
        return type(self)(
            self.count + len(added_ND) - len(removed_ND),
            self.origin_D,
            self.sum_D + added_ND.sum(axis=0) - removed_ND.sum(axis=0),
            self.square_DD + (added_ND.T @ added_ND - removed_ND.T @ removed_ND),
        )

    def moments(self) -> Moments:
        """Return mean and covariance."""
        off_D = self.sum_D / max(self.count, 1)
        covariance_DD = self.square_DD / max(self.count, 1) - np.outer(off_D, off_D)
        return Moments((self.origin_D + off_D).astype(np.float32), covariance_DD.astype(np.float32))


@dataclass(frozen=True, eq=False)
class View:
    """What can be found at one version; immutable, for any thread."""

    index: Index
    gallery: Gallery
    """The images of the index."""
    version: int
    live: Mask
    """(G,): the positions whose images were not removed."""
    additions: Additions
    sums: Sums

    @classmethod
    def of(cls, index: Index, gallery: Gallery, version: int = 0) -> Self:
        """Return the view of an index and its gallery, without changes."""
        none = Additions(AddedRows(), Recent.none(index), np.empty(0, np.float32), {})
        return cls(index, gallery, version, np.ones(len(gallery), np.bool_), none, Sums.of(index))

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        return int(self.live.sum())

    @property
    def size(self) -> int:
        """The number of positions, G."""
        return len(self.live)

    @property
    def kind(self) -> str:
        """The kind of the index."""
        return self.index.kind

    @property
    def has_exact(self) -> bool:
        """Every kind of index has exact searches."""
        return True

    @property
    def recall(self) -> float:
        """The measured recall of the index."""
        return self.index.recall

    @cached_property
    def _index_live(self) -> Mask | None:
        """The live positions of the index, as a mask; None: all of them."""
        live = self.live[: len(self.gallery)]
        return None if live.all() else live

    def position(self, image_id: str) -> int | None:
        """Return the position of an image; None where it is not in the gallery."""
        position = self.additions.positions.get(image_id)
        if position is None:
            position = self.gallery.position(image_id)
        return position if position is not None and self.live[position] else None

    def find(self, image_id: str) -> Image | None:
        """Return an image with its feature; None where it is not in the gallery."""
        position = self.position(image_id)
        if position is None:
            return None
        return self._image(position, self.features(np.array([position]))[0])

    def _image(self, position: int, feature_D: NDArray[np.float32] | None = None) -> Image:
        return Image(
            self.image_id(position),
            self.category(position),
            self.attributes(position),
            self.path(position),
            feature_D,
        )

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        """Return those of these images that are not in the gallery."""
        return [one for one in image_ids if self.position(one) is None]

    def image_id(self, position: int) -> str:
        """Return the image at a position."""
        added = self._added(position)
        return self.gallery.image_id(position) if added is None else added.image_id

    def path(self, position: int) -> str | None:
        """Return path, URI or location of the image's picture, which no answer may contain."""
        added = self._added(position)
        return self.gallery.path(position) if added is None else added.path

    def category(self, position: int) -> str:
        """Return the first category of the image; empty where it has none."""
        added = self._added(position)
        if added is None:
            return self.gallery.category(position)
        return next(iter(added.categories), "")

    def attributes(self, position: int) -> dict[str, str]:
        """Return the attributes of the image."""
        added = self._added(position)
        return self.gallery.attributes(position) if added is None else dict(added.attributes)

    def _added(self, position: int) -> Row | None:
        row = position - len(self.gallery)
        return self.additions.rows[row] if row >= 0 else None

    def _live_additions(self) -> Iterable[Row]:
        rows = np.flatnonzero(self.live[len(self.gallery) :])
        return (self.additions.rows[row] for row in rows.tolist())

    def allowed(
        self,
        categories: Sequence[str] = (),
        attributes: Wanted | None = None,
        among: Sequence[str] = (),
    ) -> Mask | None:
        """Return a mask (G,) of what a search may find, as `State.allowed`."""
        mask = self.mask(categories, attributes)
        return self.only(among, mask) if among else mask

    def count(self, allowed: Mask | None = None, *, without: AbstractSet[str] = frozenset()) -> int:
        """Count the images of a mask, without some of them."""
        count = len(self) if allowed is None else int(allowed.sum())
        positions = {self.position(image_id) for image_id in without} - {None}
        return count - sum(allowed is None or bool(allowed[one]) for one in positions)

    def page(
        self,
        categories: Sequence[str],
        attributes: Wanted,
        *,
        offset: int,
        limit: int,
        newest: bool,
    ) -> Page:
        """Return images by their versions, the newest first or last, without features."""
        mask = self.mask(categories, attributes)
        positions = np.flatnonzero(self.live if mask is None else mask)
        shown = (positions[::-1] if newest else positions)[offset : offset + limit]
        return Page([self._image(position) for position in shown.tolist()], len(positions))

    def mask(self, categories: Sequence[str] = (), attributes: Wanted | None = None) -> Mask | None:
        """Return a mask (G,) of images in one of the categories, with the wanted attributes.

        None stands for all images. The same filter gives the same array.
        """
        if not categories and not attributes:
            return None
        return self._mask(tuple(sorted(set(categories))), conditions.of(attributes or {}))

    def only(self, image_ids: Iterable[str], allowed: Mask | None = None) -> Mask:
        """Return a mask (G,) of those of these images that there are, and that `allowed` has."""
        found = np.zeros(self.size, np.bool_)
        positions = [at for one in image_ids if (at := self.position(one)) is not None]
        found[positions] = True if allowed is None else allowed[positions]
        return found

    @cached_property
    def _mask(self) -> MaskOf:
        return kept(self._make_mask)

    def _make_mask(self, categories: tuple[str, ...], wanted: Conditions) -> Mask:
        found = self.live.copy()
        base = len(self.gallery)
        indexed = self.gallery.mask(categories, dict(wanted))
        assert indexed is not None, "a filter"
        found[:base] &= indexed
        found[base:] &= self.additions.rows.mask(categories, wanted, self.size - base)
        found.flags.writeable = False  # it is cached
        return found

    @cached_property
    def category_counts(self) -> dict[str, int]:
        """The number of images of each category, the largest first."""
        counts = Counter(self.gallery.category_counts(self._index_live))
        counts.update(category for row in self._live_additions() for category in row.categories)
        return _most_first(counts)

    @cached_property
    def attribute_counts(self) -> dict[str, dict[str, int]]:
        """The number of images of each value of each attribute, the largest first."""
        counts = {
            name: Counter(values)
            for name, values in self.gallery.attribute_counts(self._index_live).items()
        }
        for row in self._live_additions():
            for name, value in row.attributes.items():
                counts.setdefault(name, Counter())[value] += 1
        return {name: _most_first(values) for name, values in sorted(counts.items())}

    @cached_property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The smallest and the largest number of each attribute that has numbers."""
        return conditions.ranges(self.attribute_counts)

    def has_category(self, name: str) -> bool:
        """Return whether an image is in a category."""
        return self._known(None, name)

    def has_attribute(self, name: str, value: str | None = None) -> bool:
        """Return whether an image has an attribute, or this value of it."""
        return self._known(name, value)

    @cached_property
    def _known(self) -> Callable[[str | None, str | None], bool]:
        return lru_cache(1024)(self._find)  # the same filters come again and again

    def _find(self, name: str | None, value: str | None) -> bool:
        """Tell whether an image has this attribute, or without a name this category."""
        if name is None:
            return self.gallery.has_category(value, self._index_live) or self._added_one(
                ("category", value), lambda row: value in row.categories
            )
        return self.gallery.has_attribute(name, value, self._index_live) or self._added_one(
            ("attribute", name, value),
            lambda row: name in row.attributes and value in (None, row.attributes[name]),
        )

    def _added_one(self, question: Hashable, fits: Callable[[Row], bool]) -> bool:
        """Tell whether an added image fits; `question` names what is asked."""
        base = len(self.gallery)
        fit_A = self.additions.rows.where(question, fits, self.size - base)
        return bool((fit_A & self.live[base:]).any())

    def has_number(self, name: str) -> bool:
        """Return whether an image has a number as an attribute, or had one when it was indexed."""
        return name in self.gallery.numeric or self._added_one(
            ("number", name), lambda row: conditions.is_number(row.attributes.get(name, ""))
        )

    def search(
        self,
        query_BD: NDArray[np.float32],
        k: int,
        *,
        exact: bool = False,
        allowed: Mask | None = None,
    ) -> Found:
        """Search for L2-normalised queries (B, D).

        Args:
            k: Results of each query; at most the number of positions.
            exact: Compare with every image, whatever the index.
            allowed: A mask that `mask` made; None: all.

        Returns:
            Cosines (B, k) and positions (B, k), best first, then by position. Where fewer images
            are allowed, the rest has score -inf and position -1.
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

    def nearest(
        self,
        query_BD: NDArray[np.float32],
        k: int,
        *,
        exact: bool = False,
        allowed: Mask | None = None,
    ) -> Nearest:
        """Search as `search` does; the positions are those of the view."""
        return Nearest(*self.search(query_BD, k, exact=exact, allowed=allowed), self)

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return L2-normalised features (N, D) of the images at positions (N,)."""
        if not len(self.additions.features):
            return self.index.vectors(positions)
        found = np.empty((len(positions), self.index.dim), np.float32)
        added = positions >= len(self.gallery)
        found[~added] = self.index.vectors(positions[~added])
        found[added] = self.additions.features.unit_AD[positions[added] - len(self.gallery)]
        return found

    def features(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return features (N, D) of the images at positions (N,), in their original length."""
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
