"""A SQLite file has one service at a time, however many processes the service has."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raycd.errors import GalleryError
from raycd.gallery_db import owner

HOLD = """
import sys
from pathlib import Path
from raycd.gallery_db import owner
owner.hold(Path(sys.argv[1]), sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


def start(file: Path, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def is_held(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == b"held\n"


@pytest.mark.slow
def test_the_processes_of_one_service_share_a_file_and_another_service_is_told(
    tmp_path: Path,
) -> None:
    file = tmp_path / "gallery.sqlite"
    processes = [start(file, "first service") for _ in range(5)]  # at once
    try:
        assert all(is_held(process) for process in processes)
        with pytest.raises(GalleryError) as caught:
            owner.hold(file, "second service")
        assert caught.value.reason == "in_use"
        assert "first service" in str(caught.value)
        for process in processes[1:]:
            process.kill()
            process.wait()
        with pytest.raises(GalleryError):
            owner.hold(file, "second service")
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_service_that_was_killed_leaves_the_file_free(tmp_path: Path) -> None:
    file = tmp_path / "gallery.sqlite"
    with start(file, "first service") as process:
        assert is_held(process)
        process.send_signal(signal.SIGKILL)
    with start(file, "second service") as process:
        assert is_held(process)
        process.kill()
