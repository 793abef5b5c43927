"""The load generator, in a process of its own: reads a plan as JSON, writes what it saw as JSON
into another file.

    PYTHONPATH=. python -m jobs.benchmarks.serving.load plan.json seen.json

`send` starts it. It imports neither torch nor raycd, and takes a fraction of a millisecond for a
request.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from httptools import HttpParserError

from jobs.benchmarks.serving.connection import Connection
from jobs.benchmarks.serving.plan import FAILED, OK, Phase, Plan, Sample, Seen
from jobs.benchmarks.serving.questions import Questions

ANSWER_S = 60.0  # longer than any server here may take; then the request has failed
PAUSE_S = 0.1  # of a client that was refused, before it asks again
ROOT = Path(__file__).parents[3]


def send(plan: Plan) -> Seen:
    """Carry out a plan in another process. Its answers, megabytes of them, come in a file: others
    print, too.
    """
    with tempfile.TemporaryDirectory(prefix="raycd-") as name:
        told, seen = Path(name, "plan.json"), Path(name, "seen.json")
        told.write_text(plan.to_json(), encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", "jobs.benchmarks.serving.load", told, seen],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
        )
        return Seen.from_json(seen.read_text(encoding="utf-8"))


class Generator:
    """Carries out a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._questions = Questions(plan)
        self._idle: list[Connection] = []

    async def run(self) -> Seen:
        """All phases; requests of one that are still unanswered when it ends go on beside the next."""
        began = time.process_time()
        phases: list[list[Sample]] = []
        pending: list[asyncio.Task[int]] = []
        for phase in self._plan.phases:
            samples: list[Sample] = []
            phases.append(samples)
            if phase.clients:
                await self._closed(phase, samples)
            else:
                pending += await self._open(phase, samples)
        if pending:
            await asyncio.wait(pending)
        for connection in self._idle:
            connection.close()
        spent = time.process_time() - began
        return Seen(phases, 1000 * spent / max(1, sum(map(len, phases))))

    async def _closed(self, phase: Phase, samples: list[Sample]) -> None:
        began = time.perf_counter()

        async def client() -> None:
            while (now := time.perf_counter()) < began + phase.seconds:
                if await self._ask(began, now, samples) != OK:
                    await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*(client() for _ in range(phase.clients)))

    async def _open(self, phase: Phase, samples: list[Sample]) -> list[asyncio.Task[int]]:
        """A request is timed from when it was due, so that a client held up by the server counts
        against it.
        """
        began = time.perf_counter()
        tasks = []
        for number in range(int(phase.rate * phase.seconds)):
            due = began + number / phase.rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self._ask(began, due, samples)))
        return tasks

    async def _ask(self, began: float, due: float, samples: list[Sample]) -> int:
        """The status of one request; its sample is added to `samples`."""
        request = self._questions.next()
        try:
            async with asyncio.timeout(ANSWER_S):
                connection = await self._connection()
                status, timing = await connection.ask(request)
        except (OSError, HttpParserError):  # TimeoutError is an OSError
            status, timing = FAILED, ""
        else:
            if connection.usable:
                self._idle.append(connection)
        samples.append(Sample(due - began, 1000 * (time.perf_counter() - due), status, timing))
        return status

    async def _connection(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
        return await Connection.open(self._plan.port)


if __name__ == "__main__":
    plan = Plan.from_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(uvloop.run(Generator(plan).run()).to_json(), encoding="utf-8")
