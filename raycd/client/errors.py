"""What can go wrong between client and service.

RaycdError
├── ServiceError            the service refuses, does not answer, or something else answers in its place
├── DataError               the search or image is impossible, or its file cannot be read: nothing was sent
└── ConfigError             the url or the API key is impossible: nothing was sent
"""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from raycd.api import Problem
from raycd.errors import RaycdError

PROBLEM = "application/problem+json"
_SHOWN = 300  # characters of another's text in a message of ours


class ServiceError(RaycdError):
    """The service refused a request, did not answer, or its answer cannot be read."""

    status: int | None = None
    """HTTP status; None where nothing answered."""
    problem: Problem | None = None
    """What the service says; None where something else answered, such as a proxy."""
    retry_after: float | None = None
    """Seconds that the service asks to wait."""

    def __reduce__(self) -> tuple[object, ...]:
        return (*super().__reduce__(), self.__dict__)


def refused(
    response: httpx.Response, service: str, *, tries: int, retry_after: float | None
) -> ServiceError:
    """The error of a response that is none of success; `service` is its url without a password."""
    problem = _problem(response)
    request = f"{response.request.method} {_plain(response.request.url.path)}"
    error = ServiceError(
        f"{service} answered {response.status_code} {_plain(response.reason_phrase)} to {request}",
        got=_body(response) if problem is None else _plain(problem.detail),
        expected="a problem document, as a raycd service answers" if problem is None else None,
        do=_remedy(response, problem, tries, retry_after),
    )
    error.status, error.problem, error.retry_after = response.status_code, problem, retry_after
    return error


def unreachable(failure: httpx.RequestError, service: str, *, tries: int) -> ServiceError:
    """The error of a request that got no answer."""
    if isinstance(failure, httpx.TimeoutException) and not isinstance(
        failure, httpx.ConnectTimeout
    ):
        return ServiceError(
            f"{service} did not answer in time", do="raise the timeout, or see the service's log"
        )
    if isinstance(failure, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
        remedy = "see the service's log; a body that is too large may end a connection, too"
        what = f"{service} ended the connection"
    else:
        remedy = "start the service (make serve), or give its url (url=, --url or RAYCD_URL)"
        what = f"no service answers at {service}"
    return ServiceError(
        what, got=f"{_plain(str(failure)) or type(failure).__name__}{_times(tries)}", do=remedy
    )


def unreadable(response: httpx.Response, service: str, *, got: str | None = None) -> ServiceError:
    """The error of an answer that succeeds and is not what was asked for; `got` where its body was
    not read at once.
    """
    error = ServiceError(
        f"the answer of {service} to {_plain(response.request.url.path)} cannot be read",
        got=got or _body(response),
        expected="the answer of a raycd service of this client's version",
        do="check the url, and the versions on both sides",
    )
    error.status = response.status_code
    return error


def cut_off(failure: httpx.RequestError | None, service: str, *, tries: int) -> ServiceError:
    """The error of an import whose answer ends before every line was told, try after try."""
    return ServiceError(
        f"{service} ended its answer to an import before the last line{_times(tries)}",
        got=failure and _plain(str(failure)),
        do="see the service's log, then import the same again",
    )


def printable(text: str) -> str:
    """The text in one line, without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _plain(text: str) -> str:
    line = " ".join(printable(text).split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."


def _problem(response: httpx.Response) -> Problem | None:
    if media_type(response) != PROBLEM:
        return None
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None


def _body(response: httpx.Response) -> str:
    """What a body is; its text only where it is a plain one."""
    kind = media_type(response)
    text = f": {_plain(response.text)}" if kind == "text/plain" and response.text.strip() else ""
    return f"{len(response.content):,} bytes of {_plain(kind) or 'no stated type'}{text}"


def media_type(response: httpx.Response) -> str:
    """The content type without its parameters."""
    kind: str = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower()


def _remedy(
    response: httpx.Response, problem: Problem | None, tries: int, retry_after: float | None
) -> str | None:
    """What to do about a status; a problem's detail says it itself, mostly."""
    if response.status_code in (429, 503):
        later = "" if retry_after is None else f" in {retry_after:.0f} s, as it asks"
        return f"try again later{later}{_times(tries)}"
    if response.status_code == 401:
        return (
            "give the API key of the service: api_key= in Python, RAYCD_API_KEY on the command line"
        )
    if response.is_redirect:
        return f"use the url that it points to: {_plain(_place(response))}"
    if problem is None:
        return f"check the url: a proxy, or another server, may have answered{_times(tries)}"
    return "see the service's log" if response.is_server_error else None


def _place(response: httpx.Response) -> str:
    """Where a redirect leads, without a password."""
    try:
        return str(
            response.url.join(response.headers.get("location", "")).copy_with(
                userinfo=b"", query=None
            )
        )
    except httpx.InvalidURL:
        return "nowhere"


def _times(tries: int) -> str:
    return f" (tried {tries} times)" if tries > 1 else ""
