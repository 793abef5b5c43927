from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from raycd import scratch

HOLD = """
import os, signal
from raycd import scratch
(scratch.new_folder() / "copy").touch()
with scratch.folder() as folder:
    (folder / "copy").touch()
    print("made", flush=True)
    input()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set where this process and those that it starts make temporary folders."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch._remove_abandoned.cache_clear()
    return tmp_path


def another() -> subprocess.Popen[str]:
    """Start a process that has made two folders."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "made\n"
    return process


def test_a_folder_goes_with_its_block_even_after_an_error(temporary: Path) -> None:
    def fail() -> None:
        with scratch.folder() as folder:
            (folder / "copy").touch()
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert list(temporary.iterdir()) == []


def test_folders_of_a_living_process_stay_and_go_when_it_ends(temporary: Path) -> None:
    with another() as living:
        with scratch.folder():
            assert len(list(temporary.glob("*/copy"))) == 2
        living.communicate("\n")
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_has_left_is_removed_by_the_next(temporary: Path) -> None:
    with another() as killed:
        killed.send_signal(signal.SIGKILL)
    assert len(list(temporary.glob("*/copy"))) == 2
    with scratch.folder() as folder:
        assert list(temporary.iterdir()) == [folder]


BY_LINK = """
import os
from raycd import scratch
(scratch.new_folder() / "copy").touch()
os.unlink(os.environ["TMPDIR"])
"""


def test_a_folder_made_by_a_link_goes_though_the_link_has_gone_before(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    environment = {"TMPDIR": str(link), "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", BY_LINK], env=os.environ | environment, check=True)
    assert list(real.iterdir()) == []
