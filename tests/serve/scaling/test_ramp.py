"""The number of replicas follows the load, and nobody who asks meanwhile notices."""

from __future__ import annotations

import asyncio
import json
import signal
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest

from serve.start.local import free_port
from tests.serve.asking import png
from tests.serve.crash.process import PATIENCE_S, command
from tests.serve.scaling.ramp import Ramp

SCALED = {"min": 1, "max": 3, "target": 4, "up_s": 1, "down_s": 5}
CLIENTS = 16


@pytest.mark.slow
@pytest.mark.parametrize("proxy", ["default", "haproxy"])
def test_replicas_come_and_go_with_the_load_and_every_request_is_answered(
    tiny_bundle: Any, tmp_path: Path, proxy: str
) -> None:
    port, log = free_port(), tmp_path / "log"
    gallery = ("--gallery", str(tmp_path / "gallery.sqlite"))
    process = command(
        *("--bundle", str(tiny_bundle.folder), *gallery, "--port", str(port), "--proxy", proxy),
        *("--replicas", json.dumps(SCALED), "--cpus", "0.5", "--threads", "1"),
        log=log,
    )
    try:
        assert process.stdout is not None
        assert "raycd serves" in process.stdout.readline(), log.read_text()
        ramp = Ramp(f"http://127.0.0.1:{port}", png(tiny_bundle.images[0]))
        asyncio.run(ramp.run([(2, 1), (CLIENTS, 3), (2, 1)], PATIENCE_S))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    assert all(
        right(what, status) or (what != "readyz" and status == "503")
        for what, status in ramp.answers
    ), ramp.answers
    assert {what for what, _ in ramp.answers} == {"search", "put", "find", "delete", "readyz"}
    numbers = [number for number, _ in groupby(number for _, number in sorted(ramp.replicas))]
    top = numbers.index(3)
    assert numbers[0] == numbers[-1] == 1
    assert all(before < after for before, after in pairwise(numbers[: top + 1])), numbers
    assert all(before > after for before, after in pairwise(numbers[top:])), numbers


def right(what: str, status: str) -> bool:
    """Return whether a status is that of an answer as it should be."""
    return status == ("201" if what == "put" else "200")
