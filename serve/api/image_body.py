"""The body of an image for the gallery: a GalleryImage within the limits, picture and feature."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from raycd.api import GalleryImage
from serve.api import bodies, problems
from serve.args import ServeArgs
from serve.engine.engine import Engine

OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            bodies.FORM: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {
                            "type": "string",
                            "format": "binary",
                            "description": "the picture's file",
                        },
                        "category": {"type": "array", "items": {"type": "string"}},
                        "attributes": {
                            "type": "string",
                            "description": 'as JSON: {"colour": "blue"}',
                        },
                    },
                }
            },
            bodies.JSON: {"schema": GalleryImage.model_json_schema()},
        },
    }
}


class SentImage(NamedTuple):
    """An image as a client sent it. It has a file, a feature (D,), or both."""

    asked: GalleryImage
    file: bytes | None
    feature: NDArray[np.float32] | None


async def read(request: Request, args: ServeArgs, engine: Engine) -> SentImage:
    """Return the request's image. Raises ProblemError."""
    fields, file = await bodies.read(request, args)
    return check(bodies.validated(GalleryImage, fields), file, args, engine)


def check(asked: GalleryImage, file: bytes | None, args: ServeArgs, engine: Engine) -> SentImage:
    """Return the image within the limits, its file whichever way it came.

    Raises ProblemError: it is beyond a limit, or the feature is impossible.
    """
    if asked.image_base64 is not None:
        if file is not None:
            raise problems.wrong_field(
                "image", "the picture is given in two ways: give one of them"
            )
        file = bodies.decoded(asked.image_base64, field="image_base64")
    if file is None and asked.feature is None:
        raise problems.wrong_field(
            "image", "there is neither a picture nor a feature: give one or both"
        )
    labels = len(asked.category) + len(asked.attributes)
    if labels > args.max_attributes:
        most = args.max_attributes
        raise problems.beyond(
            "max_attributes",
            "too many categories and attributes",
            got=labels,
            most=most,
            do="give fewer",
        )
    return SentImage(asked, file, None if asked.feature is None else _feature(asked, engine))


def _feature(asked: GalleryImage, engine: Engine) -> NDArray[np.float32]:
    encoder, own = asked.encoder or "", engine.fingerprint
    if not own.startswith(encoder):
        raise problems.ProblemError(
            409,
            f"the feature is of another encoder: got {encoder[:12]}, this service has {own[:12]}; "
            "send the picture, or the feature that this service's encoder gives it",
        )
    dim = engine.bundle.encoder.dim
    if isinstance(asked.feature, str):
        data = bodies.decoded(asked.feature, field="feature")
        got, right = (
            f"{len(data):,} bytes, which are {len(data) / 4:g} numbers of float32",
            len(data) == 4 * dim,
        )
        feature_D = np.frombuffer(data[: len(data) // 4 * 4], "<f4").astype(np.float32)
    else:
        got, right = f"{len(asked.feature or ()):,} numbers", len(asked.feature or ()) == dim
        with np.errstate(over="ignore"):  # checked below
            feature_D = np.array(asked.feature, np.float64).astype(np.float32)
    if not right:
        raise problems.wrong_field("feature", f"got {got}, expected the {dim} of this encoder")
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.linalg.norm(feature_D))
    if not np.isfinite(length) or length == 0:
        got = (
            "only zeros"
            if length == 0
            else "numbers that are not finite in float32, or whose length is not"
        )
        raise problems.wrong_field(
            "feature", f"got {got}, expected {dim} finite numbers, not all 0"
        )
    return feature_D
