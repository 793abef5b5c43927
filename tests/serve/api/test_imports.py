"""How an import takes its lines in, and what becomes of a commit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycd.errors import GalleryError
from raycd.gallery.records import Done, Put
from raycd.gallery_db import GalleryDatabase
from serve.api import imports
from serve.api.problems import ProblemError
from serve.args import ServeArgs
from serve.live.store import GalleryStore
from serve.live.writer import Writer


class Request:
    """A request whose body comes slowly."""

    def __init__(self, *parts: bytes, pause_s: float) -> None:
        self._parts, self._pause_s = parts, pause_s

    async def stream(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
            await asyncio.sleep(self._pause_s)


def line(image_id: str) -> bytes:
    return json.dumps({"image_id": image_id, "image_base64": "aGVsbG8="}).encode() + b"\n"


def parsed(request: Any, args: ServeArgs) -> list[Any]:
    async def read() -> list[Any]:
        return [one async for one in imports._parsed(request, args)]

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("request_", "ids"),
    [
        (Request(line("a"), line("b"), pause_s=30), ["a"]),  # too slow
        (Request(line("a"), line("b"), line("c"), pause_s=1.2), ["a", "b"]),
    ],
)
def test_an_import_ends_with_its_time_and_says_so(request_: Request, ids: list[str]) -> None:
    *taken, last = parsed(request_, ServeArgs(timeout_s=2))
    assert [one.asked.image_id for one in taken] == ids
    assert last.number == len(taken) + 1
    assert isinstance(last.asked, ProblemError)
    assert last.asked.status_code == 503
    assert "timeout_s" in last.asked.problem.detail
    assert "another request" in last.asked.problem.detail


def test_lines_are_at_work_together_only_as_far_as_they_fit_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[list[int]] = []

    async def together(replica: Any, writer: Any, some: Any) -> str:
        batches.append([one.number for one in some])
        return ""

    monkeypatch.setattr(imports, "_together", together)

    class Replica:
        args = ServeArgs(max_body_bytes=3 * len(line("a")))

    async def run() -> None:
        request: Any = Request(b"".join(map(line, "abcdefgh")), pause_s=0)
        replica: Any = Replica()
        writer: Any = None
        async for _ in imports._answers(replica, writer, request):
            pass

    asyncio.run(run())
    assert batches == [[1, 2, 3], [4, 5, 6], [7, 8]]


def test_a_transaction_that_fails_says_nothing_of_the_one_before_it(tmp_path: Path) -> None:
    with GalleryDatabase.open(str(tmp_path / "gallery.sqlite")) as gallery_db:
        threads: Any = None
        writer = Writer(GalleryStore(gallery_db, None), threads, threads, lag_s=1)
        first, second = "a" * 64, "b" * 64
        gallery_db.write([Put("image", np.ones(3, np.float32), (), {}, None)], second)
        outcomes = writer._commit(
            [
                (Put("one", np.ones(2, np.float32), (), {}, None), first),
                (
                    Put("two", np.ones(2, np.float32), (), {}, None),
                    second,
                ),  # of another size than its others
            ]
        )
        assert isinstance(outcomes[0], Done)
        assert isinstance(outcomes[1], GalleryError)
        assert gallery_db.count() == 2


@pytest.mark.parametrize("size", [1, 7, 10, 11, 64])
def test_a_line_is_too_long_however_the_body_is_cut(size: int) -> None:
    body = b"x" * 10 + b"\n" + b"y" * 11 + b"\n" + b"z\n"
    found: list[bytes] = []

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    async def run() -> None:
        async for one in imports._lines(pieces(), 10):
            found.append(one)

    with pytest.raises(ProblemError, match="larger"):
        asyncio.run(run())
    assert found == [b"x" * 10]
