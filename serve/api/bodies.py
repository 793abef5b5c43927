"""The fields of a request's body, be it JSON or a form, before anybody knows what they mean."""

from __future__ import annotations

import base64
import codecs
import re
import string
from collections.abc import Iterable, Sequence
from contextlib import suppress
from email.message import Message
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from raycd.api import SearchRequest
from raycd.filters import CONDITION, Condition
from serve.api import problems
from serve.api.intake import check_values
from serve.args import ServeArgs

JSON, FORM = "application/json", "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"

Model = TypeVar("Model", bound=BaseModel)
Pairs = Sequence[tuple[str, str | UploadFile]]

# What a form's text is decoded with, as `codecs.lookup` names it. Python has slower codecs: that of
# punycode takes minutes for a text of a megabyte.
_CHARSETS = ("utf-8", "ascii", "iso8859-1", "cp1252")
_DATA_URL = re.compile(r"data:[^,]*;\s*base64\s*,", re.IGNORECASE)
_NO_FILE = (
    "is not a file: send it as one, with a filename (filename* alone is not read), "
    "or send its base64 as image_base64"
)
# Fields of a form that repeat, and those that are JSON
REPEATED, AS_JSON = ("category", "among"), ("attributes", "images", "boost")
# Fields of a form beside those. The form of an image has fewer.
_OTHERS = len(SearchRequest.model_fields)


def content_type(request: Request) -> str:
    """Return the content type in small letters without parameters; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    """Return whether a content type is JSON's, or one made of it."""
    return kind == JSON or kind.endswith("+json")


async def read(request: Request, args: ServeArgs) -> tuple[Any, bytes | None]:
    """Return the fields, and the file `image` where it is a form that has one.

    Raises ProblemError.
    """
    kind = content_type(request)
    if is_json(kind):
        return await parsed(request), None
    if kind in (FORM, URLENCODED):
        # An image is put, all else searches.
        limit = "max_attributes" if request.method == "PUT" else "max_filters"
        most: int = getattr(args, limit)
        try:
            if kind == URLENCODED:
                return await _of_form(_urlencoded(await request.body(), most + _OTHERS), most)
            return await _multipart(request, most, args.max_body_bytes)
        except _TooManyFields as error:
            do, got = "give fewer categories", f"more than {most + _OTHERS}"
            raise problems.beyond(limit, "too many fields", got=got, most=most, do=do) from error
        except UnicodeError as error:
            raise problems.ProblemError(
                400, "the form's text is not in its charset: send UTF-8"
            ) from error
    raise unsupported(kind, JSON, FORM)


def unsupported(kind: str, *taken: str) -> problems.ProblemError:
    """Return the error of a content type, "" where there is none, that is none of those taken."""
    return problems.ProblemError(
        415,
        f"the content type is {kind or 'not given'!r}: send {' or '.join(taken)}",
        headers={"Accept": ", ".join(taken)},
    )


class _TooManyFields(Exception):
    """A form has more fields than it may."""


