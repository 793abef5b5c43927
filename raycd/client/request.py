"""Searches as values of Python, and as they go over HTTP; gallery.py does that for images."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from pydantic import BaseModel, ValidationError

from raycd.api import QueryRequest, SearchResponse
from raycd.api.requests import USER
from raycd.errors import DataError

Checked = TypeVar("Checked", bound=BaseModel)


class Weighted(TypedDict, total=False):
    """The fields of raycd.api.WeightedImage, and `image`, a file or its bytes."""

    image: str | PathLike[str] | bytes | None
    image_id: str | None
    image_base64: str | None
    image_url: str | None
    weight: float


class QueryFields(TypedDict, total=False):
    """The fields of raycd.api.QueryRequest, and `image`, a file or its bytes.

    `reference` may be an earlier answer as a whole.
    """

    image: str | PathLike[str] | bytes | None
    image_id: str | None
    image_base64: str | None
    image_url: str | None
    images: Sequence[Weighted]
    reference: str | SearchResponse | None
    text: str
    negative_text: str
    image_weight: float
    text_weight: float


class Search(QueryFields, total=False):
    """The fields of raycd.api.SearchRequest, and `image`, a file or its bytes."""

    top_k: int | None
    offset: int
    category: list[str]
    attributes: dict[str, list[str] | dict[str, Any]]
    among: list[str]
    exclude_reference: bool
    exact: bool
    rerank_depth: int | None
    session: bool
    boost: Mapping[str, Any] | None
    near_duplicates: Literal["show", "hide"]
    group_by: str | None
    diversity: float


Model = TypeVar("Model", bound=QueryRequest)


def read(model: type[Model], search: QueryFields) -> tuple[Model, bytes | None]:
    """Check a query; return it, and the bytes of its `image`. Raises DataError."""
    fields: dict[str, Any] = dict(search)
    image = fields.pop("image", None)
    if isinstance(earlier := fields.get("reference"), SearchResponse):
        if not earlier.history:
            raise DataError("the earlier answer has no history", do="search it with session=True")
        fields["reference"] = earlier.history
    if isinstance(fields.get("images"), Sequence):
        fields["images"] = [_weighted(one) for one in fields["images"]]
    request = checked(model, fields)
    if image is None:
        return request, None
    for name in request.given:
        got = f"image and {name}"
        raise DataError("the search is impossible", got=got, expected="one of them")
    return request, file(image)


def _weighted(one: Any) -> Any:
    """Return one of several images with its file in base64. Raises DataError."""
    if not isinstance(one, Mapping) or one.get("image") is None:
        return one
    others = {name: value for name, value in one.items() if name != "image"}
    if others.get("image_base64") is not None:
        got = "image and image_base64"
        raise DataError("the search is impossible", got=got, expected="one of them")
    return {**others, "image_base64": base64.b64encode(file(one["image"])).decode()}


def as_json(model: type[Model], search: QueryFields) -> Model:
    """Return the query with its image in base64, as a batch needs it. Raises DataError."""
    request, image = read(model, search)
    if image is not None:
        request.image_base64 = base64.b64encode(image).decode()
    return request


def body(request: BaseModel) -> dict[str, Any]:
    """Return the fields that were set: the service has its own defaults for the others."""
    return request.model_dump(mode="json", exclude_unset=True, by_alias=True)


def content(body: dict[str, Any], image: bytes | None) -> dict[str, Any]:
    """Return the arguments of httpx for a body: JSON, or a form with the file `image`."""
    if image is None:
        return {"json": body}
    fields = {name: value for name, value in body.items() if value is not None}
    for name in ("attributes", "images", "boost"):
        if name in fields:
            fields[name] = json.dumps(fields[name])
    return {"data": fields, "files": {"image": ("image", image)}}


def of_user(user: str) -> dict[str, Any]:
    """Return the arguments of httpx that name who asks. Raises DataError."""
    if not user.isascii() or not user.isprintable() or user != user.strip():
        expected = "printable ASCII without spaces around it, such as a hash of the name"
        raise DataError("a header cannot carry the user", got=repr(user), expected=expected)
    return {"headers": {USER: user}} if user else {}


def checked(model: type[Checked], fields: Mapping[str, Any]) -> Checked:
    """Return a search, or a part of one, as a model. Raises DataError."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        what, do = "the search is impossible", f"see raycd.api.{model.__name__}"
        raise DataError(what, got=wrong(error), do=do) from error


def wrong(error: ValidationError) -> str:
    """Describe each wrong field."""
    details = [
        (".".join(map(str, detail["loc"])), detail["msg"])
        for detail in error.errors(include_url=False)
    ]
    return "; ".join(
        f"{field}: {why}" if field else why.removeprefix("Value error, ") for field, why in details
    )


def file(image: str | PathLike[str] | bytes, root: str | PathLike[str] = "") -> bytes:
    """Return the bytes of an image; a relative file starts from `root`. Raises DataError."""
    if isinstance(image, bytes):
        return image
    try:
        return Path(root, image).read_bytes()
    except (OSError, TypeError, ValueError) as error:  # not a path; a path with a NUL
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot read the image {str(image)!r}",
            got=reason,
            expected=f"an image file{_start(image, root)}",
        ) from error


def _start(image: object, root: str | PathLike[str]) -> str:
    """Describe where the path started, if it was `root`."""
    if isinstance(image, str) and "://" in image:
        return " of this machine: the client fetches no URIs"
    if str(root) == "" or not isinstance(image, str | PathLike) or Path(image).is_absolute():
        return ""
    folder = Path(root).absolute()
    return f" in {folder}; where paths start from another folder, name it by --root (root=)"
