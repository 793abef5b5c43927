"""Ends this process when the Ray that it works on has died.

Ray itself says so in warnings at most: calls into a Ray that is gone wait for minutes or for ever,
and a supervisor would see a process that lives. A thread of its own looks, so it does not matter
where the main thread waits.

    ray.init(...)
    with watch.ray_lives():
        ...
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from raycd.config import cli
from raycd.errors import RaycdError

EVERY_S = 1.0  # between two looks
BROKEN_S = 3.0  # that an error may come before the death that has caused it can be seen
HEAD_S = 45.0  # without a head: on a cluster one may come back with all it knew
PORT_S = 30.0  # without a proxy: Ray Serve starts another one within seconds
SIGNAL_S, UNWIND_S = (
    2.0,
    10.0,
)  # until a signal is heard of inside of Ray; until what it interrupts has come to an end
CONNECT_S = 2.0

Check = Callable[[], str]  # what has died, in words; empty: nothing

leftovers: list[Path] = []
"""Files and folders that are removed then: nothing else cleans up any more. Whoever makes one
appends it.
"""

_ending = threading.Lock()  # whoever sees the death first tells of it


@contextmanager
def ray_lives() -> Iterator[None]:
    """While open, end this process with exit code EXIT_RAY_DIED as soon as its Ray has died. Needs
    a connected Ray.
    """
    with _watching(_check_of_ray()):
        yield


@contextmanager
def port_answers(host: str, port: int) -> Iterator[None]:
    """While open, end this process the same way where nothing has listened on host:port for PORT_S."""
    heard = time.monotonic()

    def check() -> str:
        nonlocal heard
        if _listens(host, port):
            heard = time.monotonic()
        return (
            f"nothing listens on port {port} any more" if time.monotonic() - heard > PORT_S else ""
        )

    with _watching(check):
        yield


@contextmanager
def _watching(check: Check) -> Iterator[None]:
    watch = _Watch(check)
    thread = threading.Thread(target=watch.run, name="raycd-watch", daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        # One that Ray's death has caused is no bug and no mistake of the user, and may come before
        # the death is seen.
        watch.look(0 if isinstance(error, RaycdError) and error.__cause__ is None else BROKEN_S)
        raise
    finally:
        watch.closed.set()
        thread.join()


class _Watch:
    """Looks until it is closed, and knows the processes below this one."""

    def __init__(self, check: Check) -> None:
        self.closed = threading.Event()
        self._check = check
        self._family: set[psutil.Process] = set()

    def run(self) -> None:
        """Look every EVERY_S."""
        while not self.closed.wait(EVERY_S):
            if died := self._check():
                self._end(died)
            # Workers of a dead raylet are nobody's children any more, so they have to be known
            # before.
            self._family = {process for process in self._family | _below() if process.is_running()}

    def look(self, seconds: float) -> None:
        """Look for so long, at once for the first time."""
        until = time.monotonic() + seconds
        while not (died := self._check()):
            if time.monotonic() > until:
                return
            time.sleep(0.1)
        self._end(died)

    def _end(self, died: str) -> None:
        """End this process and those below it. Return only where a signal is ending it, and that
        comes to an end.
        """
        with _ending:
            if cli.terminated.wait(SIGNAL_S):  # a supervisor's signal has ended Ray as well
                if self.closed.wait(UNWIND_S):
                    return
                code, sentence = cli.EXIT_TERMINATED, "terminated"
            else:
                code, sentence = (
                    cli.EXIT_RAY_DIED,
                    f"error: Ray has died ({died}): start this program again",
                )
            stderr = os.dup(2)
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), 2
            )  # what Ray says of it, from now on, would bury the sentence
            for process in self._family | _below():
                with suppress(psutil.Error):
                    process.kill()
            for path in leftovers:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                    missing_ok=True
                )
            os.write(stderr, f"{sentence}\n".encode())
            os._exit(code)


def _check_of_ray() -> Check:
    """Looks at the raylet of this node, and at the head: a child of this process, or an address
    where it listens.
    """
    import ray

    context = ray.get_runtime_context()
    node, address = (
        context.get_node_id(),
        getattr(context, "gcs_address", ""),
    )  # Ray's client knows no address
    parts = {part.name(): part for part in psutil.process_iter() if _is_part(part, node)}
    if "gcs_server" in parts and parts["gcs_server"].ppid() != os.getpid():
        del parts["gcs_server"]  # somebody else's, who may start another one in its place
    host, _, port = address.rpartition(":")
    heard = time.monotonic()

    def check() -> str:
        nonlocal heard
        for name, part in parts.items():
            if not _lives(part):
                return f"its {name} has ended"
        if "gcs_server" in parts or not address or _listens(host.strip("[]"), int(port)):
            heard = time.monotonic()
        return (
            f"no answer from {address} for {HEAD_S:g} s"
            if time.monotonic() - heard > HEAD_S
            else ""
        )

    return check


def _is_part(process: psutil.Process, node: str) -> bool:
    """Whether it is the raylet or the GCS of a node."""
    try:
        return process.name() in ("raylet", "gcs_server") and any(
            node in word for word in process.cmdline()
        )
    except psutil.Error:
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _below() -> set[psutil.Process]:
    """The processes that this one has started, and theirs."""
    with suppress(psutil.Error):
        return set(psutil.Process().children(recursive=True))
    return set()


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            return True
    except OSError:
        return False
