"""The searcher: it answers queries (an image, a text, or both) from a bundle.

    searcher = Searcher(bundle.load(Path("runs/demo/bundle")))
    searcher.search([Query(image, "is blue with long sleeves", top_k=5)])

A query's feature is

    q = unit(head(image, text) + (image_weight - 1) unit(image) + (text_weight - 1) unit(text)
             - NEGATIVE unit(negative text))

where the unit feature of the image, or of the text, replaces the head if the other one is absent.
Where the head re-ranks, the first results of a query of image and text are in its order.

Shapes: B queries, S image side, L context length, D feature size, R results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from raycd.bundle import Bundle
from raycd.data.images import load
from raycd.errors import DataError
from raycd.gallery.state import Image as Known
from raycd.gallery.state import State
from raycd.gallery.static import Gallery
from raycd.gallery.view import View
from raycd.index.blocks import Moments
from raycd.model.fusion import joint
from raycd.model.fusion.head import WORDS
from raycd.model.maps import TOKENS, Extra
from raycd.search.needs import HeadNeeds
from raycd.search.query import Answer, Encoded, Found, Prepared, Query, Result, Words
from raycd.search.reranking import Reranking
from raycd.search.texts import TextCache

NEGATIVE = 0.5  # weight of a negative text; that of a text is 1
# Up to this variance of a query's cosines with a gallery, much of it is the rounding of float32.
MIN_VARIANCE = 1e-7


class NoReference(DataError):
    """A query names an image that the gallery does not have."""


class Searcher:
    """A bundle that answers queries. `prepare` may run in any thread, `answer` in one at a time.

    Args:
        threads: Threads of torch, for the whole process, and of FAISS; 0 leaves both as they are.
        text_cache: Texts whose features are kept.

    Attributes:
        view: The state of the gallery that new queries see; it may be replaced at any time.
        own: The bundle's own gallery.
        picture: Reads a picture of the gallery, by its path, for the head joint alone.
        reranking: What a head that re-ranks does with the first candidates.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 0,
        device: torch.device | str = "cpu",
        text_cache: int = 0,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        bundle.index.threads = threads
        self.bundle = bundle
        self.own = View.of(bundle.index, Gallery(bundle.gallery))
        self.view: State = self.own
        self._encoder = bundle.encoder.to(device).eval()
        self._head = bundle.head.to(device).eval()
        self._joint = bundle.head_config.name == joint.NAME and bundle.encoder.composes
        self.picture: Callable[[str | None], Image.Image] = partial(load, enough=self.enough)
        self._needs = HeadNeeds(bundle, self.own)
        # Tokens and their states are not kept with features: a text is encoded again for them
        self._texts = TextCache(0 if self._needs.names & {TOKENS, WORDS} else text_cache)
        self.reranking = Reranking(bundle, self._encoder.device)

    def search(self, queries: Sequence[Query]) -> list[list[Result]]:
        """Return the results of each query, best first. Raises DataError as `prepare` does."""
        prepared = [self.prepare(query) for query in queries]
        return [answer.results for answer in self.answer(prepared)]

    def prepare(self, query: Query, view: State | None = None) -> Prepared:
        """Preprocess a query.

        Args:
            view: What it searches, and what made its `allowed`; None: the newest one.

        Raises:
            NoReference: It names an image that is not in the gallery.
            DataError: It has neither image nor text, names an image that the bundle lacks what the
                head needs of, or asks for less than one result.
            GalleryError: The search engine that has the gallery does not answer.
        """
        text, negative = query.text.strip(), query.negative_text.strip()
        view, reference = self.view if view is None else view, None
        if query.image_id is not None:
            reference = view.find(query.image_id)
            if reference is None:
                got = f"image_id {query.image_id!r}"
                raise NoReference("the gallery has no such image", got=got)
        has_image = query.image is not None or reference is not None
        if not has_image and not text:
            what = "the query has neither an image nor a text"
            raise DataError(what, do="give one of them, or both")
        if query.top_k < 1:
            raise DataError("top_k is too small", got=query.top_k, expected="at least 1")
        if query.exact and not view.has_exact:
            raise DataError(
                f"exact: {view.kind} has the gallery, and its own index decides what is compared",
                do="leave exact out",
            )
        if query.image is None and reference is not None and text:
            self._needs.check(reference)
        return Prepared(
            query,
            view,
            pixels=self._pixels(query, reference if text else None),
            reference=reference,
            text=self._words(text),
            negative=self._words(negative),
            rerank_depth=self.reranking.depth_of(query, whole=has_image and bool(text)),
        )

    def _pixels(self, query: Query, reference: Known | None) -> torch.Tensor | None:
        """Return the pixels of a picture, also of the gallery's where the head needs them."""
        if query.image is not None:
            return self._encoder.preprocess(query.image)
        if reference is None or not self._joint:
            return None
        return self._encoder.preprocess(self.picture(reference.path))

    def _words(self, text: str) -> Words | None:
        if not text:
            return None
        known = self._texts.get(text)
        if known is not None:
            return Words(text, None, *known)
        tokens_L = self._encoder.tokenize([text])[0]
        return Words(text, tokens_L, None, self._encoder.truncates(text))

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        """Answer prepared queries; each gets at most its `top_k` results, best first."""
        if not batch:
            return []
        began = time.perf_counter()
        features = self.encode(batch)
        encoded = time.perf_counter()
        found = _search(batch, features.query_BD)
        searched = time.perf_counter()
        found = self.reranking.rerank(batch, features, found)
        reranked = time.perf_counter()
        results = [
            _results(prepared, Encoded(*(half[row] for half in features)), found[row])
            for row, prepared in enumerate(batch)
        ]
        rerank_s = reranked - searched
        seconds = encoded - began, time.perf_counter() - encoded - rerank_s, rerank_s
        return [
            Answer(own, len(batch), *seconds, reranked=found[row].reranked is not None)
            for row, own in enumerate(results)
        ]

    @torch.inference_mode()
    def encode(self, batch: Sequence[Prepared]) -> Encoded:
        """Return features (B, D) of the queries; known images and texts are not encoded again."""
        image_BD, of_image = self._images(batch)
        text_BD, of_text = self._encoded_texts([one.text for one in batch])
        unit_image_BD, unit_text_BD = F.normalize(image_BD, dim=-1), F.normalize(text_BD, dim=-1)
        has_image = torch.tensor(
            [one.pixels is not None or one.reference is not None for one in batch]
        )
        has_text = torch.tensor([one.text is not None for one in batch])
        query_BD = torch.where(has_image[:, None], unit_image_BD, unit_text_BD)
        both = has_image & has_text
        if both.any():
            rows = both.nonzero()[:, 0].tolist()
            extra = self._needs.batch([of_image[row] | of_text[row] for row in rows])
            query_BD[both] = self._fused(batch, both, image_BD, text_BD, extra)
        image_weights = [one.query.image_weight for one in batch]
        text_weights = [one.query.text_weight for one in batch]
        query_BD += _extra_weights(image_weights, has_image) * unit_image_BD.nan_to_num()
        query_BD += _extra_weights(text_weights, has_text) * unit_text_BD.nan_to_num()
        if any(one.negative is not None for one in batch):
            negative_BD, _ = self._encoded_texts([one.negative for one in batch])
            query_BD -= NEGATIVE * F.normalize(negative_BD, dim=-1).nan_to_num()
        unit_query_BD = F.normalize(query_BD, dim=-1)
        features = (unit_query_BD, unit_image_BD, unit_text_BD, image_BD, text_BD)
        return Encoded(*(feature_BD.numpy() for feature_BD in features))

    def _fused(
        self,
        batch: Sequence[Prepared],
        both_B: torch.Tensor,
        image_BD: torch.Tensor,
        text_BD: torch.Tensor,
        extra: Extra,
    ) -> torch.Tensor:
        """Return normalised queries of the rows that have image and text."""
        if not self._joint:
            halves = (half_BD[both_B].to(self._encoder.device) for half_BD in (image_BD, text_BD))
            fused_BD: torch.Tensor = self._head(*halves, **extra).float().cpu()
            return fused_BD
        pairs = [
            (one.pixels, one.text.text)
            for one in batch
            if one.pixels is not None and one.text is not None
        ]
        pixels = torch.stack([pixels for pixels, _ in pairs])
        tokens = self._encoder.tokenize([text for _, text in pairs])
        return F.normalize(self._encoder.compose(pixels, tokens).cpu(), dim=-1)

    @property
    def enough(self) -> int:
        """Return the sides of pictures that suffice, see `images.decode`; 0: nothing is said."""
        return self._encoder.preprocess.enough

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Return the pixels (S, S, 3) for the encoder; in any thread."""
        return self._encoder.preprocess(image)

    @torch.inference_mode()
    def encode_images(self, pixels: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Return un-normalised features (B, D) of preprocessed images; in one thread at a time."""
        features_BD = self._encoder.encode_images(torch.stack(list(pixels))).cpu()
        features: NDArray[np.float32] = features_BD.numpy()
        return features

    def _images(self, batch: Sequence[Prepared]) -> tuple[torch.Tensor, list[Extra]]:
        """Return un-normalised image features (B, D), NaN for a query without an image, and maps.

        Maps are what the head needs, where there is a text for it, too.
        """
        features_BD = torch.full((len(batch), self._encoder.dim), torch.nan)
        extras: list[Extra] = [{} for _ in batch]
        given = [row for row, one in enumerate(batch) if one.pixels is not None]
        if given:
            pixels = torch.stack([pixels for one in batch if (pixels := one.pixels) is not None])
            features_BD[given], found = self._needs.encode_images(pixels)
            for row, extra in zip(given, found, strict=True):
                extras[row] = extra
        for row, one in enumerate(batch):
            if one.pixels is None and one.reference is not None:
                assert one.reference.feature_D is not None, "it was found with its feature"
                features_BD[row] = torch.from_numpy(one.reference.feature_D)
                if one.text is not None:
                    extras[row] = self._needs.of_image(one.reference.image_id)
        return features_BD, extras

    def _encoded_texts(self, batch: Sequence[Words | None]) -> tuple[torch.Tensor, list[Extra]]:
        """Return un-normalised text features (B, D), NaN where there is no text, and tokens.

        Each distinct new text is encoded once. Tokens are what the head needs.
        """
        features_BD = torch.full((len(batch), self._encoder.dim), torch.nan)
        new = {
            words.text: words for words in batch if words is not None and words.tokens is not None
        }
        found: dict[str, torch.Tensor] = {}
        of_new: dict[str, Extra] = {}
        if new:
            tokens_NL = torch.stack(
                [tokens for words in new.values() if (tokens := words.tokens) is not None]
            )
            text_ND, extras = self._needs.encode_tokens(tokens_NL)
            found = dict(zip(new, text_ND, strict=True))
            of_new = dict(zip(new, extras, strict=True))
            for text, feature_D in found.items():
                self._texts.put(text, feature_D.clone(), new[text].truncated)
        for row, words in enumerate(batch):
            if words is not None:
                features_BD[row] = found[words.text] if words.feature is None else words.feature
        return features_BD, [{} if words is None else of_new.get(words.text, {}) for words in batch]


