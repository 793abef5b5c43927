"""The Ray of a job or a service: the one that RAY_ADDRESS names, or one of this process's own.

A Ray runs whatever code it is sent. So our own one has a token that nobody else knows, listens on
loopback only and keeps its files in a folder that only this user can enter (Ray itself lets
everybody write into them). All of it ends with the process.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from raycd import progress
from raycd.errors import RunError
from raycd.runtime import private, watch

LOCAL = ("", "local")  # values of RAY_ADDRESS
PATIENCE = 120.0  # seconds that the second try of a start may take longer
# Bytes of the temporary folder's path: Ray adds 68 to it for its sockets, and Linux allows 107.
ROOM = 39

_LOG_LEVEL = logging.WARNING

_UNLESS_SET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray starts workers at niceness 15, to protect its own processes (ray pull request 24928): any
    # other program of the machine would take the workers' CPUs.
    "RAY_worker_niceness": "0",
    # Ray Data's actor pools make Ray print a meaningless line at level ERROR (ray issue 53727).
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Ray Train watches for machines that a cloud takes back, by a process of a second's start: this
    # one machine holds the watcher, too.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
_LEVEL_LINE = b"Set ray log level from environment variable"  # printed whatever the level is
_MORE_TIME = {  # the timeouts of a start that Ray lets us set
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": "180",
}


def address() -> str:
    """Return where RAY_ADDRESS leads, empty for a Ray of our own.

    Raises:
        RunError: A program cannot join a cluster at this address.
    """
    given = os.environ.get("RAY_ADDRESS", "").strip()
    if given in LOCAL:
        return ""
    found = re.fullmatch(r"(?:ray://)?(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", given)
    if given == "auto" or (found and 0 < int(found[1]) < 65536):
        return given
    web = given.startswith(("http://", "https://"))
    submit = f", or hand the job in: ray job submit --address {given}" if web else ""
    raise RunError(
        "RAY_ADDRESS is not the address of a Ray cluster",
        got=given,
        expected="host:port, such as 10.0.0.1:6379, as ray start --head prints it",
        do=f"unset it to work on this machine{submit}",
    )


@contextmanager
def connected(*, metrics_port: int | None = None) -> Iterator[None]:
    """Be connected to the Ray of RAY_ADDRESS, or to one of our own, inside of the block.

    The process ends when that Ray dies (see `watch`).

    Raises:
        RunError: The named cluster does not answer, or none could be started here.
    """
    with ExitStack() as stack:
        if joined := address():
            _join(joined)
        else:
            parent = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
            folder = stack.enter_context(_private_folder(parent))
            unfit = {name: long for name, long in _temporary().items() if _is_unfit(long)}
            short = folder
            if unfit or _is_unfit(str(folder)):
                short = stack.enter_context(_private_folder("/tmp"))
            watch.leftovers += [folder, short]
            stack.enter_context(_environment(_settings(folder, short, unfit)))
            _start(metrics_port)
        stack.callback(_leave)
        stack.enter_context(watch.ray_lives())
        yield


def _join(joined: str) -> None:
    import ray

    try:
        ray.init(address=joined, log_to_driver=False, logging_level=_LOG_LEVEL)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise RunError(
            f"the Ray cluster at {joined} does not answer",
            got=(str(error).strip().splitlines() or [type(error).__name__])[0],
            do="start it, or fix RAY_ADDRESS, or unset it to work on this machine",
        ) from error


def _leave() -> None:
    import ray

    ray.shutdown()


def _start(metrics_port: int | None) -> None:
    """Start a Ray, and once more with longer timeouts where the machine is too busy."""
    try:
        _init(metrics_port)
    except RunError:
        progress.say(
            "Ray has not started in its time, this machine is busy: once more, with more time"
        )
        with _environment(_unset(_MORE_TIME)), private.patient_start(PATIENCE):
            _init(metrics_port)


def _init(metrics_port: int | None) -> None:
    """Start a Ray, or leave no process of it."""
    import ray

    before = psutil.Process().children(recursive=True)
    try:
        with _stderr_without(_LEVEL_LINE):
            ray.init(
                "local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=_LOG_LEVEL,
                **private.metrics_port(metrics_port),
            )
    except BaseException as error:
        _leave()
        started = set(psutil.Process().children(recursive=True)) - set(before)
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(started), timeout=10)
        if not isinstance(error, Exception) or isinstance(error, (ValueError, TypeError)):
            raise
        if (
            isinstance(error, OSError) and error.errno
        ):  # no space, no permission: not for want of time
            raise
        raise RunError(
            "Ray did not start on this machine",
            got=(str(error).strip().splitlines() or [type(error).__name__])[0],
            expected="a start within three minutes",
            do="run the same command again when less runs here",
        ) from error


@contextmanager
def _stderr_without(text: bytes) -> Iterator[None]:
    """Hold stderr back, also of C++, inside of the block; then write the lines without `text`."""
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            os.write(2, b"".join(line for line in held if text not in line))


@contextmanager
def _private_folder(parent: str) -> Iterator[Path]:
    """Make a folder in `parent` that only this user can enter. Raises RunError."""
    try:
        os.makedirs(parent, exist_ok=True)
        opened = tempfile.TemporaryDirectory(
            prefix="raycd-", dir=os.path.abspath(parent), ignore_cleanup_errors=True
        )
    except OSError as error:
        raise RunError(
            "there is no temporary folder for Ray",
            got=f"{error.filename}: {error.strerror}",
            expected="a folder that can be written; "
            f"/tmp, too, where its path has more than {ROOM - 15} bytes",
            do="name one: export TMPDIR=/a/short/path",
        ) from error
    with opened as folder:
        yield Path(folder)


def _temporary() -> dict[str, str]:
    """Return the environment's settings of temporary folders for other programs than Ray."""
    return {
        name: os.environ[name]
        for name in ("TMPDIR", "TEMP", "TMP")
        if os.path.isdir(os.environ.get(name, ""))
    }


def _is_unfit(folder: str) -> bool:
    """Return whether Ray cannot make its sockets in a folder (which may be the one with space)."""
    return len(os.fsencode(folder)) > ROOM or not os.path.isabs(folder)


def _settings(folder: Path, short: Path, unfit: Mapping[str, str]) -> dict[str, str | None]:
    """Return the environment of a Ray of our own with its files in `folder`; None means unset.

    Where `short` is another folder, it gets links to `folder` and to the `unfit` ones.
    """
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    folders: dict[str, str | None] = {"RAY_TMPDIR": str(folder)}
    for name, long in {**unfit, **folders}.items() if short != folder else ():
        link = short / name.lower()
        link.symlink_to(os.path.abspath(str(long)))
        folders[name] = str(link)
    return {
        **_unset(_UNLESS_SET),
        **folders,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_AUTH_TOKEN": None,  # would come before the file
        # Makes 127.0.0.1 the node's address, on which each of Ray's processes then listens.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def _unset(settings: Mapping[str, str]) -> dict[str, str | None]:
    """Return the settings that the user has not made."""
    return {name: value for name, value in settings.items() if name not in os.environ}


@contextmanager
def _environment(settings: Mapping[str, str | None]) -> Iterator[None]:
    """Change the environment of this process, which Ray's inherit, inside of the block."""
    before = {name: os.environ.get(name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    tempfile.tempdir = None  # Python's cache of it
    private.reread_environment()
