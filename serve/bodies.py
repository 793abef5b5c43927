"""What a request's body says, as JSON or as a form, before anybody knows what it means."""

import base64
import binascii
import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from raycd.api import SearchRequest
from serve import problems
from serve.args import ServeArgs

JSON, FORM, URLENCODED = "application/json", "multipart/form-data", "application/x-www-form-urlencoded"
Model = TypeVar("Model", bound=BaseModel)

_OTHERS = len(SearchRequest.model_fields)  # fields of a form beside `category`, which repeats; an image has fewer


async def read(request: Request, args: ServeArgs) -> tuple[Any, bytes | None]:
    """The request's fields, and its file `image` where it is a form that has one. Raises ProblemError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON or kind.endswith("+json"):
        return await parsed(request), None
    if kind in (FORM, URLENCODED):
        limit = "max_attributes" if request.method == "PUT" else "max_filters"  # an image, or a search
        most: int = getattr(args, limit)
        fields = most + _OTHERS
        try:
            async with request.form(max_files=1, max_fields=fields, max_part_size=args.max_body_bytes) as form:
                return await _of_form(form)
        except HTTPException as error:
            if not str(error.detail).startswith("Too many fields"):  # as Starlette says it
                raise
            do = "give fewer categories"
            raise problems.beyond(limit, "too many fields", got=f"more than {fields}", most=most, do=do) from error
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


async def _of_form(form: FormData) -> tuple[dict[str, Any], bytes | None]:
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
    return fields, image


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


def decoded(text: str, *, field: str) -> bytes:
    """The bytes that base64 stands for, that of a data: URL included. Raises ProblemError."""
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise problems.invalid([{"loc": (field,), "msg": "is not base64"}]) from error