def _search(batch: Sequence[Prepared], query_BD: NDArray[np.float32]) -> dict[int, Found]:
    """Return scores and positions of each query, by its row, from the first result on."""
    results = {}
    for rows, depth in _alike(batch):
        first = batch[rows[0]]
        scores, positions, images = first.view.nearest(
            query_BD[rows], depth, exact=first.query.exact, allowed=first.query.allowed
        )
        for at, row in enumerate(rows):
            results[row] = Found(scores[at], positions[at], images)
    return results


def _results(one: Prepared, feature: Encoded, found: Found) -> list[Result]:
    """Return the wanted results, each with its cosines with image and text alone."""
    query, images = one.query, found.images
    page = slice(query.offset, query.offset + query.top_k)
    chosen = np.flatnonzero(one.wanted(found))[page]
    scores, positions = found.scores[chosen], found.positions[chosen]
    reranked = [] if found.reranked is None else found.reranked[page].tolist()
    reranked += [None] * (len(chosen) - len(reranked))
    vectors_RD = images.vectors(positions)
    relative = _relative(feature.query_BD, scores, one.view.moments)
    halves = [_cosines(vectors_RD, half) for half in (feature.image_BD, feature.text_BD)]
    return [
        Result(
            images.image_id(position),
            score,
            images.category(position),
            images.attributes(position),
            position,
            *rest,
        )
        for position, score, *rest in zip(
            positions.tolist(), scores.tolist(), relative, *halves, reranked, strict=True
        )
    ]


