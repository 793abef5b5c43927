"""How every program of raycd ends: one guard for its errors, signals and exit code.

Exit codes: 0 done, 2 a mistake that the user can fix, 75 the Ray of this program has died
(raycd/runtime/watch.py), 130 Ctrl-C, 141 nobody reads the output, 143 terminated, 1 a bug of ours
(with traceback).
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from raycd import extras
from raycd.errors import RaycdError, brief

EXIT_MISTAKE = 2
EXIT_RAY_DIED = 75  # EX_TEMPFAIL of sysexits.h: the same may succeed when it is tried again
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
EXIT_TERMINATED = 143

AGAIN = "run the same command again to continue"
ANEW = "run the same command again to start over"

terminated = threading.Event()
"""Set once SIGTERM has come."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever cleans up after Ctrl-C cleans up after it too."""


def guard(
    main: Callable[[], int | None],
    argv: Sequence[str],
    *,
    again: str = "",
    runs: Callable[[], str] = str,
) -> int:
    """Call `main` and return the exit code: an error of the user's is one message on stderr.

    `--debug` in `argv` shows its traceback, too. `again` is the advice after an interruption,
    `runs` the folder that `main` writes to where an error of the disk names none.
    """
    try:
        with sigterm_interrupts():
            code = main() or 0
            sys.stdout.flush()
            return code
    except KeyboardInterrupt as interrupt:
        return _interrupted(isinstance(interrupt, Terminated), again)
    except SystemExit as stop:
        if stop.code == signal.SIGTERM:  # a handler of Ray's exits with the signal's number
            return _interrupted(True, again)
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return EXIT_PIPE
        message = _users_message(error, runs())
        if message is None:
            raise
        if "--debug" in argv:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return EXIT_MISTAKE


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise Terminated at SIGTERM while open.

    Open it again after ray.init, whose own handler ends the process with exit code 1.
    """
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return

    terminated.clear()

    def terminate(signum: int, frame: FrameType | None) -> NoReturn:
        terminated.set()
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if terminated.is_set() and not isinstance(interrupt, Terminated):
            raise Terminated from interrupt  # ray.get makes a plain KeyboardInterrupt of it
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(by_sigterm: bool, again: str) -> int:
    word = "terminated" if by_sigterm else "interrupted"
    print(f"{word}: {again}" if again else word, file=sys.stderr)
    return EXIT_TERMINATED if by_sigterm else EXIT_INTERRUPTED


def _nobody_reads() -> bool:
    """Tell whether standard output is the broken pipe, and let it swallow the flush at exit."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    broken = any(event & select.POLLERR for _, event in poll.poll(0))
    if broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return broken


def _users_message(error: Exception, runs: str) -> str | None:
    """Return the message of a mistake of the user's, also one of a Ray worker; else None."""
    for cause in causes(error):
        if isinstance(cause, RaycdError):
            return str(cause)
        if isinstance(cause, ModuleNotFoundError) and (missing := extras.error(cause)):
            return str(missing)
        if _is_disk_full(cause):
            return str(_disk_full(getattr(cause, "filename", None), runs))
        if is_gpu_full(cause):
            return str(gpu_full(cause))
        if is_death(cause):
            return str(_died(cause))
        if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return str(
                RaycdError(
                    f"no permission: {cause.filename or runs}",
                    got=cause.strerror,
                    do="make it accessible to this user, or name another path (--runs, ...)",
                )
            )
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what lies beneath it; Ray's wrappers are opened, not yielded.

    A wrapper (RayTaskError, WorkerGroupError, ControllerError) also subclasses its cause, and its
    text is a remote traceback.
    """
    wrapped = [getattr(error, "cause", None), getattr(error, "controller_failure", None)]
    wrapped += list(getattr(error, "worker_failures", {}).values())
    inner = [cause for cause in wrapped if isinstance(cause, BaseException) and cause is not error]
    if not inner:
        yield error
        inner = [error.__cause__] if error.__cause__ is not None else []
    for cause in inner:
        yield from causes(cause)


def _is_disk_full(error: BaseException) -> bool:
    """Tell by number where there is one; Arrow, safetensors and SQLite only say so."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    return "No space left on device" in text or "database or disk is full" in text


def is_gpu_full(error: BaseException) -> bool:
    """Tell torch's error by its name, without torch; Ray has one of that name of a full memory."""
    kind = type(error)
    return kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] == "torch"


def gpu_full(error: BaseException) -> RaycdError:
    """Return what to do where the memory of a GPU is full."""
    return RaycdError(
        "the GPU has too little memory",
        got=brief(error),
        do="lower batch_size of what ran (stage1, stage2, adapt, embed, mine or evaluate); stage1 "
        "and adapt also take less with grad_checkpointing true, or with a chunk, such as 16",
    )


def is_death(error: BaseException) -> bool:
    """Tell by its name, without Ray, an error that tells of a worker which was killed."""
    kind = type(error)
    deaths = {"ActorDiedError", "NodeDiedError", "OutOfMemoryError", "WorkerCrashedError"}
    return kind.__module__ == "ray.exceptions" and kind.__name__ in deaths


def _died(error: BaseException) -> RaycdError:
    return RaycdError(
        "a worker of Ray has died",
        got=brief(error),
        do=f"see whether its machine has run out of memory, or has gone; then {AGAIN}",
    )


def _disk_full(filename: str | None, runs: str) -> RaycdError:
    # What goes to a store is written on this machine first.
    path = Path(filename or (tempfile.gettempdir() if "://" in runs else runs))
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    return RaycdError(
        f"no space left on the disk of {path}",
        got=f"{shutil.disk_usage(existing).free:,} bytes free",
        do=f"free some space, then {AGAIN}",
    )
