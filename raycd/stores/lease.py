"""A lease: the lock of a folder on a store, which at most one process holds.

    .lease/00000007.json   {"token": "9f..", "holder": "process 4711 on a, since ..", "beat": 41}

The process that creates the object of the next number has the lease. Creating is a conditional put
(S3: `If-None-Match: *`, GCS: a generation), of which the store lets one succeed. The holder writes
its object anew every RENEWED seconds, with the next beat. Whoever comes meanwhile watches it: where
the beat changes, the holder lives. Where it does not for EXPIRES seconds of the watcher's own clock
(those of two machines are never compared), the holder has died, and the next number is taken. A
holder that was only asleep finds that number before it writes again, and is interrupted. The last
object stays, released, and older ones go: who creates one of those has come too late.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from raycd import stores
from raycd.errors import RaycdError, RunError

FOLDER = ".lease"
RENEWED, EXPIRES = 5.0, 30.0  # seconds
_NAME = re.compile(r"(\d{8,})\.json")

Found = tuple[int, dict[str, Any]]
"""Number and content of the last object; 0 and nothing where there is none."""


class FolderLease:
    """The lease of the folder `path` in a store; `uri` names it in messages."""

    def __init__(self, store: AbstractFileSystem, path: str, uri: str) -> None:
        self._store, self._folder = store, posixpath.join(path, FOLDER)
        self._uri = posixpath.join(uri, FOLDER)
        self._number, self._beat, self._token = 0, 0, uuid.uuid4().hex
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._me = f"process {os.getpid()} on {socket.gethostname()}, since {since},"
        self._renewed, self._renewing, self._released = 0.0, threading.Lock(), False
        self.taken_by = ""
        """Who has taken it from this process."""

    def take(self, refused: Callable[[str], Exception], tell: Callable[[str], None]) -> None:
        """Take the lease; wait for it where its holder may have died.

        Raises what `refused` makes of a holder that lives, or RaycdError where the store fails.
        """
        make = partial(stores.make_folder, self._store, self._folder)
        stores.ask(self._uri, make, doing="writing")
        watched, waited, before = None, 0.0, time.monotonic()
        while True:
            asked = time.monotonic()  # before: this process may be asleep after the answer
            # No more for one look: where this process was asleep, so may the holder have been
            waited, before = waited + min(asked - before, RENEWED), asked
            number, found = self._last()
            if not found.get("holder"):  # nobody's, or released
                watched, waited = found, EXPIRES
            elif watched is None:
                watched, waited, before = found, 0.0, time.monotonic()
                tell(
                    f"{self._uri} is held: {found['holder']} works on it or has died; "
                    f"watching it for up to {EXPIRES:g} s"
                )
            elif found != watched:
                raise refused(found["holder"])
            if waited >= EXPIRES and self._created(number + 1):
                break
            time.sleep(RENEWED / 5)
        if self._overwrites():
            tell(
                f"warning: {stores.store_of(self._uri)} ignores conditional writes "
                "(If-None-Match): of two jobs that start at once, one ends later than it should"
            )

    def renew(self, *, patient: bool = False) -> None:
        """Write the next beat, unless another process has taken the lease.

        Raises RunError where one has, RaycdError where the store fails.
        """
        with self._renewing:
            if self._released:
                return
            asked = _now()  # before: the answer may be older than the lease
            number, found = self._last(patient=patient)
            if number != self._number or found.get("token") != self._token:
                self.taken_by = found.get("holder") or "another process, which has ended,"
                raise self.lost()
            self._beat += 1
            self._write(self._number, self._me, patient=patient)
            self._renewed = asked

    def check(self) -> None:
        """Raise RunError where the lease is lost; ask the store where that may be so."""
        if self.taken_by:
            raise self.lost()
        if _now() > self._renewed + EXPIRES / 2:
            self.renew(patient=True)

    def lost(self) -> RunError:
        """Return the error of a holder that another process has followed."""
        return RunError(
            f"{posixpath.dirname(self._uri)} is not this process's any more",
            got=f"{self.taken_by} has taken it",
            expected=f"a sign of life every {RENEWED:g} s, not none for {EXPIRES:g} s",
            do="wait for the other one, then run the same command again: it goes on",
        )

    def release(self) -> None:
        """Leave the lease to the next one, as far as the store answers: it expires anyway."""
        with self._renewing, suppress(RaycdError, OSError):
            self._released = True
            number, found = self._last(patient=False)
            if number == self._number and found.get("token") == self._token:
                self._write(self._number, "", patient=False)

    def _last(self, *, patient: bool = True) -> Found:
        return stores.ask(self._uri, self._read_last, patient=patient)

    def _read_last(self) -> Found:
        while True:
            numbers = self._numbers()
            if not numbers:
                return 0, {}
            try:
                data = self._store.cat_file(self._path(numbers[-1]))
            except FileNotFoundError:  # an old one, which the holder of a newer one has removed
                continue
            with suppress(ValueError):
                found = json.loads(data)
                if isinstance(found, dict):
                    return numbers[-1], found
            return numbers[-1], {"holder": "somebody"}  # not of this program: it expires

    def _numbers(self) -> list[int]:
        self._store.invalidate_cache(self._folder)
        try:
            listed = self._store.ls(self._folder, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = (posixpath.basename(str(each)) for each in listed)
        return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))

    def _created(self, number: int) -> bool:
        """Create the object of a number; return False where another process has, now or before."""
        asked = _now()
        try:
            self._write(number, self._me, mode="create")
        except FileExistsError:
            # Maybe of this process: its answer was lost, and the client asked again
            if self._last()[1].get("token") != self._token:
                return False
        except RaycdError as error:
            if not stores.cannot(error):
                raise
            self._write(number, self._me)
        self._number, self._renewed = number, asked
        numbers = stores.ask(self._uri, self._numbers)
        # Greater than the own one where others have held it since this process looked
        last = max([number, *numbers])
        with suppress(RaycdError, OSError):  # the next one tries it again
            for old in numbers:
                if old < last:
                    self._store.rm_file(self._path(old))
        return last == number

    def _overwrites(self) -> bool:
        """Return whether the store creates what is there."""
        try:
            self._write(self._number, self._me, mode="create")
        except FileExistsError:
            return False
        except RaycdError as error:
            if not stores.cannot(error):
                raise
        return True

    def _write(
        self, number: int, holder: str, mode: str = "overwrite", *, patient: bool = True
    ) -> None:
        content = {"token": self._token, "holder": holder, "beat": self._beat}
        path, data = self._path(number), json.dumps(content).encode()
        put = partial(self._store.pipe_file, path, data, mode=mode)
        if mode == "create" and isinstance(self._store, LocalFileSystem):
            put = partial(_create, path, data)  # fsspec's looks whether there is one, then writes
        stores.ask(self._uri, put, doing="writing", patient=patient)

    def _path(self, number: int) -> str:
        return posixpath.join(self._folder, f"{number:08d}.json")


@contextmanager
def held(
    store: AbstractFileSystem,
    path: str,
    uri: str,
    refused: Callable[[str], Exception],
    tell: Callable[[str], None],
) -> Iterator[FolderLease]:
    """Hold the lease of a folder inside of the block.

    Where another process takes it, the main thread is interrupted, and the block ends with
    `Lease.lost`. Raises as `Lease.take`.
    """
    lease, user = FolderLease(store, path, uri), threading.current_thread()
    lease.take(refused, tell)
    over, ending = threading.Event(), threading.Lock()
    holder = threading.Thread(
        target=_renew, args=(lease, over, ending, user), name="lease", daemon=True
    )
    holder.start()
    try:
        try:
            yield lease
        finally:
            with ending:  # from here on nobody is interrupted
                over.set()
    except (Exception, KeyboardInterrupt) as error:
        if lease.taken_by:  # whatever the interrupt was made into on its way
            raise lease.lost() from error
        raise
    finally:
        over.set()
        holder.join(RENEWED)
        lease.release()


def _renew(
    lease: FolderLease, over: threading.Event, ending: threading.Lock, user: threading.Thread
) -> None:
    """Renew a lease until it is over or lost; a store that does not answer is asked again."""
    while not over.wait(RENEWED):
        with suppress(RaycdError, OSError):  # of the store; or it is lost
            lease.renew()
        if lease.taken_by:
            with ending:
                if user is threading.main_thread() and not over.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return


def _create(path: str, data: bytes) -> None:
    """Write a file of this machine that is not there. Raises FileExistsError."""
    with open(path, "xb") as file:
        file.write(data)


def _now() -> float:
    """Return seconds of a clock that goes on while the machine is suspended, where it has one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
