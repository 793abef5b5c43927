"""How a job ends: its exit code, its one message, and what a signal leaves."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
import torch

from raycd.config import cli
from raycd.errors import DataError, RaycdError


def run(main: Callable[[cli.Options], int | None], *argv: str) -> int:
    return cli.run(main, argv, prog="jobs/train.py", description="Train.")


def failing(error: BaseException) -> Callable[[cli.Options], None]:
    def main(options: cli.Options) -> None:
        raise error

    return main


def test_a_job_that_returns_nothing_has_succeeded() -> None:
    assert run(lambda options: None) == 0


def test_the_code_of_a_job_is_the_code_of_the_process() -> None:
    assert run(lambda options: 3) == 3


def test_a_users_mistake_is_one_message_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(failing(DataError("no such folder", got="/data"))) == 2
    assert capsys.readouterr() == ("", "error: no such folder\n  got:      /data\n")


def test_an_unknown_option_is_one_message_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda options: 0, "--stage2.epoch", "3") == 2
    assert capsys.readouterr().err.startswith("error: unknown setting\n")


def test_debug_shows_the_traceback_before_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(failing(DataError("no such folder")), "--debug") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith("error: no such folder\n")


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError()))


def test_a_users_mistake_beneath_another_error_is_still_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = RuntimeError("stage failed")
    error.__cause__ = DataError("no such folder")
    assert run(failing(error)) == 2
    assert capsys.readouterr().err == "error: no such folder\n"


class RemoteDataError(DataError):
    """Like Ray's RayTaskError(DataError): of the cause's class, with a remote traceback as its
    text.
    """

    def __init__(self, cause: RaycdError) -> None:
        super().__init__("Traceback of a worker ...")
        self.cause = cause


class WorkerGroupError(Exception):
    """Like Ray Train's."""

    def __init__(self, worker_failures: dict[int, Exception]) -> None:
        super().__init__("Training failed due to worker errors: Traceback ...")
        self.worker_failures = worker_failures


def test_a_users_mistake_on_a_ray_worker_is_told_without_rays_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(failing(WorkerGroupError({1: RemoteDataError(DataError("no such folder"))}))) == 2
    assert capsys.readouterr().err == "error: no such folder\n"


def test_a_full_disk_is_told_with_place_and_free_bytes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "absent" / "features.parquet"
    assert run(failing(OSError(errno.ENOSPC, "No space left on device", str(path)))) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: no space left on the disk of {path}\n  got:      ")
    assert " bytes free\n" in shown


def test_a_full_disk_that_names_no_file_is_told_of_the_runs_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = RuntimeError(
        "I/O error: No space left on device (os error 28)"
    )  # as safetensors words it
    assert run(failing(error), "--runs", str(tmp_path)) == 2
    assert capsys.readouterr().err.startswith(f"error: no space left on the disk of {tmp_path}\n")


def test_a_card_without_room_is_told_with_what_takes_less(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert run(failing(WorkerGroupError({0: error}))) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: the GPU has too little memory\n  got:      OutOfMemoryError: C")
    assert "grad_checkpointing" in shown
    killed: Any = ray.exceptions.OutOfMemoryError  # the machine's memory, not a card's
    assert run(failing(killed("a worker was killed"))) == 2
    assert capsys.readouterr().err.startswith(
        "error: a worker of Ray has died\n  got:      OutOfMemoryError: a worker was killed\n"
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_place_without_permission_is_told(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(failing(OSError(number, "not allowed", "/data/runs"))) == 2
    assert capsys.readouterr().err.startswith(
        "error: no permission: /data/runs\n  got:      not allowed\n"
    )


def test_another_os_error_is_a_bug_of_ours() -> None:
    with pytest.raises(FileNotFoundError):
        run(failing(FileNotFoundError(errno.ENOENT, "absent", "x")))


def test_ctrl_c_ends_with_130_and_how_to_continue(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to continue\n"


def test_the_exit_of_rays_handler_counts_as_terminated() -> None:
    assert run(failing(SystemExit(15))) == 143


def test_sigterm_stays_sigterm_where_a_library_makes_a_plain_interrupt_of_it() -> None:
    def main(options: cli.Options) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except cli.Terminated:
            raise KeyboardInterrupt from None

    assert run(main) == 143


def test_the_handler_of_sigterm_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(lambda options: 0)
    assert signal.getsignal(signal.SIGTERM) is before


JOB = """
import sys, time
from raycd.config import cli

def main(options):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)

sys.exit(cli.run(main, [], prog="job", description=""))
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_a_job_after_its_clean_up(
    number: signal.Signals, code: int, word: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", JOB], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        job.send_signal(number)
        out, err = job.communicate(timeout=30)
    assert (job.returncode, out) == (code, "cleaned up\n")
    assert err == f"{word}: run the same command again to continue\n"


def test_an_output_that_nobody_reads_ends_a_job_without_a_traceback() -> None:
    code = "import sys; from raycd.config import cli; sys.exit(cli.guard(lambda: print('x'), []))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
