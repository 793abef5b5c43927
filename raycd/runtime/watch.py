"""A watch that ends this process when the Ray that it works on has died.

Ray itself only warns: calls into a dead Ray wait for minutes or for ever, and a supervisor would
see a living process. The watch has a thread of its own, so it does not matter where the main thread
waits.

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

EVERY_S = 1.0  # between two checks
BROKEN_S = 3.0  # how much earlier an error may come than the death that caused it can be seen
HEAD_S = 45.0  # without a head: on a cluster it may come back with its state
PORT_S = 30.0  # without a proxy: Ray Serve starts another one within seconds
SIGNAL_S = 2.0  # for a signal to be noticed inside of Ray
UNWIND_S = 10.0  # for the interrupted work to end
CONNECT_S = 2.0

Check = Callable[[], str]  # returns what has died; empty: nothing

leftovers: list[Path] = []
"""Files and folders to remove at such an end, when nothing else does. Their makers add them."""

_ending = threading.Lock()  # only the first one who sees the death reports it


@contextmanager
def ray_lives() -> Iterator[None]:
    """Inside of the block, end this process (EXIT_RAY_DIED) when its connected Ray dies."""
    with _watching(_check_of_ray()):
        yield


@contextmanager
def port_answers(host: str, port: int, *, must: bool = True) -> Iterator[None]:
    """Inside of the block, end this process when nothing has listened on host:port for PORT_S.

    Unless it `must`, it may also never listen: a machine may have no proxy of its cluster.
    """
    heard = time.monotonic() if must else None

    def check() -> str:
        nonlocal heard
        if _listens(host, port):
            heard = time.monotonic()
        lost = heard is not None and time.monotonic() - heard > PORT_S
        return f"nothing listens on port {port} any more" if lost else ""

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
        # An error that Ray's death has caused is neither a bug nor the user's mistake, and may come
        # before the death can be seen.
        watch.look(0 if isinstance(error, RaycdError) and error.__cause__ is None else BROKEN_S)
        raise
    finally:
        watch.closed.set()
        thread.join()


class _Watch:
    """A check every EVERY_S until it is closed; it knows the processes below this one."""

    def __init__(self, check: Check) -> None:
        self.closed = threading.Event()
        self._check = check
        self._family: set[psutil.Process] = set()

    def run(self) -> None:
        """Check every EVERY_S."""
        while not self.closed.wait(EVERY_S):
            if died := self._check():
                self._end(died)
            # Noted now: workers of a dead raylet are not below this process any more.
            self._family = {process for process in self._family | _below() if process.is_running()}

    def look(self, seconds: float) -> None:
        """Check for so long, the first time at once."""
        until = time.monotonic() + seconds
        while not (died := self._check()):
            if time.monotonic() > until:
                return
            time.sleep(0.1)
        self._end(died)

    def _end(self, died: str) -> None:
        """End this process and those below it, unless a signal already does, and in time."""
        with _ending:
            if cli.terminated.wait(SIGNAL_S):  # a supervisor's signal has ended Ray as well
                if self.closed.wait(UNWIND_S):
                    return
                code, sentence = cli.EXIT_TERMINATED, "terminated"
            else:
                code = cli.EXIT_RAY_DIED
                sentence = f"error: Ray has died ({died}): start this program again"
            stderr = os.dup(2)
            # What Ray prints from now on would bury the sentence.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            for process in self._family | _below():
                with suppress(psutil.Error):
                    process.kill()
            for path in leftovers:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            os.write(stderr, f"{sentence}\n".encode())
            os._exit(code)


def _check_of_ray() -> Check:
    """Return a check of this node's raylet and of the head: our child, or an address to call."""
    import ray

    context = ray.get_runtime_context()
    node = context.get_node_id()
    address = getattr(context, "gcs_address", "")  # Ray's client (ray://) does not have it
    parts = {part.name(): part for part in psutil.process_iter() if _is_part(part, node)}
    if "gcs_server" in parts and parts["gcs_server"].ppid() != os.getpid():
        del parts["gcs_server"]  # another process's, which may start another one in its place
    host, _, port = address.rpartition(":")
    heard = time.monotonic()

    def check() -> str:
        nonlocal heard
        for name, part in parts.items():
            if not _lives(part):
                return f"its {name} has ended"
        if "gcs_server" in parts or not address or _listens(host.strip("[]"), int(port)):
            heard = time.monotonic()
        lost = time.monotonic() - heard > HEAD_S
        return f"no answer from {address} for {HEAD_S:g} s" if lost else ""

    return check


def _is_part(process: psutil.Process, node: str) -> bool:
    """Return whether a process is the raylet or the GCS of a node."""
    try:
        named = process.name() in ("raylet", "gcs_server")
        return named and any(node in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _below() -> set[psutil.Process]:
    """Return the processes that this one has started, and theirs."""
    with suppress(psutil.Error):
        return set(psutil.Process().children(recursive=True))
    return set()


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            return True
    except OSError:
        return False
