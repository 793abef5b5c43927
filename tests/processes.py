"""Jobs as processes of their own, as their users start them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

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
        start_new_session=True,
    )
