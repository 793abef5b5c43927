"""What is asked and what is answered, as plain values: no model and no index.

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
    """What is looked for: `image` (RGB, as `images.decode` gives it) or `image_id` of the gallery,
    `text`, or both.
    """

    image: Image.Image | None = None
    text: str = ""
    top_k: int = 10
    image_id: str | None = None
    negative_text: str = ""
    image_weight: float = 1.0
    text_weight: float = 1.0
    offset: int = 0
    """Results left out at the beginning."""
    allowed: Mask | None = None
    """(G,): the images that may be found (`View.mask`); None: all."""
    exclude_reference: bool = False
    """Leave out the image that `image_id` names."""
    exact: bool = False
    """Compare with every image, whatever the index."""


class Words(NamedTuple):
    """A text as the model takes it: its tokens (L,), or its feature (D,) where it was asked before."""

    text: str
    tokens: torch.Tensor | None
    feature: torch.Tensor | None
    truncated: bool
    """Whether its end was cut off: it has more tokens than the model reads."""


@dataclass(frozen=True)
class Prepared:
    """A query as the model takes it."""

    query: Query
    view: View
    """The gallery's state that it searches."""
    pixels: torch.Tensor | None
    """(S, S, 3) of an image that was given."""
    position: int | None
    """In the gallery, of an image that was named."""
    text: Words | None
    negative: Words | None

    @property
    def truncated(self) -> list[str]:
        """The texts whose end was cut off."""
        return [
            words.text
            for words in (self.text, self.negative)
            if words is not None and words.truncated
        ]


class Result(NamedTuple):
    """An image found. `score` is the cosine of query and image; `category` the first one that the
    image belongs to.
    """

    image_id: str
    score: float
    category: str
    position: int
    relative_score: float
    """Standard deviations of the score above the mean over the gallery."""
    image_score: float | None
    """Cosine with the reference image alone."""
    text_score: float | None
    """Cosine with the text alone."""


@dataclass(frozen=True)
class Answer:
    """The results of one query, best first, and the work that its batch was."""

    results: list[Result]
    batch: int
    encode_s: float
    search_s: float


class Encoded(NamedTuple):
    """Features of a batch: the query's, and those of its halves; NaN where a query lacks one. All
    normalised.
    """

    query_BD: NDArray[np.float32]
    image_BD: NDArray[np.float32]
    text_BD: NDArray[np.float32]
