"""Errors of the client.

RaycdError
├── ServiceError    the service refuses or does not answer, or something else answers instead of it
├── DataError       the search or image is impossible, or its file cannot be read; nothing was sent
└── ConfigError     the url or the API key is impossible; nothing was sent
"""

from __future__ import annotations

import ssl

import httpx
from pydantic import ValidationError

from raycd.api import Problem
from raycd.errors import RaycdError, called

PROBLEM = "application/problem+json"
_SHOWN = 300  # characters of a foreign text in our message


class ServiceError(RaycdError):
    """The service refused a request, did not answer, or its answer cannot be read."""

    status: int | None = None
    """HTTP status; None where nothing answered."""
    problem: Problem | None = None
    """The problem that the service describes; None where a proxy, say, has answered."""
    retry_after: float | None = None
    """Seconds to wait, as the service asks."""
    trace_id: str | None = None
    """By which the service's log and traces name the request; None where nothing answered."""


def refused(
    response: httpx.Response, service: str, *, tries: int, retry_after: float | None
) -> ServiceError:
    """Return the error of a response without success; `service` is its url without a password."""
    problem = _problem(response)
    request = f"{response.request.method} {_plain(response.request.url.path)}"
    error = ServiceError(
        f"{service} answered {response.status_code} {_plain(response.reason_phrase)} to {request}",
        got=_body(response) if problem is None else _plain(problem.detail),
        expected="a problem document, as a raycd service answers" if problem is None else None,
        do=_remedy(response, problem, tries, retry_after),
    )
    error.status, error.problem, error.retry_after = response.status_code, problem, retry_after
    error.trace_id = _trace_id(response)
    return error


def unreachable(failure: httpx.RequestError, service: str, *, tries: int) -> ServiceError:
    """Return the error of a request without an answer."""
    connected = not isinstance(failure, httpx.ConnectTimeout)
    if isinstance(failure, httpx.TimeoutException) and connected:
        what = f"{service} did not answer in time"
        return ServiceError(what, do="raise the timeout, or see the service's log")
    if isinstance(failure, httpx.DecodingError):
        what = f"the answer of {service} cannot be decompressed"
        return ServiceError(what, got=_plain(str(failure)), do="check the proxy before the service")
    if is_of_tls(failure):
        return ServiceError(
            f"no TLS connection to {service}",
            got=_plain(str(failure)),
            do="give http:// where the service has no TLS; for an authority of your own set "
            "SSL_CERT_FILE",
        )
    if isinstance(failure, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError):
        remedy = "see the service's log; a body that is too large may end a connection, too"
        what = f"{service} ended the connection"
    else:
        start = called("serve/app.py")
        remedy = (
            f"start the service ({start} --bundle ...), or give its url (url=, --url or RAYCD_URL)"
        )
        what = f"no service answers at {service}"
    got = f"{_plain(str(failure)) or type(failure).__name__}{_times(tries)}"
    return ServiceError(what, got=got, do=remedy)


def is_of_tls(failure: BaseException) -> bool:
    """Tell whether a connection has failed by TLS: by another protocol or a certificate."""
    causes = [failure]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    return any(isinstance(cause, ssl.SSLError) for cause in causes)


def unreadable(response: httpx.Response, service: str, *, got: str | None = None) -> ServiceError:
    """Return the error of an answer with success and another content than was asked for.

    Args:
        got: What it is, where its body was not read at once.
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
    """Return the error of an import whose answers end before their last line, again and again."""
    return ServiceError(
        f"{service} ended its answer to an import before the last line{_times(tries)}",
        got=failure and _plain(str(failure)),
        do="see the service's log, then import the same again",
    )


def printable(text: str) -> str:
    """Return the text in one line, without control characters of terminals."""
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
    """Describe a body, with its text if it is plain text."""
    kind = media_type(response)
    text = f": {_plain(response.text)}" if kind == "text/plain" and response.text.strip() else ""
    return f"{len(response.content):,} bytes of {_plain(kind) or 'no stated type'}{text}"


def media_type(response: httpx.Response) -> str:
    """Return the content type without its parameters."""
    kind: str = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower()


def _remedy(
    response: httpx.Response, problem: Problem | None, tries: int, retry_after: float | None
) -> str | None:
    """Return what to do about a status, where a problem's detail does not say it."""
    if response.status_code in (429, 503):
        later = "" if retry_after is None else f" in {retry_after:.0f} s, as it asks"
        return f"try again later{later}{_times(tries)}"
    if response.status_code == 401:
        return "give the service's API key: api_key= in Python, RAYCD_API_KEY on the command line"
    if response.is_redirect:
        return f"use the url that it points to: {_plain(_redirect(response))}"
    if problem is None:
        return f"check the url: a proxy, or another server, may have answered{_times(tries)}"
    return "see the service's log" if response.is_server_error else None


def _redirect(response: httpx.Response) -> str:
    """Return the target of a redirect, without a password."""
    try:
        target = response.url.join(response.headers.get("location", ""))
        return str(target.copy_with(userinfo=b"", query=None))
    except httpx.InvalidURL:
        return "nowhere"


def _trace_id(response: httpx.Response) -> str | None:
    parts: list[str] = response.headers.get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 else None


def _times(tries: int) -> str:
    return f" (tried {tries} times)" if tries > 1 else ""
