"""The load generator of writes, in a process of its own: imports with features, so many lines a
second.

    PYTHONPATH=. python -m jobs.benchmarks.serving.writes PORT FINGERPRINT RATE SEEN

`sent` starts it. It goes on until its standard input is closed, then writes what it saw as JSON
into the file SEEN.
"""

from __future__ import annotations

import base64
import json
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from jobs.benchmarks.scale import catalogue

LINES = 500  # of a request
NEW = 0.7  # share of images that are new; the others take the place of one
DISTINCT = 4000  # features
ROOT = Path(__file__).parents[3]


@dataclass
class Written:
    """What was acknowledged."""

    rate: float = 0.0
    """Writes a second."""
    failed: int = 0


@contextmanager
def sent(port: int, fingerprint: str, rate: float) -> Iterator[Written]:
    """Writes while open; what is yielded is filled in at the end."""
    written = Written()
    with tempfile.TemporaryDirectory(prefix="raycd-") as name:
        seen = Path(name, "seen.json")
        command = [
            sys.executable,
            "-m",
            "jobs.benchmarks.serving.writes",
            str(port),
            fingerprint,
            str(rate),
            str(seen),
        ]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)
        try:
            yield written
            process.communicate(timeout=60)
            written.__dict__.update(json.loads(seen.read_text(encoding="utf-8")))
        finally:
            process.kill()
            process.wait()


def main(port: int, fingerprint: str, rate: float, seen: Path) -> None:
    """Send imports, evenly spread over time, until standard input ends."""
    rng = random.Random(0)
    features = [
        base64.b64encode(feature_D.tobytes()).decode() for feature_D in catalogue(DISTINCT, drawn=2)
    ]
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    began, made, kept, failed = time.perf_counter(), 0, 0, 0
    while not select.select(
        [sys.stdin], [], [], max(0.0, began + made / rate - time.perf_counter())
    )[0]:
        lines = [_line(rng, made + number, features, fingerprint) for number in range(LINES)]
        made += LINES
        connection.request(
            "POST", "/v1/gallery:import", "\n".join(lines), {"Content-Type": "application/x-ndjson"}
        )
        answers = [json.loads(line) for line in connection.getresponse().read().splitlines()]
        good = sum(answer["status"] in (200, 201) for answer in answers)
        kept, failed = kept + good, failed + LINES - good
    told = {"rate": kept / (time.perf_counter() - began), "failed": failed}
    seen.write_text(json.dumps(told), encoding="utf-8")


def _line(rng: random.Random, number: int, features: list[str], fingerprint: str) -> str:
    image_id = f"new-{number}" if rng.random() < NEW else f"G{rng.randrange(10_000):06d}"
    feature = features[number % len(features)]
    return (
        f'{{"image_id": "{image_id}", "category": ["dress"], "attributes": {{"colour": "red"}}, '
        f'"encoder": "{fingerprint}", "feature": "{feature}"}}'
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]))
