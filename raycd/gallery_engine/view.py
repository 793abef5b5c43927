"""A state of a gallery in a search engine, as queries see it.

The engine has no snapshots: a search may see changes that are later than the view's version, never
fewer.

Shapes: B queries, N images, D feature size, S sampled images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from raycd.errors import GalleryError
from raycd.gallery import conditions
from raycd.gallery.conditions import Wanted
from raycd.gallery.state import Image, Nearest, Page
from raycd.gallery_engine import expressions
from raycd.gallery_engine.collection import MOST, Collection, Marker
from raycd.index.blocks import Moments

KIND = "milvus"
SAMPLE = 4096  # images whose moments stand for those of all
_NONE = ""  # the expression that no image fulfils


@dataclass(frozen=True)
class GalleryFacts:
    """What is known of the whole gallery, as of some time ago."""

    category_counts: Mapping[str, int]
    attribute_counts: Mapping[str, Mapping[str, int]]
    moments: Moments

    @classmethod
    def none(cls, dim: int) -> Self:
        """Return what is known before anything was counted."""
        return cls({}, {}, Moments(np.zeros(dim, np.float32), np.zeros((dim, dim), np.float32)))


@dataclass(frozen=True, eq=False)
class EngineView:
    """A `gallery.state.State`. Its methods raise GalleryError where the engine does not answer."""

    collection: Collection
    marker: Marker
    size: int
    """Number of images, as of the marker."""
    facts: GalleryFacts
    pages: Callable[..., Page]
    """`raycd.gallery_db.listing.page` of the database: the engine has no order of versions."""
    kind: str = field(default=KIND, init=False)
    recall: None = field(default=None, init=False)
    has_exact: bool = field(default=False, init=False)

    @property
    def version(self) -> int:
        """The version of the marker."""
        return self.marker.version

    def __len__(self) -> int:
        return self.size

    def find(self, image_id: str) -> Image | None:
        """Return an image with its feature; None where it is not in the gallery."""
        found = self._query(expressions.keys([image_id]))
        return Hits(found, self.collection.dim).image(0) if found else None

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        """Return those of these images that are not in the gallery."""
        if not image_ids:
            return []
        there = {one["key"] for one in self._query(expressions.keys(image_ids), ["key"])}
        return [one for one in image_ids if expressions.key(one) not in there]

    def allowed(
        self,
        categories: Sequence[str] = (),
        attributes: Wanted | None = None,
        among: Sequence[str] = (),
    ) -> str | None:
        """Return an expression of what a search may find, as `State.allowed`."""
        if not (categories or attributes or among):
            return None
        wanted = conditions.of(attributes or {})
        return expressions.expression(sorted(set(categories)), wanted, among) or _NONE

    def count(self, allowed: str | None = None, *, without: AbstractSet[str] = frozenset()) -> int:
        """Count the images that a search may find, without some of them."""
        if allowed == _NONE:
            return 0
        if allowed is None and not without:
            return self.size
        expression = expressions.ALL if allowed is None else allowed
        if without:
            expression = f"{expression} and not ({expressions.keys(sorted(without))})"
        return self._count(expression)

    @cached_property
    def _count(self) -> Callable[[str], int]:
        def counted(expression: str) -> int:
            self.check()
            return self.collection.count(expression, written=self.marker.written)

        return lru_cache(64)(counted)

    def check(self) -> None:
        """Raise GalleryError unless the collection is whole and the engine answers."""
        if self.collection.failed is not None:
            raise GalleryError(self.collection.failed, "engine")
        if not self.marker.whole:
            raise _filling(self.marker)

    def _check_marker(self) -> None:
        """Raise GalleryError unless the collection is whole now."""
        now = self.collection.marker()
        if now is None or not now.whole:
            raise _filling(now or self.marker)

    def nearest(
        self,
        query_BD: NDArray[np.float32],
        k: int,
        *,
        exact: bool = False,
        allowed: str | None = None,
    ) -> Nearest:
        """Search for L2-normalised queries (B, D); the engine's index decides how exact it is.

        Scores are computed from what it has found, whatever its index keeps of the features.
        """
        if allowed == _NONE or k < 1:
            none = np.empty((len(query_BD), 0))
            return Nearest(
                none.astype(np.float32), none.astype(np.int64), Hits([], self.collection.dim)
            )
        self.check()
        hits = self.collection.search(query_BD, k, allowed, written=self.marker.written)
        expected = min(k, self.size) if allowed is None else 1
        if min(map(len, hits)) < expected:  # has it been made anew since our marker?
            self._check_marker()
            hits = self.collection.search(query_BD, k, allowed, written=self.marker.written)
        found = Hits([one for some in hits for one in some], self.collection.dim)
        width = min(k, max(map(len, hits)))
        scores = np.full((len(hits), width), -np.inf, np.float32)
        positions = np.full((len(hits), width), -1, np.int64)
        for row, some in enumerate(hits):
            if not some:
                continue
            position_N = np.array([found.at[one["key"]] for one in some])
            version_N = found.version_N[position_N]
            score_N = found.unit_ND[position_N] @ query_BD[row]
            order = np.lexsort((version_N, -score_N))[:width]
            scores[row, : len(order)] = score_N[order]
            positions[row, : len(order)] = position_N[order]
        return Nearest(scores, positions, found)

    def page(
        self,
        categories: Sequence[str],
        attributes: Wanted,
        *,
        offset: int,
        limit: int,
        newest: bool,
    ) -> Page:
        """Return images by their versions, from the database."""
        return self.pages(categories, attributes, offset=offset, limit=limit, newest=newest)

    @property
    def category_counts(self) -> Mapping[str, int]:
        """The number of images of each category, as of the last count."""
        return self.facts.category_counts

    @property
    def attribute_counts(self) -> Mapping[str, Mapping[str, int]]:
        """The number of images of the most frequent values of each attribute, likewise."""
        return self.facts.attribute_counts

    @property
    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """The smallest and the largest number among those values of each attribute."""
        return conditions.ranges(self.attribute_counts)

    def has_category(self, name: str) -> bool:
        """Return whether an image is in a category."""
        return name in self.category_counts or self._has(expressions.category_tag(name))

    def has_attribute(self, name: str, value: str | None = None) -> bool:
        """Return whether an image has an attribute, or this value of it."""
        known = self.attribute_counts.get(name)
        if known is not None and (value is None or value in known):
            return True
        return self._has(expressions.attribute_tag(name, value))

    def has_number(self, name: str) -> bool:
        """Return whether an image has a number as an attribute."""
        return self._has(expressions.number_tag(name))

    def _has(self, tag: str) -> bool:
        # No name is called unknown because nobody can be asked: pages come without the engine
        try:
            return bool(self._query(expressions.having(tag), ["key"], limit=1))
        except GalleryError:
            return True

    @property
    def moments(self) -> Moments:
        """Mean and covariance of the normalised features of a sample."""
        return self.facts.moments

    def sampled_moments(self) -> Moments:
        """Return mean and covariance of SAMPLE images, of all where there are not more.

        Keys are hashes: those below a bound are a random sample.
        """
        share, expression = SAMPLE / max(1, self.size), expressions.ALL
        if share < 1:
            expression += f' and key < "{int(share * 2**32):08x}"'
        found = self._query(expression, ["feature"], limit=MOST)
        if not found:
            return GalleryFacts.none(self.collection.dim).moments
        unit_SD = np.array([one["feature"] for one in found], np.float32)
        covariance_DD = np.cov(unit_SD.T, bias=True).astype(np.float32)
        return Moments(unit_SD.mean(axis=0), covariance_DD.reshape([self.collection.dim] * 2))

    def _query(
        self, expression: str, fields: Sequence[str] = (), limit: int | None = None
    ) -> list[dict[str, Any]]:
        self.check()
        return self.collection.query(expression, fields, written=self.marker.written, limit=limit)


def _filling(marker: Marker) -> GalleryError:
    return GalleryError(
        "the gallery's search engine is being filled from the database",
        "filling",
        got=f"version {marker.version:,} of {marker.until:,}",
    )


class Hits:
    """The images that a search has found, each once: `gallery.state.Images`.

    Args:
        entities: As `Collection.search` returns them.
        dim: Size of a feature, D.
    """

    def __init__(self, entities: Sequence[dict[str, Any]], dim: int) -> None:
        self.at: dict[str, int] = {}
        for one in entities:
            self.at.setdefault(one["key"], len(self.at))
        first = {one["key"]: one for one in reversed(entities)}
        self._entities = [first[key] for key in self.at]
        self.version_N = np.array([one["version"] for one in self._entities], np.int64)
        self.unit_ND = np.empty((len(self._entities), dim), np.float32)
        for row, one in enumerate(self._entities):
            self.unit_ND[row] = one["feature"]

    def image(self, position: int) -> Image:
        """Return an image with its feature."""
        length = np.float32(self._entities[position]["length"])
        return Image(
            self.image_id(position),
            self.category(position),
            self.attributes(position),
            self._shown(position)["path"],
            self.unit_ND[position] * length,
        )

    def position(self, image_id: str) -> int | None:
        """Return the position of an image; None where it is none of them."""
        return self.at.get(expressions.key(image_id))

    def image_id(self, position: int) -> str:
        """Return the image at a position."""
        return str(self._entities[position]["image_id"])

    def category(self, position: int) -> str:
        """Return the first category of the image; empty where it has none."""
        return str(self._shown(position)["category"])

    def attributes(self, position: int) -> dict[str, str]:
        """Return the attributes of the image."""
        return dict(self._shown(position)["attributes"])

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return L2-normalised features (N, D) of the images at positions (N,)."""
        return self.unit_ND[positions]

    def _shown(self, position: int) -> dict[str, Any]:
        value = self._entities[position]["shown"]
        found: dict[str, Any] = value if isinstance(value, dict) else json.loads(value)
        return found
