"""What a search's body says, as JSON or as a form: a SearchRequest within the limits, and the image's bytes."""

import base64
import binascii
import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile

from raycd.api import SearchRequest
from serve import problems
from serve.args import ServeArgs

JSON, FORM, URLENCODED = "application/json", "multipart/form-data", "application/x-www-form-urlencoded"
Model = TypeVar("Model", bound=BaseModel)

OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": SearchRequest.model_json_schema(),
                "examples": {
                    "gallery": {"value": {"image_id": "DV000010", "text": "is red with long sleeves", "top_k": 5}},
                    "text": {"value": {"text": "a blue dress", "category": ["dress"]}},
                },
            },
            FORM: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "string", "format": "binary", "description": "the reference image's file"},
                        "text": {"type": "string", "description": "what should differ: is blue, with long sleeves"},
                        "top_k": {"type": "integer", "minimum": 1},
                    },
                    "additionalProperties": {
                        "type": "string",
                        "description": "every field of SearchRequest; attributes as JSON, category may repeat",
                    },
                }
            },
        },
    }
}


async def read(request: Request, args: ServeArgs) -> tuple[SearchRequest, bytes | None]:
    """The request's search and the file of its image, where one was sent. Raises ProblemError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON or kind.endswith("+json"):
        return of_json(await parsed(request), args)
    if kind in (FORM, URLENCODED):
        try:
            async with request.form(max_files=1, max_fields=64, max_part_size=args.max_body_bytes) as form:
                return await _of_form(form, args)
        except UnicodeError as error:
            raise problems.ProblemError(400, "the form's charset cannot be read: send UTF-8") from error
    raise problems.ProblemError(
        415,
        f"the content type is {kind or 'not given'!r}: send {JSON} or {FORM}",
        headers={"Accept": f"{JSON}, {FORM}"},
    )


async def parsed(request: Request) -> Any:
    """The JSON of a body. Raises ProblemError where it is none."""
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise problems.ProblemError(400, f"the body is not JSON: {error}") from error


def of_json(body: Any, args: ServeArgs) -> tuple[SearchRequest, bytes | None]:
    """The same of a body that is JSON, or of one search of a batch. Raises ProblemError."""
    return check(validated(SearchRequest, body), None, args)


async def _of_form(form: FormData, args: ServeArgs) -> tuple[SearchRequest, bytes | None]:
    fields: dict[str, Any] = {}
    image: bytes | None = None
    for name, value in form.multi_items():
        if name == "image":
            if not isinstance(value, UploadFile):
                raise problems.invalid([{"loc": ("image",), "msg": "send it as a file, or its base64 as image_base64"}])
            image = await value.read()
        elif isinstance(value, UploadFile):
            raise problems.invalid([{"loc": (name,), "msg": "only image is a file"}])
        elif name == "category":
            fields.setdefault(name, []).append(value)
        elif name == "attributes":
            fields[name] = _attributes(value)
        else:
            fields[name] = value
    return check(validated(SearchRequest, fields), image, args)


def _attributes(text: str) -> Any:
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise problems.invalid([{"loc": ("attributes",), "msg": f"is not JSON: {error}"}]) from error


def validated(model: type[Model], body: Any) -> Model:
    """The body as a request. Raises ProblemError with the fields that are wrong."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise problems.invalid(error.errors(include_url=False, include_context=False, include_input=False)) from error


def check(asked: SearchRequest, image: bytes | None, args: ServeArgs) -> tuple[SearchRequest, bytes | None]:
    """The same, with the image's bytes whichever way they came. Raises ProblemError beyond a limit."""
    if image is not None and (asked.image_id or asked.image_base64 or asked.image_url):
        raise problems.invalid([{"loc": ("image",), "msg": "the image is given in two ways: give one of them"}])
    given = image is not None or asked.image_id or asked.image_base64 is not None or asked.image_url
    if not given and not asked.text:
        raise problems.invalid(
            [{"loc": ("text",), "msg": "the search has neither an image nor a text: give one or both"}]
        )
    _check_weights(asked, given=bool(given))
    filters = len(asked.category) + sum(map(len, asked.attributes.values()))
    if filters > args.max_filters:
        raise problems.beyond("max_filters", "too many filters", got=filters, most=args.max_filters, do="ask for fewer")
    for name in ("text", "negative_text"):
        length = len(getattr(asked, name))
        if length > args.max_text:
            got = f"{length} characters"
            raise problems.beyond(
                "max_text", f"{name} is too long", got=got, most=args.max_text, field=name, do="shorten it"
            )
    if (asked.top_k or 0) > args.max_top_k:
        do = "page with offset"
        raise problems.beyond(
            "max_top_k", "too many results", got=asked.top_k, most=args.max_top_k, field="top_k", do=do
        )
    if asked.offset > args.max_offset:
        raise problems.beyond(
            "max_offset",
            "offset is too great",
            got=asked.offset,
            most=args.max_offset,
            field="offset",
            do="filter instead",
        )
    if asked.image_url and not args.image_url:
        raise problems.ProblemError(403, "this service fetches no images by URL (image_url): send the image itself")
    return asked, _decoded(asked.image_base64) if asked.image_base64 is not None else image


def _check_weights(asked: SearchRequest, *, given: bool) -> None:
    """What alone is asked for must count."""
    alone = "image_weight" if not asked.text else "text_weight" if not given else ""
    if alone and getattr(asked, alone) == 0:
        raise problems.invalid([{"loc": (alone,), "msg": "is 0 and there is nothing else to search by: give more"}])


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise problems.invalid([{"loc": ("image_base64",), "msg": "is not base64"}]) from error
