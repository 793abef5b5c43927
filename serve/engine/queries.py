"""A query as it was sent, made ready for the model: decoded, preprocessed, its images looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from PIL import Image

from raycd.api import QueryRequest, SearchRequest
from raycd.data import images
from raycd.data.images import BrokenImage
from raycd.search import history
from raycd.search.query import Arrangement, AttributeBoost, History, Prepared, Query, Reference
from raycd.search.searcher import BrokenReference, NoReference
from serve.args import ServeArgs
from serve.engine.engine import Engine
from serve.errors import NoSuchImage, UnreadablePicture
from serve.load.admission import check_deadline, ends_at


class QueryImage(NamedTuple):
    """An image of a query: one of the gallery, or the bytes of a file."""

    image_id: str | None = None
    url: str | None = None
    """Where its file is to be fetched from; then there are no bytes yet."""
    file: bytes | None = None
    weight: float = 1.0


def prepare(
    engine: Engine, args: ServeArgs, asked: QueryRequest, sent: Sequence[QueryImage]
) -> Prepared:
    """Return the query in the engine's newest view; one picture is decoded at a time.

    Raises BrokenImage, NoSuchImage, UnreadablePicture and DataError.
    """
    view = engine.view
    query = Query(
        text=asked.text,
        images=[_reference(engine, args, sent, at) for at in range(len(sent))],
        negative_text=asked.negative_text,
        image_weight=asked.image_weight,
        text_weight=asked.text_weight,
        deadline=ends_at(),
        history=_history(engine, args, asked),
    )
    if isinstance(asked, SearchRequest):
        query = replace(
            query,
            top_k=asked.top_k or args.top_k,
            offset=asked.offset,
            allowed=view.allowed(asked.category, asked.attributes, asked.among),
            exclude_reference=asked.exclude_reference,
            exact=asked.exact,
            rerank_depth=asked.rerank_depth,
            arrangement=_arrangement(asked, args),
        )
    check_deadline()
    try:
        return engine.searcher.prepare(query, view)
    except NoReference as error:
        raise NoSuchImage(error.image_id) from error
    except BrokenReference as error:  # of the gallery: the head joint looks at its pictures
        raise UnreadablePicture(error.image_id, error.reason) from error


def _history(engine: Engine, args: ServeArgs, asked: QueryRequest) -> History | None:
    if asked.reference is None:
        return None
    dim = engine.bundle.encoder.dim
    return history.unpack(asked.reference, engine.fingerprint, dim, args.max_text)


def _arrangement(asked: SearchRequest, args: ServeArgs) -> Arrangement | None:
    hides = asked.near_duplicates == "hide"
    if not (asked.boost or hides or asked.group_by or asked.diversity):
        return None
    return Arrangement(
        args.candidates,
        boost=None
        if asked.boost is None
        else AttributeBoost(asked.boost.attribute, asked.boost.weight),
        alike=args.near_duplicate if hides else None,
        group_by=asked.group_by,
        diversity=asked.diversity,
    )


def _reference(engine: Engine, args: ServeArgs, sent: Sequence[QueryImage], at: int) -> Reference:
    one = sent[at]
    if one.file is None:
        return Reference(image_id=one.image_id, weight=one.weight)
    check_deadline()
    try:
        picture = decode(one.file, args, engine)
    except BrokenImage as error:
        if len(sent) == 1:
            raise
        raise BrokenImage(f"images.{at}: {error}", reason=error.reason) from error
    return Reference(engine.searcher.preprocess(picture), weight=one.weight)


def decode(file: bytes, args: ServeArgs, engine: Engine) -> Image.Image:
    """Return an image within the limits, for an engine. Raises BrokenImage."""
    return images.decode(
        file,
        max_pixels=args.max_pixels,
        min_side=args.min_side,
        formats=args.formats,
        enough=engine.searcher.enough,
    )
