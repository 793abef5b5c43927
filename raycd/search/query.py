"""Queries and answers as plain values, without a model or an index.

Shapes: S image side, L context length, D feature size, B queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Picture

from raycd.errors import DataError
from raycd.gallery.state import Allowed, Image, Images, State


class NothingLeft(DataError):
    """A query whose feature has no direction."""

    def __init__(self) -> None:
        super().__init__(
            "nothing is left of the query: what it has weighs 0, or its parts cancel out",
            do="give its text or its images more weight",
        )


@dataclass(frozen=True)
class Reference:
    """One of a query's images, given in one of two ways."""

    image: Picture.Image | torch.Tensor | None = None
    """RGB, as `images.decode` returns it, or what `Searcher.preprocess` has made of it."""
    image_id: str | None = None
    """Of the gallery."""
    weight: float = 1.0
    """Its share of the reference; below 0 it pushes the results away."""


class History(NamedTuple):
    """The searches before one."""

    image_D: NDArray[np.float32] | None
    """The un-normalised feature of the first image; None: there was none."""
    texts: tuple[str, ...]
    """What should differ, the latest last."""

    def joined(self, text: str) -> str:
        """Return all texts as one, the latest first: what a model does not read is the oldest."""
        return " and ".join(one for one in (text, *reversed(self.texts)) if one)


class AttributeBoost(NamedTuple):
    """The attribute whose numbers move candidates: by `weight` from the least to the greatest."""

    attribute: str
    weight: float


@dataclass(frozen=True)
class Arrangement:
    """What is done to the first candidates of a search."""

    depth: int
    """How many they are."""
    boost: AttributeBoost | None = None
    alike: float | None = None
    """Hide those whose cosine with a better one is at least this."""
    group_by: str | None = None
    """Show the first image of each value of this attribute."""
    diversity: float = 0.0
    """0: by value alone; 1: each as unlike those before it as can be."""


@dataclass(frozen=True)
class Query:
    """A reference image, given as `image` or as `image_id` of the gallery, a text, or both."""

    image: Picture.Image | None = None
    """RGB, as `images.decode` returns it."""
    text: str = ""
    top_k: int = 10
    image_id: str | None = None
    negative_text: str = ""
    image_weight: float = 1.0
    text_weight: float = 1.0
    offset: int = 0
    """Number of first results to leave out."""
    allowed: Allowed = None
    """The images that may be found, by `State.allowed`; None: all."""
    exclude_reference: bool = False
    """Leave out the images of the gallery that it names."""
    exact: bool = False
    """Compare with every image, whatever the index."""
    rerank_depth: int | None = None
    """First candidates that a head which re-ranks orders anew; None: as many as the bundle says."""
    deadline: float | None = None
    """Time of `time.monotonic` up to which somebody waits: re-ranking is left out to keep it."""
    arrangement: Arrangement | None = None
    history: History | None = None
    """The searches that this one goes on from."""
    images: Sequence[Reference] = ()
    """Several images, in place of `image` and `image_id`."""

    @property
    def references(self) -> Sequence[Reference]:
        """All images, however they were given."""
        if self.image is None and self.image_id is None:
            return self.images
        return (Reference(self.image, self.image_id if self.image is None else None), *self.images)


class QueryText(NamedTuple):
    """A text as its tokens (L,), or as its feature (D,) where that is cached."""

    text: str
    tokens: torch.Tensor | None
    feature: torch.Tensor | None
    truncated: bool
    """Whether its end was cut off, because it has more tokens than the model reads."""


class Pictured(NamedTuple):
    """A preprocessed image of a query."""

    weight: float
    pixels: torch.Tensor | None
    """(S, S, 3), of a given image."""
    known: Image | None = None
    """The named image of the gallery."""
    feature_D: NDArray[np.float32] | None = None
    """Where there are no pixels: its feature, un-normalised."""


@dataclass(frozen=True)
class Prepared:
    """A preprocessed query."""

    query: Query
    view: State
    """The state of the gallery that it searches."""
    pictures: Sequence[Pictured]
    text: QueryText | None
    negative: QueryText | None
    rerank_depth: int = 0
    """First candidates that are re-ranked."""
    whole: Prepared | None = None
    """The query of the whole history, where this one has an image of its own."""

    @property
    def truncated(self) -> list[str]:
        """The texts whose end was cut off."""
        whole = None if self.whole is None else self.whole.text
        texts = (self.text, self.negative, whole)
        return [words.text for words in texts if words is not None and words.truncated]

    @property
    def depth(self) -> int:
        """The number of candidates that have to be found."""
        query = self.query
        shown = query.offset + query.top_k
        if query.arrangement is not None:
            shown = query.arrangement.depth
        return max(shown, self.rerank_depth) + len(self.left_out)

    @property
    def left_out(self) -> set[str]:
        """The images of the gallery that are no results because the query names them."""
        if not self.query.exclude_reference:
            return set()
        return {one.known.image_id for one in self.pictures if one.known is not None}

    def wanted(self, found: Found) -> NDArray[np.bool_]:
        """Tell which of the found positions are results: images, without those left out."""
        there = found.positions >= 0
        for image_id in self.left_out:
            position = found.images.position(image_id)
            if position is not None:
                there = there & (found.positions != position)
        return there


class Result(NamedTuple):
    """A found image."""

    image_id: str
    score: float
    """Cosine with the query."""
    category: str
    """The first one that the image belongs to; empty where it has none."""
    attributes: dict[str, str]
    position: int
    """Among the images of its search."""
    relative_score: float
    """Standard deviations of the score above the mean over the gallery."""
    image_score: float | None
    """Cosine with the reference image alone."""
    text_score: float | None
    """Cosine with the text alone."""
    rerank_score: float | None = None
    """What decided where the image was re-ranked: score + the head's own."""
    boosted_score: float | None = None
    """What decided where there is a boost."""


@dataclass(frozen=True)
class Answer:
    """The results of a query, best first, and the size and times of its batch."""

    results: list[Result]
    batch: int
    encode_s: float
    search_s: float
    rerank_s: float = 0.0
    reranked: bool = False
    image_D: NDArray[np.float32] | None = None
    """The un-normalised feature of the query's image; NaN where it has none."""
    is_empty: bool = False
    """Nothing was left of the query, so that the results mean nothing."""


class Encoded(NamedTuple):
    """Features of queries and of their halves; NaN where a query lacks a half."""

    query_BD: NDArray[np.float32]
    """L2-normalised, as the next two; 0 where nothing is left of a query."""
    image_BD: NDArray[np.float32]
    text_BD: NDArray[np.float32]
    raw_image_BD: NDArray[np.float32]
    """As the encoder gives them, as the next."""
    raw_text_BD: NDArray[np.float32]

    def row(self, row: int) -> Encoded:
        """Return those of one query, (D,)."""
        return Encoded(*(feature_BD[row] for feature_BD in self))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of this one query."""
        return not self.query_BD.any()


class Found(NamedTuple):
    """Images that were found for a query, best first."""

    scores: NDArray[np.float32]
    positions: NDArray[np.int64]
    """Among `images`; -1 where there are none left."""
    images: Images
    reranked: NDArray[np.float32] | None = None
    """What decided on the first of them, where they were re-ranked; NaN for the others."""
    boosted: NDArray[np.float64] | None = None
    """What decided where there is a boost."""
