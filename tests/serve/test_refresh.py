"""The last step of a refresh: a service is told by a signal, and asked over HTTP what it serves."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import refresh
from raycd import bundle
from raycd.config import Config
from raycd.errors import ConfigError, RunError
from serve.args import ServeArgs

# A process that says when the signal has come, as serve/app.py does
TOLD = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
print(flush=True)
print(int(signal.sigwait([signal.SIGHUP])), flush=True)
"""


def test_a_service_is_told_and_asked_until_it_serves_the_bundle(
    start_replica: Callable[..., str],
    service_args: ServeArgs,
    tiny_bundle: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, digest = start_replica(service_args, "told"), bundle.verify(tiny_bundle.folder).digest
    with subprocess.Popen([sys.executable, "-c", TOLD], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        asked = argparse.Namespace(service=url, hup=process.pid)
        step = refresh.Refresh(Config(), asked, tmp_path)
        assert step._swap(digest) == {"digest": digest[:12]}
        assert int(process.stdout.readline()) == signal.SIGHUP
    with pytest.raises(ConfigError, match="cannot be told"):
        step._swap(digest)  # it has ended
    monkeypatch.setattr(refresh, "SWAP_S", 1.0)
    with subprocess.Popen([sys.executable, "-c", TOLD], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        asked.hup = process.pid
        with pytest.raises(RunError, match="did not change"):
            step._swap("0" * 64)
