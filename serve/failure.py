"""Errors of the service itself: what its log says of them, and the 500 that a client gets."""

from __future__ import annotations

import logging
import traceback

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raycd.errors import RaycdError
from raycd.redact import without_passwords, without_paths
from serve import problems

CLOSED = 499  # nginx's status of a request whose client has gone before its answer

_log = logging.getLogger("ray.serve")


def told(error: BaseException) -> str:
    """An error in one line, without path and password: a message of ours, else the type and the
    place in the code.
    """
    if isinstance(error, RaycdError):
        return without_paths(without_passwords(" ".join(str(error).split())))
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in ("raycd", "serve"):
            place = f" at {module}:{line}"
    return f"{type(error).__name__}{place}"


def problem(error: Exception, what: str) -> problems.ProblemError:
    """The problem that an error is to whoever asked. Those that the client did not make are logged,
    after `what`.
    """
    found = problems.of(error)
    if found is None or (found.status_code >= 500 and isinstance(error, RaycdError)):
        _log.error("%s failed: %s", what, told(error))
    return found or problems.ProblemError(
        500, "the service failed on this request; its log says why"
    )


class Failures:
    """ASGI middleware: 500 where nobody has thought of an error; 499, which nobody reads, where the
    client has gone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = scope["type"] != "http"

        async def watched(message: Message) -> None:
            nonlocal began
            began = began or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            if not began:
                await Response(status_code=CLOSED)(scope, receive, send)
        except Exception as error:
            route = getattr(scope.get("route"), "path", "a path of no route")
            answer = problem(error, f"{scope.get('method', '')} {route}")
            if began:  # the client must not take what it has for the whole
                raise ConnectionAbortedError("the answer broke off: its error is logged") from None
            await problems.response(answer)(scope, receive, send)
