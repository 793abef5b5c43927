"""What a request must be before any route sees it: UTF-8, not compressed, of known parameters."""

from __future__ import annotations

from collections import Counter
from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import Scope

from serve.api import problems
from serve.api.problems import ProblemError

REPEATED = ("category", "attribute")  # parameters of which there may be several


def check(scope: Scope) -> None:
    """Raise ProblemError: 400 where the URL is not UTF-8, 415 where the body is compressed."""
    # A server replaces what it cannot decode by U+FFFD: then two ids would be one.
    for part, raw in (
        ("path", scope.get("raw_path") or b""),
        ("query", scope.get("query_string") or b""),
    ):
        try:
            unquote_to_bytes(raw).decode()
        except UnicodeDecodeError as error:
            raise ProblemError(
                400,
                f"the {part} of the address is not UTF-8 (byte {error.start}): "
                "percent-encode it as UTF-8",
            ) from error
    coding = Headers(scope=scope).get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise ProblemError(
            415,
            f"the body is compressed (Content-Encoding: {coding[:40]}), and only plain ones are "
            "read: send it as it is",
            headers={"Accept-Encoding": "identity"},
        )


async def known_parameters(request: Request) -> None:
    """Raise ProblemError for parameters of the query that the route does not know.

    A dependency of routes; asynchronous, or FastAPI would run it in a thread.
    """
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    times = Counter(name for name, _ in request.query_params.multi_items())
    wrong = [
        {
            "loc": (name,),
            "msg": f"there is no such parameter{problems.nearest(name, known)}",
        }
        if name not in known
        else {"loc": (name,), "msg": f"is given {count} times: give it once"}
        for name, count in times.items()
        if name not in known or (count > 1 and name not in REPEATED)
    ]
    if wrong:
        raise problems.invalid(wrong)
