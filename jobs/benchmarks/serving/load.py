"""wrk, the load generator (https://github.com/wg/wrk; Debian: `apt-get install wrk`), and load.lua.

Of two cores, a request of 3 kB to a server that does nothing took 0.04 ms of one from 32 clients of
wrk with load.lua, and 0.15 ms from 32 FastHttpUsers of locust 2.47 (a Python process, which is full
at 2,800 requests a second); Debian 12 has no vegeta. wrk keeps no rate by itself: load.lua sends
when a request is due, from up to 256 connections, and counts from then on (0.17 ms at 1,000/s).
The fewer requests, the more weighs wrk's start: the runs' own tables have what it took in them.
"""

from __future__ import annotations

import math
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

from raycd.errors import ConfigError, RunError

OK, REFUSED = 200, (429, 503)
CONNECTIONS = 256  # at most, that send at a rate
LEAD_S = 1.0  # for wrk to start its threads
ANSWER_S = 60  # longer than any server here may take; then the request has failed


class Sample(NamedTuple):
    """One answer."""

    due: float
    """Seconds since the load began: when it was sent or, at a rate, was to be sent."""
    ms: float
    """Milliseconds from then on."""
    status: int
    timing: str
    """The header Server-Timing; empty where there was none."""


@dataclass
class LoadResult:
    """What a load saw; filled in when it has ended."""

    samples: list[Sample] = field(default_factory=list)
    errors: int = 0
    """Connections that broke, and requests without an answer in time."""
    client_ms: float = 0.0
    """Milliseconds of a core that wrk took for one request."""


@dataclass(frozen=True)
class Site:
    """A server of this machine, the requests for it (material.write), and how long to measure."""

    port: int
    material: Path
    seconds: float
    _firsts: count[int] = field(default_factory=lambda: count(0, 1_000_000))

    def send(
        self,
        seconds: float,
        *,
        clients: int = 0,
        rate: float = 0.0,
        kind: str = "picture, new text",
    ) -> LoadResult:
        """Send requests for so long and return what was seen. As `sending`."""
        with self.sending(seconds, clients=clients, rate=rate, kind=kind) as seen:
            pass
        return seen

    @contextmanager
    def sending(
        self,
        seconds: float,
        *,
        clients: int = 0,
        rate: float = 0.0,
        kind: str = "picture, new text",
        patience: float = 0.0,
    ) -> Iterator[LoadResult]:
        """Send requests meanwhile: of `clients` that wait for each answer, or `rate` a second.

        Answers are counted until `patience` seconds after the last request. No text is sent twice,
        but those of kinds that say "known". Raises ConfigError without wrk, RunError if it fails.
        """
        if not shutil.which("wrk"):
            raise ConfigError("wrk is not installed", do="apt-get install wrk")
        folder, seen = self.material / kind, LoadResult()
        clients = clients or min(CONNECTIONS, math.ceil(rate))
        with tempfile.NamedTemporaryFile(prefix="raycd-") as file:
            before, began = _children(), time.monotonic() + LEAD_S
            plan = [folder, file.name, len(list(folder.iterdir())), next(self._firsts), clients]
            script = [str(Path(__file__).with_suffix(".lua")), f"http://127.0.0.1:{self.port}"]
            whole = math.ceil(LEAD_S + seconds + patience)
            command = [
                "wrk",
                f"-t{clients}",
                f"-c{clients}",
                f"-d{whole}s",
                f"--timeout={ANSWER_S}s",
            ]
            command += ["-s", *script, "--", *map(str, [*plan, rate, began, began + seconds])]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            try:
                time.sleep(LEAD_S)
                yield seen
                said, _ = process.communicate()
            finally:
                process.kill()
                process.wait()
            if process.returncode:
                raise RunError("wrk could not send", got=said.decode().strip())
            for line in file.read().decode().splitlines():
                due, ms, status, timing = line.split(" ", 3)
                seen.samples.append(Sample(float(due), float(ms), int(status), timing))
            seen.errors = int(said.split()[-1])
            seen.client_ms = 1000 * (_children() - before) / max(1, len(seen.samples))


def _children() -> float:
    """Return the seconds of a core that ended child processes took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
