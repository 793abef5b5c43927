"""What a request's body says, as JSON or as a form, before anybody knows what it means."""

import base64
import binascii
import codecs
import re
from collections.abc import Sequence
from email.message import Message
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from raycd.api import SearchRequest
from serve import problems
from serve.args import ServeArgs

JSON, FORM, URLENCODED = (
    "application/json",
    "multipart/form-data",
    "application/x-www-form-urlencoded",
)
Model = TypeVar("Model", bound=BaseModel)
Pairs = Sequence[tuple[str, str | UploadFile]]

_DATA_URL = re.compile(r"data:[^,]*;\s*base64\s*,", re.IGNORECASE)
_NO_FILE = "is no file: send it as one, with a filename (filename* alone is not read), or send its base64 as image_base64"

_OTHERS = len(
    SearchRequest.model_fields
)  # fields of a form beside `category`, which repeats; an image has fewer


def content_type(request: Request) -> str:
    """What the request says its body is, without parameters, in small letters; empty: nothing."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    """Whether a content type is JSON's, or one made of it."""
    return kind == JSON or kind.endswith("+json")


async def read(request: Request, args: ServeArgs) -> tuple[Any, bytes | None]:
    """The request's fields, and its file `image` where it is a form that has one. Raises
    ProblemError.
    """
    kind = content_type(request)
    if is_json(kind):
        return await parsed(request), None
    if kind in (FORM, URLENCODED):
        limit = (
            "max_attributes" if request.method == "PUT" else "max_filters"
        )  # an image, or a search
        most: int = getattr(args, limit)
        try:
            if kind == URLENCODED:
                return await _of_form(_urlencoded(await request.body(), most + _OTHERS))
            return await _multipart(request, most + _OTHERS, args.max_body_bytes)
        except _TooManyFields as error:
            do, got = "give fewer categories", f"more than {most + _OTHERS}"
            raise problems.beyond(limit, "too many fields", got=got, most=most, do=do) from error
        except UnicodeError as error:
            raise problems.ProblemError(
                400, "the form's text is not in its charset: send UTF-8"
            ) from error
    raise problems.ProblemError(
        415,
        f"the content type is {kind or 'not given'!r}: send {JSON} or {FORM}",
        headers={"Accept": f"{JSON}, {FORM}"},
    )


class _TooManyFields(Exception):
    """A form has more fields than it may."""


async def parsed(request: Request) -> Any:
    """The JSON of a body, which has no half of a character in it. Raises ProblemError where it is
    none.
    """
    try:
        return from_json((await request.body()).removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise problems.ProblemError(400, f"the body is not JSON: {error}") from error


def _urlencoded(body: bytes, most: int) -> Pairs:
    if body.lstrip()[:1] in (b"{", b"["):  # as `curl -d` sends it without being told
        raise problems.ProblemError(
            415,
            f"the body looks like JSON, its content type is {URLENCODED}: send the header Content-Type: {JSON}",
        )
    if body.count(b"&") >= most:
        raise _TooManyFields
    return parse_qsl(body.decode(), keep_blank_values=True, errors="strict")


async def _multipart(request: Request, most: int, size: int) -> tuple[dict[str, Any], bytes | None]:
    # Starlette takes text that is not in the form's charset for Latin-1. Told that it is, it gives
    # back every byte.
    header = Message()
    header["content-type"] = request.headers["content-type"]
    charset = str(header.get_param("charset", "utf-8"))
    header.set_param("charset", "latin-1")
    headers = [(b"content-type", header["content-type"].encode("latin-1"))]
    body = await request.body()

    async def whole() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    raw = Request({**request.scope, "headers": headers}, whole)
    try:
        async with raw.form(max_files=1, max_fields=most, max_part_size=size) as form:
            return await _of_form(
                [
                    # An image that came as a field is refused as one, whatever its bytes are as
                    # text.
                    (
                        _text(name, charset),
                        value if _is_picture(name, value) else _text(str(value), charset),
                    )
                    for name, value in form.multi_items()
                ]
            )
    except HTTPException as error:
        if str(error.detail).startswith("Too many fields"):  # as Starlette says it
            raise _TooManyFields from error
        raise


def _is_picture(name: str, value: str | UploadFile) -> bool:
    return name == "image" or isinstance(value, UploadFile)


def _text(latin: str, charset: str) -> str:
    try:
        return latin.encode("latin-1").decode(charset)
    except LookupError as error:
        raise UnicodeError(f"no charset {charset}") from error


async def _of_form(pairs: Pairs) -> tuple[dict[str, Any], bytes | None]:
    fields: dict[str, Any] = {}
    image: bytes | None = None
    for name, value in pairs:
        if name == "image":
            if not isinstance(value, UploadFile):
                raise problems.invalid([{"loc": ("image",), "msg": _NO_FILE}])
            if value.filename or value.size:  # a browser sends both empty where no file was chosen
                image = await value.read()
        elif isinstance(value, UploadFile):
            raise problems.invalid([{"loc": (name,), "msg": "only image is a file"}])
        elif name == "category":
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise problems.invalid(
                [{"loc": (name,), "msg": "is given more than once: give it once"}]
            )
        else:
            fields[name] = _attributes(value) if name == "attributes" else value
    return fields, image


def _attributes(text: str) -> Any:
    try:
        return from_json(text) if text.strip() else {}
    except ValueError as error:
        raise problems.invalid(
            [{"loc": ("attributes",), "msg": f"is not JSON: {error}"}]
        ) from error


def validated(model: type[Model], body: Any) -> Model:
    """The body as a request. Raises ProblemError with the fields that are wrong."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise refused(model, error) from error


def refused(model: type[BaseModel], error: ValidationError) -> problems.ProblemError:
    """The problem of fields that are wrong; of one that nobody knows it tells which was meant."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return problems.invalid(
        [
            {
                **detail,
                "msg": f"there is no such field{problems.nearest(str(detail['loc'][-1]), model.model_fields)}",
            }
            if detail["type"] == "extra_forbidden"
            else detail
            for detail in details[: problems.TOLD]
        ]
    )


def decoded(text: str, *, field: str) -> bytes:
    """The bytes that base64 stands for, that of a data: URL included; it may be in lines. Raises
    ProblemError.
    """
    whole = text.strip()
    found = _DATA_URL.match(whole)
    if found is None and whole[:5].lower() == "data:":
        raise problems.invalid(
            [{"loc": (field,), "msg": "is a data: URL without base64: send data:...;base64,..."}]
        )
    try:
        return base64.b64decode(
            "".join(whole[found.end() if found else 0 :].split()), validate=True
        )
    except (binascii.Error, ValueError) as error:
        raise problems.invalid([{"loc": (field,), "msg": "is not base64"}]) from error
