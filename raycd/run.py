"""A run: a folder or a URI with one subfolder for each stage, complete or absent.

A stage writes under a temporary name; when it is complete, `stage.json` (fingerprint, inputs,
configuration, counts, seconds) is added and the folder is renamed. A stage whose `stage.json` has
the fingerprint of its settings and inputs is done, and does not run again. What workers write (the
shards of features) has a place of its own, named after the fingerprint: there a stage that was
killed finds what it had, and at the end that becomes a part of it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import posixpath
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from raycd import extras, progress, scratch, stores
from raycd.durable import held_alone, link_files, remove_halves, replace_file, replace_folder
from raycd.errors import RunError, brief
from raycd.redact import json_without_passwords, without_passwords
from raycd.stores import Doing, lease
from raycd.stores.lease import FolderLease

RECORD = "stage.json"
IDENTITY = "run.json"
UNFINISHED = ".unfinished"  # folder of what the workers of unfinished stages have written

Answer = TypeVar("Answer")


def fingerprint(*parts: object) -> str:
    """Return a hash of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def short_name(stage: str, fingerprint: str) -> str:
    """Return the name of a folder of what an unfinished stage has written."""
    return f"{stage}-{fingerprint[:16]}"


@dataclass
class Writing:
    """A stage that is being written: files go to `folder` (local), `record` into stage.json.

    Workers write to `shared`, a folder or URI that all of them reach.
    """

    stage: str
    fingerprint: str
    folder: Path
    shared: str
    record: dict[str, Any] = field(default_factory=dict)


