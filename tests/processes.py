"""Jobs as processes of their own, as their users start them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def started(
    program: str, my_yaml: Path, *argv: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a program of the repository with a file of settings, on a Ray of its own."""
    return start(program, "--config", str(my_yaml), *argv, environment=environment)


def start(
    program: str, *argv: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a program of the repository, on a Ray of its own."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, program, *argv],
        cwd=ROOT,
        env=inherited | {"PYTHONPATH": str(ROOT)} | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a signal goes to the job alone, not to Ray beneath it
    )


def wait_for(there: Callable[[], object], job: subprocess.Popen[str], most_s: float = 240) -> None:
    """Wait until something is there; where the job ends before, fail with what it says."""
    until = time.monotonic() + most_s
    while not there():
        if job.poll() is not None or time.monotonic() > until:
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
            pytest.fail(job.communicate()[1])
        time.sleep(0.02)