def _relative(
    query_D: NDArray[np.float32], scores: NDArray[np.float32], moments: Moments
) -> list[float]:
    """Return z-scores over the whole gallery; 0 where its cosines differ by rounding alone.

    Mean and variance of the cosines follow from those of the features: q.m and q.C.q.
    """
    variance = float(query_D @ moments.covariance_DD @ query_D)
    if variance <= MIN_VARIANCE:
        return [0.0] * len(scores)
    z_scores: list[float] = ((scores - query_D @ moments.mean_D) / variance**0.5).tolist()
    return z_scores


def _extra_weights(weights: Sequence[float], has_half: torch.Tensor) -> torch.Tensor:
    """Return weights (B, 1) on top of the head's: 0 for weight 1, and where there is no half."""
    return ((torch.tensor(weights) - 1) * has_half)[:, None]


def _cosines(vectors_RD: NDArray[np.float32], half_D: NDArray[np.float32]) -> list[float | None]:
    """Return cosines with a half of the query; None for each where the query lacks it."""
    if np.isnan(half_D[0]):
        return [None] * len(vectors_RD)
    cosines: list[float | None] = (vectors_RD @ half_D).tolist()
    return cosines


def _alike(batch: Sequence[Prepared]) -> list[tuple[list[int], int]]:
    """Group queries that can be searched together, as rows and the depth that they need."""
    groups: dict[tuple[int, int, bool], list[int]] = {}
    for row, one in enumerate(batch):
        groups.setdefault((id(one.view), id(one.query.allowed), one.query.exact), []).append(row)
    return [(rows, max(batch[row].depth for row in rows)) for rows in groups.values()]