class Run:
    """The run folder `root`, a path or any URI of fsspec.

    Args:
        identity: Whose folder it is (the data set). Other settings only redo stages.

    Raises:
        RunError: The folder cannot be opened or made, or has another identity.
    """

    def __init__(self, root: str, identity: Mapping[str, Any]) -> None:
        try:
            self._fs, self._path = open_uri(root)
        except (ImportError, ValueError, OSError) as error:
            raise RunError(
                f"the run folder {without_passwords(root)} cannot be opened",
                got=f"{type(error).__name__}: {error}",
                do="check --runs, and install the fsspec package of its protocol "
                f"(for s3: {extras.install('s3fs')})",
            ) from error
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self.root = self._path if self.is_local else root.rstrip("/")
        self._lease: FolderLease | None = None
        self._claim(json_without_passwords(identity))

    def _ask(self, question: Callable[[], Answer], doing: Doing = "reading") -> Answer:
        """Ask a store with patience; its errors, of whatever library, are RunErrors."""
        return stores.ask(self.root, question, doing=doing, kind=RunError)

    def _write(self, question: Callable[[], Answer]) -> Answer:
        """Ask a store to change the run, while it is this process's."""
        if self._lease is not None:
            self._lease.check()
        return self._ask(question, "writing")

    def _claim(self, identity: dict[str, Any]) -> None:
        if self.is_local and os.path.lexists(self._path) and not os.path.isdir(self._path):
            raise RunError(f"{self.root} is not a folder", do="choose another --name or --runs")
        known = json_without_passwords(self.read_json(IDENTITY))
        if known is None:
            self._make()
            if self.is_local and any(not name.startswith(".") for name in os.listdir(self._path)):
                raise RunError(
                    f"{self.root} holds other things than a run",
                    got=", ".join(sorted(os.listdir(self._path))[:5]),
                    expected="an empty or absent folder, or one that a run has written",
                    do="choose another --name or --runs",
                )
            self.write_json(IDENTITY, identity)
        elif not isinstance(known, dict):
            raise RunError(
                f"{self.path(IDENTITY)} does not say whose run this is",
                got=known,
                expected=f"an object with {', '.join(identity)}",
                do="choose another --name or --runs",
            )
        elif known != identity:
            raise RunError(
                f"the run folder {self.root} belongs to another run",
                got=_differing(identity, known),
                expected=_differing(known, identity),
                do="give this run a --name of its own",
            )

    def _make(self) -> None:
        try:
            self._write(partial(stores.make_folder, self._fs, self._path))
        except (NotADirectoryError, FileExistsError, FileNotFoundError) as error:
            raise RunError(
                f"the run folder {self.root} cannot be made",
                got=error.strerror,
                do="choose another --runs",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run inside of the block.

        Raises:
            RunError: Another process has locked it, or takes it from this one, which has shown no
                sign of life (`raycd.stores.lease`, on a store).
        """

        def refused(holder: str) -> RunError:
            return RunError(
                f"the run {self.root} is in use",
                got=f"{holder} works on it",
                do="wait for it, or choose another --name",
            )

        with alone(self.root, refused) as self._lease:
            if self.is_local:
                remove_halves(Path(self.root))
            try:
                yield
            finally:
                self._lease = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process reads the run by; who holds it stays here."""
        return vars(self) | {"_lease": None}

    def path(self, *parts: str) -> str:
        """Return the path or URI of something in this run."""
        return posixpath.join(self.root, *parts)

    def exists(self, name: str) -> bool:
        """Return whether a file or folder exists."""
        return bool(self._ask(partial(self._fs.exists, posixpath.join(self._path, name))))

    def record(self, stage: str) -> dict[str, Any] | None:
        """Return stage.json of a stage that is complete, else None."""
        record: dict[str, Any] | None = self.read_json(f"{stage}/{RECORD}")
        return record

    def local(self, name: str) -> Path:
        """Return a stage's folder or a file as a local one; of a remote run, a `local_copy`."""
        return local_copy(self.path(name))

    @contextmanager
    def writing(self, stage: str, fingerprint: str, **about: Any) -> Iterator[Writing]:
        """Write a stage. It replaces an older one at the end; after an error nothing remains of it
        but what is in `Writing.shared`, where the same stage, started again, finds it.

        Args:
            about: What stage.json contains beside what the block adds to `record`.
        """
        began = time.monotonic()
        shared = posixpath.join(UNFINISHED, short_name(stage, fingerprint))
        with self._fresh(stage, shared) as folder:
            writing = Writing(stage, fingerprint, folder, self.path(shared))
            yield writing
            seconds = round(time.monotonic() - began, 3)
            record = {"stage": stage, "fingerprint": fingerprint, "seconds": seconds}
            record_json = json.dumps(record | about | writing.record, indent=1, default=str)
            (folder / RECORD).write_text(record_json, encoding="utf-8")
        self.discard_leftovers(UNFINISHED, f"{stage}-*")

    @contextmanager
    def _fresh(self, stage: str, shared: str) -> Iterator[Path]:
        """Give an empty local folder, which becomes the stage's unless the block raises.

        What lies in `shared` becomes a part of the stage, too, and stays there until the stage is
        whole: a process that is killed on the way loses nothing.
        """
        if self.is_local:
            with replace_folder(Path(self._path) / stage) as folder:
                yield folder
                self._write(partial(link_files, Path(self._path) / shared, folder))
            return
        with scratch.folder() as folder:
            yield folder
            self._upload(stage, folder, shared)

    def _upload(self, stage: str, folder: Path, shared: str) -> None:
        final, written = (posixpath.join(self._path, name) for name in (stage, shared))
        record = (folder / RECORD).read_bytes()
        (folder / RECORD).unlink()

        def replace() -> None:
            if self._fs.exists(f"{final}/{RECORD}"):
                self._fs.rm_file(f"{final}/{RECORD}")  # first: without it nothing counts
            if self._fs.exists(final):
                self._fs.rm(final, recursive=True)
            self._fs.put(f"{folder}/", f"{final}/", recursive=True)
            found = [str(path) for path in self._fs.find(written)]
            found = [path for path in found if not posixpath.basename(path).startswith(".")]
            copies = [posixpath.join(final, path[len(written) :].lstrip("/")) for path in found]
            for parent in {posixpath.dirname(copy) for copy in copies}:
                stores.make_folder(self._fs, parent)
            if found:
                self._fs.copy(found, copies)  # many at once, where the store can

        self._write(replace)
        # Last: a stage without it is incomplete
        self._write(partial(self._fs.pipe_file, f"{final}/{RECORD}", record))
        _forget(self.path(stage))

    def discard(self, pattern: str) -> None:
        """Remove what the glob pattern matches in the run's folder."""

        def remove() -> None:
            for found in self._fs.glob(posixpath.join(glob.escape(self._path), pattern)):
                self._fs.rm(found, recursive=True)

        self._write(remove)

    def discard_leftovers(self, folder: str, own: str) -> None:
        """Remove what a folder has of a stage that is whole, by the glob pattern `own`.

        Where that fails, warn and go on.
        """
        try:
            for hidden in ("", "."):  # what was being written when a worker was killed
                self.discard(f"{folder}/{hidden}{own}")
        except (OSError, RunError) as error:
            why = error.what if isinstance(error, RunError) else brief(error)
            progress.say(f"warning: {self.path(folder, own)} is left over: {why}")

    def names(self, folder: str) -> list[str]:
        """Return the sorted names in a folder of the run; none where it is absent."""
        path = posixpath.join(self._path, folder)
        found = stores.names(self.root, self._fs, path, kind=RunError)
        return [name for name in found if not name.startswith(".")]

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run; None where it is absent. Raises RunError if malformed."""
        try:
            data = self._ask(partial(self._fs.cat_file, posixpath.join(self._path, name)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise RunError(
                f"{self.path(name)} is not valid JSON",
                got=error,
                do="delete it; the stage will run again",
            ) from error

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file as `write_bytes` does."""
        self.write_bytes(name, json.dumps(value, indent=1, default=str).encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file atomically: readers see the old one or the new one."""
        self.write_chunks(name, [data])

    def write_chunks(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a file of many parts as `write_bytes` does."""
        path = posixpath.join(self._path, name)
        if self.is_local:
            os.makedirs(posixpath.dirname(path), exist_ok=True)
            with replace_file(Path(path)) as fresh, fresh.open("wb") as file:
                self._write(partial(file.writelines, chunks))
            return
        with scratch.folder() as folder:
            whole = folder / "whole"
            with whole.open("wb") as file:
                file.writelines(chunks)
            self._write(partial(self._fs.put_file, str(whole), path))
        _forget(self.path(name))


def _differing(identity: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return what differs in an identity: "format = 'cirr', root = '/data/cirr'"."""
    return ", ".join(
        f"{key} = {value!r}" for key, value in identity.items() if value != other.get(key)
    )


_copies: dict[str, Path] = {}


def _forget(uri: str) -> None:
    """Forget copies of `uri` and of what is in it: they are out of date."""
    for known in [known for known in _copies if known == uri or known.startswith(f"{uri}/")]:
        del _copies[known]


@contextmanager
def alone(uri: str, refused: Callable[[str], Exception]) -> Iterator[FolderLease | None]:
    """Hold a folder or URI inside of the block; give its lease where it has one.

    That is on a store, and on a file system without locks (Lustre without -o flock, some of FUSE).
    Raises what `refused` makes of another holder; of a lease, what `raycd.stores.lease` does.
    """
    file_system, path = open_uri(uri)
    with ExitStack() as stack:
        if isinstance(file_system, LocalFileSystem):
            os.makedirs(path, exist_ok=True)
            lock = held_alone(Path(path, ".lock"), lambda number: refused(f"process {number}"))
            if stack.enter_context(lock):
                yield None
                return
        shown = without_passwords(uri)
        yield stack.enter_context(lease.held(file_system, path, shown, refused, progress.say))


def open_uri(uri: str) -> tuple[AbstractFileSystem, str]:
    """Return fsspec's file system of a path or URI, and the path in it."""
    # Without its cache of listings, which would hide what other processes write.
    file_system, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    return file_system, path


def local_copy(uri: str, into: Path | None = None) -> Path:
    """Return a folder or file as a local path: itself where it is local, else a copy.

    Args:
        into: An empty folder for the copy. Without one, the copy is made once and stays until this
            process ends.
    """
    file_system, path = open_uri(uri)
    if isinstance(file_system, LocalFileSystem):
        return Path(path)
    if into is None and uri in _copies:
        return _copies[uri]
    copy = partial(_copied, file_system, path, into or scratch.new_folder())
    copied = stores.ask(uri, copy, kind=RunError)
    if into is None:
        _copies[uri] = copied
    return copied


@contextmanager
def forgetting_copies() -> Iterator[None]:
    """Remove, at the end of the block, the copies that `local_copy` has made in it, and before."""
    try:
        yield
    finally:
        while _copies:
            copied = _copies.popitem()[1]
            shutil.rmtree(copied if copied.is_dir() else copied.parent, ignore_errors=True)


def _copied(file_system: AbstractFileSystem, path: str, into: Path) -> Path:
    if file_system.isdir(path):
        file_system.get(f"{path.rstrip('/')}/", f"{into}/", recursive=True)
        return into
    into /= posixpath.basename(path)
    file_system.get_file(path, str(into))
    return into
