"""Queries and answers as plain values, without a model or an index.

Shapes: S image side, L context length, D feature size, B queries, G images of the gallery.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from raycd.gallery.view import View
from raycd.index.structure import Mask


@dataclass(frozen=True)
class Query:
    """A reference image, given as `image` or as `image_id` of the gallery, a text, or both."""

    image: Image.Image | None = None
    """RGB, as `images.decode` returns it."""
    text: str = ""
    top_k: int = 10
    image_id: str | None = None
    negative_text: str = ""
    image_weight: float = 1.0
    text_weight: float = 1.0
    offset: int = 0
    """Number of first results to leave out."""
    allowed: Mask | None = None
    """(G,): the images that may be found, by `View.mask`; None: all."""
    exclude_reference: bool = False
    """Leave out the image that `image_id` names."""
    exact: bool = False
    """Compare with every image, whatever the index."""


class Words(NamedTuple):
    """A text as its tokens (L,), or as its feature (D,) where that is cached."""

    text: str
    tokens: torch.Tensor | None
    feature: torch.Tensor | None
    truncated: bool
    """Whether its end was cut off, because it has more tokens than the model reads."""


@dataclass(frozen=True)
class Prepared:
    """A preprocessed query."""

    query: Query
    view: View
    """The state of the gallery that it searches."""
    pixels: torch.Tensor | None
    """(S, S, 3), of a given image."""
    position: int | None
    """In the gallery, of a named image."""
    text: Words | None
    negative: Words | None

    @property
    def truncated(self) -> list[str]:
        """The texts whose end was cut off."""
        texts = (self.text, self.negative)
        return [words.text for words in texts if words is not None and words.truncated]


class Result(NamedTuple):
    """A found image."""

    image_id: str
    score: float
    """Cosine with the query."""
    category: str
    """The first one that the image belongs to; empty where it has none."""
    position: int
    relative_score: float
    """Standard deviations of the score above the mean over the gallery."""
    image_score: float | None
    """Cosine with the reference image alone."""
    text_score: float | None
    """Cosine with the text alone."""


@dataclass(frozen=True)
class Answer:
    """The results of a query, best first, and the size and times of its batch."""

    results: list[Result]
    batch: int
    encode_s: float
    search_s: float


class Encoded(NamedTuple):
    """Normalised features of queries and of their halves; NaN where a query lacks a half."""

    query_BD: NDArray[np.float32]
    image_BD: NDArray[np.float32]
    text_BD: NDArray[np.float32]
