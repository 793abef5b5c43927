"""How many bodies come in at a time: the slowest is given up for the next."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import Request

from serve.api.intake import Intake
from serve.api.problems import ProblemError


def request(body: asyncio.Future[bytes]) -> Request:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": await body, "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


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
