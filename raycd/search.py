"""Answers composed queries from a bundle: arrays in, arrays out. Used by the service and by the contact sheet.

    searcher = Searcher(bundle.load(Path("runs/demo/bundle")))
    searcher.search([Query(image, "is blue with long sleeves", top_k=5)])

Shapes: B queries, S image side, L context length, D feature size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from raycd.errors import DataError
from raycd.model.bundle import Bundle


@dataclass(frozen=True)
class Query:
    """A reference image (RGB, as `images.decode` gives it), the modification text and how many results are wanted."""

    image: Image.Image
    text: str
    top_k: int = 10


@dataclass(frozen=True)
class Prepared:
    """A query as the model takes it: pixels (3, S, S), tokens (L,)."""

    pixels: torch.Tensor
    tokens: torch.Tensor
    top_k: int
    truncated: bool
    """Whether the end of the text was cut off: it has more tokens than the model reads."""


class Result(NamedTuple):
    """An image found. `score` is the cosine of query and image; `category` the first one that the image belongs to."""

    image_id: str
    score: float
    category: str


class Searcher:
    """A bundle that answers. `prepare` may run in any thread; `answer` in one at a time.

    `threads` are those of torch, for the whole process, and of FAISS; 0 leaves both as they are.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 0, device: torch.device | str = "cpu") -> None:
        if threads:
            torch.set_num_threads(threads)
        bundle.index.threads = threads
        self.bundle = bundle
        self._encoder = bundle.encoder.to(device).eval()
        self._head = bundle.head.to(device).eval()
        self._image_ids: list[str] = bundle.gallery["image_id"].to_pylist()
        self._categories = [names[0] if names else "" for names in bundle.gallery["categories"].to_pylist()]

    def search(self, queries: Sequence[Query]) -> list[list[Result]]:
        """The results of each query, best first. Raises DataError as `prepare` does."""
        return self.answer([self.prepare(query) for query in queries])

    def prepare(self, query: Query) -> Prepared:
        """Preprocess one query. Raises DataError where its text is empty or its top_k less than 1."""
        text = query.text.strip()
        if not text:
            raise DataError("the text of a query is empty", expected="what to change, such as: is blue", do="say it")
        if query.top_k < 1:
            raise DataError("top_k is too small", got=query.top_k, expected="at least 1")
        return Prepared(
            pixels=self._encoder.preprocess(query.image),
            tokens=self._encoder.tokenize([text])[0],
            top_k=query.top_k,
            truncated=self._encoder.truncates(text),
        )

    def answer(self, batch: Sequence[Prepared]) -> list[list[Result]]:
        """The results of each prepared query: as many as its top_k or the gallery allows, best first."""
        if not batch:
            return []
        scores, positions = self.bundle.index.search(self.encode(batch), max(query.top_k for query in batch))
        return [
            [
                Result(self._image_ids[place], score, self._categories[place])
                for score, place in zip(row[: query.top_k], places, strict=False)
            ]
            for query, row, places in zip(batch, scores.tolist(), positions.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def encode(self, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        """Query features (B, D), L2-normalised."""
        image_BD = self._encoder.encode_images(torch.stack([query.pixels for query in batch]))
        text_BD = self._encoder.encode_tokens(torch.stack([query.tokens for query in batch]))
        features: NDArray[np.float32] = self._head(image_BD, text_BD).float().cpu().numpy()
        return features