async def parsed(request: Request) -> Any:
    """Return what the body says as JSON. Raises ProblemError where it is not JSON."""
    try:
        return from_json((await request.body()).removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise problems.ProblemError(400, f"the body is not JSON: {error}") from error


def _urlencoded(body: bytes, most: int) -> Pairs:
    if body.lstrip()[:1] in (b"{", b"["):  # as `curl -d` sends it of itself
        raise problems.ProblemError(
            415,
            f"the body looks like JSON, its content type is {URLENCODED}: "
            f"send the header Content-Type: {JSON}",
        )
    if body.count(b"&") >= most:
        raise _TooManyFields
    return parse_qsl(body.decode(), keep_blank_values=True, errors="strict")


async def _multipart(request: Request, most: int, size: int) -> tuple[dict[str, Any], bytes | None]:
    # Starlette reads text that is not in the form's charset as Latin-1 without a word. Where the
    # charset is Latin-1, it gives back every byte, and we decode them.
    header = Message()
    header["content-type"] = request.headers["content-type"]
    charset = _codec(str(header.get_param("charset", "utf-8")))
    header.set_param("charset", "latin-1")
    headers = [(b"content-type", header["content-type"].encode("latin-1"))]
    body = await request.body()

    async def whole() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    raw = Request({**request.scope, "headers": headers}, whole)
    try:
        async with raw.form(max_files=1, max_fields=most + _OTHERS, max_part_size=size) as form:
            return await _of_form(
                [
                    # An image that is not a file is refused as such, whatever its text is.
                    (
                        _text(name, charset),
                        value if _is_picture(name, value) else _text(str(value), charset),
                    )
                    for name, value in form.multi_items()
                ],
                most,
            )
    except HTTPException as error:
        if str(error.detail).startswith("Too many fields"):  # as Starlette says it
            raise _TooManyFields from error
        raise


def _is_picture(name: str, value: str | UploadFile) -> bool:
    return name == "image" or isinstance(value, UploadFile)


def _codec(charset: str) -> str:
    """Return the name of a form's charset. Raises ProblemError where it is none of _CHARSETS."""
    with suppress(LookupError, ValueError):  # ValueError: a name with NUL
        if (name := codecs.lookup(charset).name) in _CHARSETS:
            return name
    raise problems.ProblemError(400, "the form's charset is not known: send UTF-8")


def _text(latin: str, charset: str) -> str:
    return latin.encode("latin-1").decode(charset)


async def _of_form(pairs: Pairs, most: int) -> tuple[dict[str, Any], bytes | None]:
    # What is JSON has about `most` values, as a body of JSON has.
    fields: dict[str, Any] = {}
    image: bytes | None = None
    for name, value in pairs:
        if name == "image":
            if not isinstance(value, UploadFile):
                raise problems.wrong_field("image", _NO_FILE)
            if value.filename or value.size:  # a browser sends both empty where no file was chosen
                image = await value.read()
        elif isinstance(value, UploadFile):
            raise problems.wrong_field(name, "only image is a file")
        elif name in REPEATED:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise problems.wrong_field(name, "is given more than once: give it once")
        elif name in AS_JSON:
            if value.strip():  # an empty one is absent
                check_values(value.encode(), most)
                fields[name] = from_text(name, value)
        else:
            fields[name] = value
    return fields, image


def from_text(name: str, text: str) -> Any:
    """Return a field of a form or an address that is JSON. Raises ProblemError."""
    try:
        return from_json(text) if text.strip() else {}
    except ValueError as error:
        raise problems.wrong_field(name, f"is not JSON: {error}") from error


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a model with its parts in it, for the service's description.

    A reference to a part would be looked for in the whole description.
    """
    whole = model.model_json_schema(ref_template="{model}")
    parts = whole.pop("$defs", {})

    def put_in(node: Any) -> Any:
        if isinstance(node, list):
            return [put_in(child) for child in node]
        if not isinstance(node, dict):
            return node
        if (name := node.get("$ref")) is not None:
            return put_in(parts[name])
        return {key: put_in(child) for key, child in node.items()}

    found: dict[str, Any] = put_in(whole)
    return found


def validated(model: type[Model], body: Any) -> Model:
    """Return the body as a request. Raises ProblemError with the fields that are wrong."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise refused(model, error) from error


def refused(model: type[BaseModel], error: ValidationError) -> problems.ProblemError:
    """Return the problem of wrong fields; of an unknown one it says which was meant."""
    details = error.errors(include_url=False, include_context=False, include_input=False)

    def unknown(loc: tuple[object, ...]) -> str:
        known: Iterable[str] = model.model_fields if len(loc) == 1 else ()
        if CONDITION in loc:
            known = [field.alias or name for name, field in Condition.model_fields.items()]
        return f"there is no such field{problems.nearest(str(loc[-1]), known)}"

    return problems.invalid(
        [
            {**detail, "msg": unknown(detail["loc"])}
            if detail["type"] == "extra_forbidden"
            else detail
            for detail in details[: problems.MAX_ERRORS]
        ]
    )


def decoded(text: str, *, field: str) -> bytes:
    """Return the bytes of base64, which may be in lines or a data: URL. Raises ProblemError."""
    whole = text.strip()
    found = _DATA_URL.match(whole)
    if found is None and whole[:5].lower() == "data:":
        raise problems.wrong_field(field, "is a data: URL without base64: send data:...;base64,...")
    try:
        written = whole[found.end() if found else 0 :].encode("ascii")
        return base64.b64decode(written.translate(None, string.whitespace.encode()), validate=True)
    except ValueError as error:
        raise problems.wrong_field(field, "is not base64") from error
