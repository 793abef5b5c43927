"""What a request must be before any route sees it: in UTF-8, not compressed, with parameters that
the route knows.
"""

from __future__ import annotations

from collections import Counter
from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import problems

REPEATED = ("category", "attribute")  # parameters of which there may be several


class WellFormed:
    """ASGI middleware: 400 where the address is not UTF-8, 415 where the body is compressed; HEAD
    becomes GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = _refused(scope)
        if refused is not None:
            await problems.response(refused)(scope, receive, send)
        elif scope["method"] == "HEAD":
            asked = {**scope, "method": "GET"}
            try:
                await self.app(asked, receive, _without_body(send))
            finally:
                scope["route"] = asked.get("route")  # for whoever counts by it
        else:
            await self.app(scope, receive, send)


def _refused(scope: Scope) -> problems.ProblemError | None:
    # A server puts U+FFFD in the place of what it cannot decode: then two ids would be one.
    for part, raw in (
        ("path", scope.get("raw_path") or b""),
        ("query", scope.get("query_string") or b""),
    ):
        try:
            unquote_to_bytes(raw).decode()
        except UnicodeDecodeError as error:
            return problems.ProblemError(
                400,
                f"the {part} of the address is not UTF-8 (byte {error.start}): percent-encode it as UTF-8",
            )
    coding = Headers(scope=scope).get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        return problems.ProblemError(
            415,
            f"the body is compressed (Content-Encoding: {coding[:40]}), and only plain ones are read: send it as it is",
            headers={"Accept-Encoding": "identity"},
        )
    return None


def _without_body(send: Send) -> Send:
    async def headers_alone(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return headers_alone


def known_parameters(request: Request) -> None:
    """A dependency of routes. Raises ProblemError for parameters of the query that the route does
    not know.
    """
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    times = Counter(name for name, _ in request.query_params.multi_items())
    wrong = [
        {
            "loc": ("query", name),
            "msg": f"there is no such parameter{problems.nearest(name, known)}",
        }
        if name not in known
        else {"loc": ("query", name), "msg": f"is given {count} times: give it once"}
        for name, count in times.items()
        if name not in known or (count > 1 and name not in REPEATED)
    ]
    if wrong:
        raise problems.invalid(wrong)
