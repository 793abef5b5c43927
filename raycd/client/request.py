"""What is asked, as Python says it and as it goes over HTTP: searches here, images of the gallery
in gallery.py.
"""

from __future__ import annotations

import base64
import json
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict

from pydantic import BaseModel, ValidationError

from raycd.api import SearchRequest
from raycd.errors import DataError


class Search(TypedDict, total=False):
    """The fields of raycd.api.SearchRequest, which says what each means; and `image`, a file or its
    bytes.
    """

    image: str | PathLike[str] | bytes | None
    image_id: str | None
    image_base64: str | None
    image_url: str | None
    text: str
    negative_text: str
    image_weight: float
    text_weight: float
    top_k: int | None
    offset: int
    category: list[str]
    attributes: dict[str, list[str]]
    exclude_reference: bool
    exact: bool


def read(search: Search) -> tuple[SearchRequest, bytes | None]:
    """The search, checked, and the bytes of its `image`. Raises DataError."""
    fields: dict[str, Any] = dict(search)
    image = fields.pop("image", None)
    try:
        request = SearchRequest.model_validate(fields)
    except ValidationError as error:
        raise DataError(
            "the search is impossible", got=wrong(error), do="see raycd.api.SearchRequest"
        ) from error
    if image is None:
        return request, None
    others = [
        name
        for name in ("image_id", "image_base64", "image_url")
        if getattr(request, name) is not None
    ]
    if others:
        raise DataError(
            "the search is impossible", got=f"image and {others[0]}", expected="one of them"
        )
    return request, file(image)


def as_json(search: Search) -> SearchRequest:
    """The search with its image inside, as a batch needs it. Raises DataError."""
    request, image = read(search)
    if image is not None:
        request.image_base64 = base64.b64encode(image).decode()
    return request


def body(request: BaseModel) -> dict[str, Any]:
    """The fields that were given: the service has defaults of its own for the rest."""
    return request.model_dump(mode="json", exclude_unset=True)


def content(body: dict[str, Any], image: bytes | None) -> dict[str, Any]:
    """The body as httpx takes it: JSON, or a form with the file `image`."""
    if image is None:
        return {"json": body}
    fields = {name: value for name, value in body.items() if value is not None}
    if "attributes" in fields:
        fields["attributes"] = json.dumps(fields["attributes"])
    return {"data": fields, "files": {"image": ("image", image)}}


def wrong(error: ValidationError) -> str:
    """Each wrong field and why."""
    details = [
        (".".join(map(str, detail["loc"])), detail["msg"])
        for detail in error.errors(include_url=False)
    ]
    return "; ".join(
        f"{field}: {why}" if field else why.removeprefix("Value error, ") for field, why in details
    )


def file(image: str | PathLike[str] | bytes, root: str | PathLike[str] = "") -> bytes:
    """The bytes of an image; a relative file starts from `root`. Raises DataError."""
    if isinstance(image, bytes):
        return image
    try:
        return Path(root, image).read_bytes()
    except (OSError, TypeError, ValueError) as error:  # TypeError: no path; ValueError: a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot read the image {str(image)!r}",
            got=reason,
            expected=f"an image file{_start(image, root)}",
        ) from error


def _start(image: object, root: str | PathLike[str]) -> str:
    """Where the path started, in words, where `root` said so."""
    if isinstance(image, str) and "://" in image:
        return " of this machine: the client fetches no URIs"
    if str(root) == "" or not isinstance(image, str | PathLike) or Path(image).is_absolute():
        return ""
    return f" in {Path(root).absolute()}; where paths start from another folder, name it by --root (root=)"
