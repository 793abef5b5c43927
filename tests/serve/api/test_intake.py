"""How many bodies come in at a time: the slowest is given up for the next."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import Request

from serve.api.intake import Intake
from serve.api.problems import ProblemError


def request(body: asyncio.Future[bytes], content_type: str = "") -> Request:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": await body, "more_body": False}

    headers = [(b"content-type", content_type.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def test_a_form_whose_boundary_spells_json_is_none() -> None:
    """A picture of some megabytes has more commas than JSON may have."""

    async def read(content_type: str) -> None:
        body = asyncio.get_running_loop().create_future()
        body.set_result(b"," * 20_000)
        await Intake(1, 1).read(request(body, content_type), 10)

    asyncio.run(read("multipart/form-data; boundary=----aJSONb"))
    for kind in ("application/json", "application/merge-patch+JSON; charset=utf-8"):
        with pytest.raises(ProblemError, match="too many values"):
            asyncio.run(read(kind))


def test_a_body_whose_time_ends_as_the_next_comes_in_fails_nobody_else() -> None:
    async def both() -> None:
        loop = asyncio.get_running_loop()
        intake, never, there = Intake(1, 1.5), loop.create_future(), loop.create_future()
        there.set_result(b"{}")
        slow = asyncio.create_task(intake.read(request(never), 10))
        await asyncio.sleep(0)
        [limit] = intake._limits
        ends = limit.when()
        assert ends is not None
        arrived = loop.create_future()
        # In the turn of the loop in which the time is over, before whoever waits learns of it
        loop.call_at(ends - 1e-6, lambda: arrived.set_result(asyncio.ensure_future(read())))

        async def read() -> None:
            await intake.read(request(there), 10)

        await (await arrived)
        with pytest.raises(ProblemError) as error:
            await slow
        assert error.value.status_code == 408

    asyncio.run(both())
