"""The interface between a search and the gallery: what every kind of gallery answers.

`view.View` searches by FAISS in this process; `raycd.gallery_engine` asks a search engine. The
suite tests/gallery_engine/test_state.py holds both to the same answers.

Shapes: B queries, k results, N images at some positions, D feature size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from raycd.gallery.conditions import Wanted
from raycd.index.blocks import Moments

Allowed = Any
"""The images that a search may find: what `State.allowed` made, for that kind of state alone."""


@dataclass(frozen=True)
class Image:
    """What is known of an image of the gallery."""

    image_id: str
    category: str
    """The first one; empty where it has none."""
    attributes: Mapping[str, str]
    path: str | None
    """Path, URI or location of its picture, which no answer may contain."""
    feature_D: NDArray[np.float32] | None = None
    """In its original length; None where it was not asked for."""


class Images(Protocol):
    """Images that a search has found, by the positions that it gave them."""

    def position(self, image_id: str) -> int | None:
        """Return the position of an image; None where it is none of them."""

    def image_id(self, position: int) -> str:
        """Return the image at a position."""

    def category(self, position: int) -> str:
        """Return the first category of the image; empty where it has none."""

    def attributes(self, position: int) -> dict[str, str]:
        """Return the attributes of the image."""

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return L2-normalised features (N, D) of the images at positions (N,)."""


class Nearest(NamedTuple):
    """What a search has found."""

    scores: NDArray[np.float32]
    """Cosines (B, k), best first, images of one score by their versions; -inf: no more images."""
    positions: NDArray[np.int64]
    """(B, k), among `images`; -1 where there are no more."""
    images: Images


class Page(NamedTuple):
    """Some images in the gallery's order, and how many there are in all."""

    images: list[Image]
    total: int


class State(Protocol):
    """A state of a gallery, which queries see. Any thread may use it."""

    @property
    def version(self) -> int:
        """The gallery's version: no change up to it is missing."""

    @property
    def kind(self) -> str:
        """The kind of index, or the search engine."""

    @property
    def recall(self) -> float | None:
        """Share of the exact first 10 that a search finds; None where nobody has measured it."""

    @property
    def has_exact(self) -> bool:
        """Whether a search can compare with every image, whatever the index."""

    def __len__(self) -> int: ...

    def find(self, image_id: str) -> Image | None:
        """Return an image with its feature; None where it is not in the gallery."""

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        """Return those of these images that are not in the gallery."""

    def allowed(
        self,
        categories: Sequence[str] = (),
        attributes: Wanted | None = None,
        among: Sequence[str] = (),
    ) -> Allowed:
        """Return what a search may find; None: all.

        Images in one of the categories, with the wanted attributes, that are among these ids.
        """

    def count(self, allowed: Allowed = None, *, without: AbstractSet[str] = frozenset()) -> int:
        """Count the images that a search may find, without some of them."""

    def nearest(
        self, query_BD: NDArray[np.float32], k: int, *, exact: bool = False, allowed: Allowed = None
    ) -> Nearest:
        """Search for L2-normalised queries (B, D); k is cut to what there may be."""

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

    @property
    def category_counts(self) -> Mapping[str, int]:
        """The number of images of each category, the largest first."""

    @property
    def attribute_counts(self) -> Mapping[str, Mapping[str, int]]:
        """The number of images of each value of each attribute, the largest first."""

    @property
    def ranges(self) -> Mapping[str, tuple[float, float]]:
        """The smallest and the largest number of each attribute that has numbers."""

    def has_category(self, name: str) -> bool:
        """Return whether an image is in a category."""

    def has_attribute(self, name: str, value: str | None = None) -> bool:
        """Return whether an image has an attribute, or this value of it."""

    def has_number(self, name: str) -> bool:
        """Return whether an image has a number as an attribute, or had one a while ago."""

    @property
    def moments(self) -> Moments:
        """Mean and covariance of the normalised features."""
