"""The script of a test server: its answers, the requests that it got, and bodies of the service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

JSON, PROBLEM, LINES = "application/json", "application/problem+json", "application/x-ndjson"


class Asked(NamedTuple):
    """A request that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


class Reply(NamedTuple):
    """What to answer; status 0 ends the connection without a word.

    A body that is an iterator is sent part by part; a ConnectionError of its own ends the
    connection there.
    """

    status: int = 200
    body: Any = b""
    kind: str = JSON
    headers: dict[str, str] = {}  # noqa: RUF012


@dataclass
class Service:
    """The answers of the server, in turn, and its requests."""

    url: str = ""
    replies: list[Reply | Callable[[Asked], Reply]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def answers(self, *replies: Reply | Callable[[Asked], Reply]) -> None:
        self.replies.extend(replies)


@dataclass
class Waits:
    """A clock that only `sleep` advances."""

    seconds: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def clock(self) -> float:
        return sum(self.seconds)


MODEL = {
    "preset": "demo",
    "encoder": "raycd-demo",
    "fingerprint": "0123456789ab",
    "head": "clip_cd",
    "bundle": "",
    "rerank_depth": 0,
    "protocol": "original",
    "metrics": {},
}
INDEX = {"kind": "flat", "size": 3, "version": 1, "lag_s": 0.0, "recall": 1.0}


def item(image_id: str, **more: Any) -> dict[str, Any]:
    thumbnail = f"v1/images/{image_id}"
    return {
        "image_id": image_id,
        "category": "dress",
        "attributes": {"colour": "blue"},
        "thumbnail": thumbnail,
        **more,
    }


def found(*image_ids: str, warnings: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the body of a SearchResponse."""
    explanation = {"image": 0.5, "text": None}
    scores = {"score": 0.75, "relative_score": 2.5, "rerank_score": None, "boosted_score": None}
    results = [item(name, **scores, explanation=explanation) for name in image_ids]
    return {
        "results": results,
        "total": 3,
        "model": MODEL,
        "index": INDEX,
        "history": "",
        "warnings": list(warnings),
        "timings": {"total": 1.5},
        "query_id": "5f" * 16,
    }


def info(**limits: Any) -> dict[str, Any]:
    """Return the body of an Info."""
    usual = {
        "body_bytes": 20_000_000,
        "image_pixels": 50_000_000,
        "image_min_side": 8,
        "formats": ["JPEG", "PNG"],
        "text_characters": 1000,
        "top_k": 200,
        "offset": 1000,
        "batch": 32,
        "page": 200,
        "import_lines": 10_000,
        "attributes": 64,
    }
    return {
        "version": "0.1.0",
        "model": MODEL,
        "index": INDEX,
        "limits": usual | limits,
        "default_top_k": 10,
        "image_url": False,
        "categories": {"dress": 3},
        "attributes": {"colour": {"blue": 3}},
        "example_texts": ["is blue"],
    }


def problem(status: int, detail: str, **members: Any) -> dict[str, Any]:
    """Return the body of a Problem."""
    return {
        "type": "about:blank",
        "title": "Problem",
        "status": status,
        "detail": detail,
        **members,
    }


def refusal(status: int, detail: str = "no", *, after: str | None = None, **members: Any) -> Reply:
    """Return a problem document, as the service answers."""
    return Reply(
        status, problem(status, detail, **members), PROBLEM, {"Retry-After": after} if after else {}
    )


def written(image_id: str, version: int, *, created: bool = True) -> dict[str, Any]:
    """Return the body of a Written."""
    return {"image_id": image_id, "version": version, "created": created}


def done(line: int, version: int = 1) -> dict[str, Any]:
    """Return an ImportItem of a line that is in the gallery."""
    return {"line": line, "image_id": "as sent", "status": 201, "version": version}


def failed(line: int, status: int, detail: str = "no") -> dict[str, Any]:
    """Return an ImportItem of a line that failed."""
    return {"line": line, "status": status, "problem": problem(status, detail)}


def settled(*items: dict[str, Any], cut: bytes | None = None) -> Reply:
    """Return the answer to an import, a part for each item; it breaks off after `cut`."""

    def parts() -> Iterator[bytes]:
        for each in items:
            yield json.dumps(each, ensure_ascii=False).encode() + b"\n"
        if cut is not None:
            if cut:
                yield cut
            raise ConnectionAbortedError

    return Reply(200, parts(), LINES)


def takes_all(asked: Asked) -> Reply:
    """Accept every line of an import."""
    return settled(*(done(line) for line in range(1, len(asked.lines()) + 1)))
