"""The body of a query: a SearchRequest or another within the limits, and its images' bytes."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request

from raycd.api import QueryRequest, SearchRequest
from raycd.api.requests import ImagePart
from serve.api import bodies, problems
from serve.args import ServeArgs
from serve.engine.queries import QueryImage

Asked = TypeVar("Asked", bound=QueryRequest)

_FIELDS = 1000  # names of fields that are looked at, known or not


def _openapi(model: type[QueryRequest], examples: dict[str, Any]) -> dict[str, Any]:
    """Return what OpenAPI says of a query's body: JSON, or a form with the file `image`."""
    form: dict[str, dict[str, Any]] = {
        "image": {
            "type": "string",
            "format": "binary",
            "description": "the reference image's file",
        },
        "text": {
            "type": "string",
            "description": "what should differ: is blue, with long sleeves",
        },
    }
    if "top_k" in model.model_fields:
        form["top_k"] = {"type": "integer", "minimum": 1}
    return {
        "requestBody": {
            "required": True,
            "content": {
                bodies.JSON: {
                    "schema": bodies.schema(model),
                    "examples": {name: {"value": value} for name, value in examples.items()},
                },
                bodies.FORM: {
                    "schema": {
                        "type": "object",
                        "properties": form,
                        "additionalProperties": {
                            "type": "string",
                            "description": f"every field of {model.__name__}; "
                            f"{' and '.join(bodies.AS_JSON)} as JSON, "
                            f"{' and '.join(bodies.REPEATED)} may repeat",
                        },
                    }
                },
            },
        }
    }


_GALLERY = {"image_id": "DV000010", "text": "is red with long sleeves"}
_SEVERAL = {
    "images": [{"image_id": "DV000010"}, {"image_id": "DV000012", "weight": -0.5}],
    "text": "is red",
}
OPENAPI = _openapi(
    SearchRequest,
    {
        "gallery": {**_GALLERY, "top_k": 5},
        "text": {"text": "a blue dress", "category": ["dress"]},
        "several": _SEVERAL,
    },
)
EMBED_OPENAPI = _openapi(QueryRequest, {"gallery": _GALLERY, "several": _SEVERAL})

Read = tuple[Asked, list[QueryImage]]
"""A query within the limits, and its images."""


async def read(model: type[Asked], request: Request, args: ServeArgs) -> Read[Asked]:
    """Return the query of a request, its images whichever way they came. Raises ProblemError."""
    fields, image = await bodies.read(request, args)
    return of_json(model, fields, args, image)


def of_json(
    model: type[Asked], body: Any, args: ServeArgs, image: bytes | None = None
) -> Read[Asked]:
    """Return the same of the fields of a body, and of the file beside it. Raises ProblemError."""
    check_filters(body, args.max_filters)
    asked = bodies.validated(model, body)
    if image is not None and asked.given:
        raise problems.wrong_field("image", "the image is given in two ways: give one of them")
    _check(asked, args)
    sent = _sent(asked, image, args)
    _check_whole(asked, sent)
    return asked, sent


def _check(asked: QueryRequest, args: ServeArgs) -> None:
    """Raise ProblemError where a text or a number is beyond a limit."""
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


def _sent(asked: QueryRequest, image: bytes | None, args: ServeArgs) -> list[QueryImage]:
    """Return the images of a query. Raises ProblemError."""
    if image is not None:
        return [QueryImage(file=image)]
    if len(asked.images) > args.max_images:
        raise problems.beyond(
            "max_images",
            "too many images",
            got=len(asked.images),
            most=args.max_images,
            field="images",
            do="give fewer",
        )
    given: list[tuple[str, ImagePart, float]] = [
        (f"images.{at}.", one, one.weight) for at, one in enumerate(asked.images)
    ]
    if asked.given and not given:
        given = [("", asked, 1.0)]
    return [_sent_image(one, weight, where, args) for where, one, weight in given]


def _sent_image(one: ImagePart, weight: float, where: str, args: ServeArgs) -> QueryImage:
    if one.image_url and not args.image_url:
        raise problems.ProblemError(
            403, "this service fetches no images by URL (image_url): send the image itself"
        )
    field, file = f"{where}image_base64", one.image_base64
    return QueryImage(
        one.image_id,
        one.image_url,
        None if file is None else bodies.decoded(file, field=field),
        weight,
    )


def _check_whole(asked: QueryRequest, sent: list[QueryImage]) -> None:
    """Raise ProblemError where there is nothing to search by."""
    shown = asked.reference is not None or any(one.weight > 0 for one in sent)
    if not shown and not asked.text:
        raise problems.wrong_field(
            "text",
            "no image of the search has a weight above 0, and it has no text: give one or both"
            if sent
            else "the search has neither an image nor a text: give one or both",
        )
    alone = "image_weight" if not asked.text else "text_weight" if not shown else ""
    # What a history has is known when it is read
    if alone and asked.reference is None and getattr(asked, alone) == 0:
        raise problems.wrong_field(alone, "is 0 and there is nothing else to search by: give more")


def _check_numbers(asked: QueryRequest, args: ServeArgs) -> None:
    for field, what, do in (
        ("top_k", "too many results", "page with offset"),
        ("offset", "offset is too great", "filter instead"),
        ("rerank_depth", "too many candidates to re-rank", "re-rank fewer"),
    ):
        limit, got = f"max_{field}", getattr(asked, field, None) or 0
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
