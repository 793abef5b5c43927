"""The searcher: it answers queries (an image, a text, or both) from a bundle.

    searcher = Searcher(bundle.load(Path("runs/demo/bundle")))
    searcher.search([Query(image, "is blue with long sleeves", top_k=5)])

A query's feature is

    q = unit(head(image, text) + (image_weight - 1) unit(image) + (text_weight - 1) unit(text)
             - NEGATIVE unit(negative text))

where the unit feature of the image, or of the text, replaces the head if the other one is absent.
Of several images of weights w > 0, head(image, text) is the mean of the heads of each and
unit(image) that of the images, both weighted by w; each image of a weight w < 0 adds
w unit(image). Where the head re-ranks, the first results of a query of one image
and a text are in its order.

A query that goes on from earlier ones is that of their first image and of all texts, its own among
them, joined; where it has an image of its own, the sum of that and of its own is normalised.

Shapes: B queries, N images of all of them, S image side, L context length, D feature size.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from raycd.bundle import Bundle
from raycd.data.images import BrokenImage, load
from raycd.errors import DataError
from raycd.gallery.state import State
from raycd.gallery.static import Gallery
from raycd.gallery.view import View
from raycd.model.embed import frozen
from raycd.model.fusion import joint
from raycd.model.fusion.head import WORDS
from raycd.model.graphs import RecordedEncoder
from raycd.model.maps import TOKENS, Extra
from raycd.model.precision import Arithmetic
from raycd.search import results
from raycd.search.arranging import arrange
from raycd.search.batch_images import BatchImages
from raycd.search.cache import CountedCache
from raycd.search.needs import HeadNeeds
from raycd.search.query import (
    Answer,
    Encoded,
    NothingLeft,
    Pictured,
    Prepared,
    Query,
    QueryText,
    Reference,
    Result,
)
from raycd.search.reranking import Reranking

NEGATIVE = 0.5  # weight of a negative text; that of a text is 1
_SHORT = 200  # characters
_NOTHING = 1e-5  # length of a query up to which its direction is that of rounding


class NoReference(DataError):
    """A query names an image that the gallery does not have, `image_id`."""

    def __init__(self, image_id: str) -> None:
        super().__init__("the gallery has no such image", got=f"image_id {image_id!r}")
        self.image_id = image_id


class BrokenReference(DataError):
    """The picture of an image of the gallery, `image_id`, cannot be read; `reason` as of images."""

    def __init__(self, image_id: str, error: BrokenImage) -> None:
        super().__init__(f"the picture of {image_id!r} cannot be read", got=error)
        self.image_id, self.reason = image_id, error.reason


class Searcher:
    """A bundle that answers queries. `prepare` may run in any thread, `answer` in one at a time.

    Args:
        threads: Threads of torch, for the whole process, and of FAISS; 0 leaves both as they are.
        device: Where it computes.
        precision: Of the encoders, see `frozen`; a head computes in fp32. With fp32 on a GPU the
            process has no TF32 of cuDNN from then on.
        graphs: On a GPU, pooled features of small batches come from CUDA graphs.
        text_cache: Texts whose features are kept.

    Attributes:
        view: The state of the gallery that new queries see; it may be replaced at any time.
        own: The bundle's own gallery.
        picture: Reads a picture of the gallery, by its path, for the head joint alone.
        texts: Features (D,) of the last texts, and whether the end of each was cut off.
        reranking: What a head that re-ranks does with the first candidates.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 0,
        device: torch.device | str = "cpu",
        precision: Arithmetic = "fp32",
        graphs: bool = False,
        text_cache: int = 0,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        bundle.index.threads = threads
        self.bundle = bundle
        self.own = View.of(bundle.index, Gallery(bundle.gallery))
        self.view: State = self.own
        self._encoder = frozen(bundle.encoder, precision, str(device))
        self._head = bundle.head.to(device).eval()
        self._joint = bundle.head_config.name == joint.NAME and bundle.encoder.composes
        self.picture: Callable[[str | None], Image.Image] = partial(load, enough=self.enough)
        # Graphs have no hooks, by which maps and tokens are read
        recorded = RecordedEncoder(self._encoder) if graphs and not bundle.head.needs else None
        self._features = recorded or self._encoder
        self._needs = HeadNeeds(bundle, self.own, self._features)
        # Tokens and their states are not kept with features: a text is encoded again for them
        kept = 0 if self._needs.names & {TOKENS, WORDS} else text_cache
        self.texts: CountedCache[tuple[torch.Tensor, bool]] = CountedCache(kept)
        self.reranking = Reranking(bundle, self._encoder.device)

    def search(self, queries: Sequence[Query]) -> list[list[Result]]:
        """Return the results of each query, best first.

        Raises DataError as `prepare` does, and NothingLeft where a query comes to nothing.
        """
        answers = self.answer([self.prepare(query) for query in queries])
        if any(answer.is_empty for answer in answers):
            raise NothingLeft
        return [answer.results for answer in answers]

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
        view = self.view if view is None else view
        shown = sum(one.weight > 0 for one in query.references)
        first, whole = self._history(query, text)
        if not shown and not first and not whole:
            what = "the query has neither an image nor a text"
            raise DataError(what, do="give one of them, or both")
        if query.top_k < 1:
            raise DataError("top_k is too small", got=query.top_k, expected="at least 1")
        if query.exact and not view.has_exact:
            raise DataError(
                f"exact: {view.kind} has the gallery, and its own index decides what is compared",
                do="leave exact out",
            )
        pictures = [
            self._pictured(one, view, composed=bool(text) and one.weight > 0)
            for one in query.references
        ]
        both = query.history is not None and shown > 0 and bool(first or whole)
        if query.history is not None and not shown:  # it is the query
            shown, text, pictures = len(first), whole, [*first, *pictures]
        return Prepared(
            query,
            view,
            pictures=pictures,
            text=self._words(text),
            negative=self._words(negative),
            rerank_depth=self.reranking.depth_of(query, whole=shown == 1 and bool(text)),
            whole=Prepared(Query(), view, first, self._words(whole), None) if both else None,
        )

    def _history(self, query: Query, text: str) -> tuple[list[Pictured], str]:
        """Return the first image of a query's history, and all texts as one with the new one."""
        if query.history is None:
            return [], text
        image_D, whole = query.history.image_D, query.history.joined(text)
        if image_D is None:
            return [], whole
        if whole and (self._joint or self._needs.names):
            raise DataError(
                f"the head {self.bundle.head_config.name} needs more of a reference than its "
                "feature, which is all that a history has",
                do="leave the reference out",
            )
        return [Pictured(1.0, None, feature_D=image_D)], whole

    def _pictured(self, one: Reference, view: State, *, composed: bool) -> Pictured:
        """Return an image with what the head needs of it, where it is `composed` with a text."""
        if isinstance(one.image, torch.Tensor):
            return Pictured(one.weight, one.image)
        if one.image is not None:
            return Pictured(one.weight, self.preprocess(one.image))
        known = None if one.image_id is None else view.find(one.image_id)
        if known is None:
            raise NoReference(str(one.image_id))
        if composed:
            self._needs.check(known)
        if not (composed and self._joint):
            return Pictured(one.weight, None, known, known.feature_D)
        try:
            return Pictured(one.weight, self.preprocess(self.picture(known.path)), known)
        except BrokenImage as error:
            raise BrokenReference(known.image_id, error) from error

    def _words(self, text: str) -> QueryText | None:
        if not text:
            return None
        known = self.texts.get(_key(text))
        if known is not None:
            return QueryText(text, None, *known)
        tokens_L = self._encoder.tokenize([text])[0]
        return QueryText(text, tokens_L, None, self._encoder.truncates(text))

    def answer(self, batch: Sequence[Prepared]) -> list[Answer]:
        """Answer prepared queries; each gets at most its `top_k` results, best first."""
        if not batch:
            return []
        began = time.perf_counter()
        features = self.encode(batch)
        encoded = time.perf_counter()
        found = results.search(batch, features.query_BD)
        searched = time.perf_counter()
        found = self.reranking.rerank(batch, features, found)
        reranked = time.perf_counter()
        rows = [features.row(row) for row in range(len(batch))]
        answers = [
            results.of(prepared, rows[row], arrange(prepared, found[row]))
            for row, prepared in enumerate(batch)
        ]
        rerank_s = reranked - searched
        seconds = encoded - began, time.perf_counter() - encoded - rerank_s, rerank_s
        return [
            Answer(
                own,
                len(batch),
                *seconds,
                reranked=found[row].reranked is not None,
                image_D=rows[row].raw_image_BD,
                is_empty=rows[row].is_empty,
            )
            for row, own in enumerate(answers)
        ]

    @torch.inference_mode()
    def encode(self, batch: Sequence[Prepared]) -> Encoded:
        """Return features (B, D) of the queries; known images and texts are not encoded again."""
        text_BD, of_text = self._encoded_texts([one.text for one in batch])
        unit_text_BD = F.normalize(text_BD, dim=-1)
        has_text = torch.tensor([one.text is not None for one in batch])
        images = BatchImages.of(batch)
        image_ND, of_image = self._images(batch, images)
        unit_image_ND = F.normalize(image_ND, dim=-1)
        base_ND = unit_image_ND.clone()
        both_N = (images.share_N > 0) & has_text[images.row_N]
        if both_N.any():
            pairs = [(at, int(images.row_N[at])) for at in both_N.nonzero()[:, 0].tolist()]
            extra = self._needs.batch([of_image[at] | of_text[row] for at, row in pairs])
            halves = image_ND[both_N], text_BD[images.row_N[both_N]]
            base_ND[both_N] = self._fused(batch, images, pairs, halves, extra)
        image_BD, has_image = images.mean(image_ND), images.has_image
        mean_image_BD = images.mean(unit_image_ND)
        unit_image_BD = F.normalize(mean_image_BD, dim=-1)
        query_BD = torch.where(has_image[:, None], images.mean(base_ND), unit_text_BD)
        query_BD += images.pushed(unit_image_ND)
        image_weights = [one.query.image_weight for one in batch]
        text_weights = [one.query.text_weight for one in batch]
        # Images alone are that mean, which a weight of 0 takes away
        weighed_BD = torch.where(has_text[:, None], unit_image_BD, mean_image_BD)
        query_BD += _extra_weights(image_weights, has_image) * weighed_BD.nan_to_num()
        query_BD += _extra_weights(text_weights, has_text) * unit_text_BD.nan_to_num()
        if any(one.negative is not None for one in batch):
            negative_BD, _ = self._encoded_texts([one.negative for one in batch])
            query_BD -= NEGATIVE * F.normalize(negative_BD, dim=-1).nan_to_num()
        whole = {row: one.whole for row, one in enumerate(batch) if one.whole is not None}
        if whole:
            before_KD = torch.from_numpy(self.encode(list(whole.values())).query_BD)
            query_BD[list(whole)] = _unit(query_BD[list(whole)]) + before_KD
        unit_query_BD = _unit(query_BD)
        features = (unit_query_BD, unit_image_BD, unit_text_BD, image_BD, text_BD)
        return Encoded(*(feature_BD.numpy() for feature_BD in features))

    def _fused(
        self,
        batch: Sequence[Prepared],
        images: BatchImages,
        pairs: Sequence[tuple[int, int]],
        halves: Sequence[torch.Tensor],
        extra: Extra,
    ) -> torch.Tensor:
        """Return normalised queries of images and texts, by their numbers N and rows B."""
        if not self._joint:
            on_device = (half_ND.to(self._encoder.device) for half_ND in halves)
            fused_ND: torch.Tensor = self._head(*on_device, **extra).float().cpu()
            return fused_ND
        pictures = [images.pictures[at].pixels for at, _ in pairs]
        pixels = torch.stack([one for one in pictures if one is not None])
        texts = [words.text for _, row in pairs if (words := batch[row].text) is not None]
        return F.normalize(
            self._encoder.compose(pixels, self._encoder.tokenize(texts)).cpu(), dim=-1
        )

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
        features_BD = self._features.encode_images(torch.stack(list(pixels))).cpu()
        features: NDArray[np.float32] = features_BD.numpy()
        return features

    def _images(
        self, batch: Sequence[Prepared], images: BatchImages
    ) -> tuple[torch.Tensor, list[Extra]]:
        """Return un-normalised image features (N, D), and maps.

        Maps are what the head needs, where there is a text for it, too.
        """
        features_ND = torch.empty((len(images.pictures), self._encoder.dim))
        extras: list[Extra] = [{} for _ in images.pictures]
        given = {at: one.pixels for at, one in enumerate(images.pictures) if one.pixels is not None}
        if given:
            pixels = torch.stack(list(given.values()))
            features_ND[list(given)], found = self._needs.encode_images(pixels)
            for at, extra in zip(given, found, strict=True):
                extras[at] = extra
        for at, (one, row) in enumerate(zip(images.pictures, images.row_N.tolist(), strict=True)):
            if at in given:
                continue
            assert one.feature_D is not None, "an image without pixels has its feature"
            features_ND[at] = torch.from_numpy(one.feature_D)
            if one.known is not None and batch[row].text is not None and one.weight > 0:
                extras[at] = self._needs.of_image(one.known.image_id)
        return features_ND, extras

    def _encoded_texts(self, batch: Sequence[QueryText | None]) -> tuple[torch.Tensor, list[Extra]]:
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
                self.texts.put(_key(text), (feature_D.clone(), new[text].truncated))
        for row, words in enumerate(batch):
            if words is not None:
                features_BD[row] = found[words.text] if words.feature is None else words.feature
        return features_BD, [{} if words is None else of_new.get(words.text, {}) for words in batch]


def _unit(query_BD: torch.Tensor) -> torch.Tensor:
    """Return queries of length 1; 0 where nothing is left of one. NaN, of broken weights, stays."""
    is_gone_B1 = query_BD.norm(dim=-1, keepdim=True) <= _NOTHING
    return torch.where(is_gone_B1, 0.0, F.normalize(query_BD, dim=-1))


def _extra_weights(weights: Sequence[float], has_half: torch.Tensor) -> torch.Tensor:
    """Return weights (B, 1) on top of the head's: 0 for weight 1, and where there is no half."""
    return ((torch.tensor(weights) - 1) * has_half)[:, None]


def _key(text: str) -> str:
    """Return what a text's feature is kept by: the text, or where it is long its hash."""
    if len(text) <= _SHORT:
        return text
    hashed = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return hashed.ljust(_SHORT + 1)  # as long as no text that is kept as it is
