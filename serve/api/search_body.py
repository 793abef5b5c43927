"""The body of a search: a SearchRequest within the limits, and the image's bytes."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from raycd.api import SearchRequest
from serve.api import bodies, problems
from serve.args import ServeArgs

_FIELDS = 1000  # names of fields that are looked at, known or not

OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            bodies.JSON: {
                "schema": bodies.schema(SearchRequest),
                "examples": {
                    "gallery": {
                        "value": {
                            "image_id": "DV000010",
                            "text": "is red with long sleeves",
                            "top_k": 5,
                        }
                    },
                    "text": {"value": {"text": "a blue dress", "category": ["dress"]}},
                },
            },
            bodies.FORM: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {
                            "type": "string",
                            "format": "binary",
                            "description": "the reference image's file",
                        },
                        "text": {
                            "type": "string",
                            "description": "what should differ: is blue, with long sleeves",
                        },
                        "top_k": {"type": "integer", "minimum": 1},
                    },
                    "additionalProperties": {
                        "type": "string",
                        "description": "every field of SearchRequest; "
                        "attributes as JSON, category and among may repeat",
                    },
                }
            },
        },
    }
}


async def read(request: Request, args: ServeArgs) -> tuple[SearchRequest, bytes | None]:
    """Return the search and the file of its image, where one was sent. Raises ProblemError."""
    fields, image = await bodies.read(request, args)
    check_filters(fields, args.max_filters)
    return check(bodies.validated(SearchRequest, fields), image, args)


def of_json(body: Any, args: ServeArgs) -> tuple[SearchRequest, bytes | None]:
    """Return the same of one search of a batch. Raises ProblemError."""
    check_filters(body, args.max_filters)
    return check(bodies.validated(SearchRequest, body), None, args)


def check(
    asked: SearchRequest, image: bytes | None, args: ServeArgs
) -> tuple[SearchRequest, bytes | None]:
    """Return the search, its image's bytes whichever way they came.

    Raises ProblemError: it is beyond a limit, or asks for nothing.
    """
    if image is not None and (asked.image_id or asked.image_base64 or asked.image_url):
        raise problems.wrong_field("image", "the image is given in two ways: give one of them")
    given = image is not None or asked.image_id or asked.image_base64 is not None or asked.image_url
    if not given and not asked.text:
        raise problems.wrong_field(
            "text", "the search has neither an image nor a text: give one or both"
        )
    _check_weights(asked, given=bool(given))
    for name in ("text", "negative_text"):
        length = len(getattr(asked, name))
        if length > args.max_text:
            got = f"{length} characters"
            raise problems.beyond(
                "max_text",
                f"{name} is too long",
                got=got,
                most=args.max_text,
                field=name,
                do="shorten it",
            )
    _check_numbers(asked, args)
    if asked.image_url and not args.image_url:
        raise problems.ProblemError(
            403, "this service fetches no images by URL (image_url): send the image itself"
        )
    if asked.image_base64 is not None:
        image = bodies.decoded(asked.image_base64, field="image_base64")
    return asked, image


def _check_numbers(asked: SearchRequest, args: ServeArgs) -> None:
    for field, what, do in (
        ("top_k", "too many results", "page with offset"),
        ("offset", "offset is too great", "filter instead"),
        ("rerank_depth", "too many candidates to re-rank", "re-rank fewer"),
    ):
        limit, got = f"max_{field}", getattr(asked, field) or 0
        if got > getattr(args, limit):
            raise problems.beyond(
                limit, what, got=got, most=getattr(args, limit), field=field, do=do
            )


def check_filters(fields: Any, most: int) -> None:
    """Raise ProblemError for too many, before anything is made of them: each takes time."""
    asked = fields if isinstance(fields, dict) else {}
    if len(asked) > _FIELDS:
        raise problems.invalid([{"loc": (), "msg": f"got {len(asked)} fields, at most {_FIELDS}"}])
    names, attributes = [asked.get(name) for name in bodies.REPEATED], asked.get("attributes")
    count = sum(len(one) for one in names if isinstance(one, list))
    if isinstance(attributes, dict):
        count += sum(map(_compared, attributes.values()))
    if count > most:
        raise problems.beyond(
            "max_filters", "too many filters", got=count, most=most, do="ask for fewer"
        )


def _compared(wanted: Any) -> int:
    """Return with how much an attribute is compared; without values it is compared, too."""
    parts = wanted.values() if isinstance(wanted, dict) else [wanted]
    return max(1, sum(len(part) if isinstance(part, list) else 1 for part in parts))


def _check_weights(asked: SearchRequest, *, given: bool) -> None:
    alone = "image_weight" if not asked.text else "text_weight" if not given else ""
    if alone and getattr(asked, alone) == 0:
        raise problems.wrong_field(alone, "is 0 and there is nothing else to search by: give more")
