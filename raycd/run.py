"""A run is a folder or a URI: one subfolder a stage, each whole or absent.

A stage writes under a temporary name; when it is whole, `stage.json` (fingerprint, inputs,
configuration, counts, seconds) is added and the folder is renamed. A stage whose `stage.json` has
the fingerprint that its settings and inputs ask for is done, and is not done again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import posixpath
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from raycd import scratch
from raycd.durable import replacing
from raycd.errors import RaycdError, RunError
from raycd.redact import without_passwords

RECORD = "stage.json"
IDENTITY = "run.json"


def fingerprint(*parts: object) -> str:
    """Hash of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass
class Writing:
    """A stage while it is being written: files go to `folder` (local), `record` becomes stage.json."""

    stage: str
    mark: str
    folder: Path
    record: dict[str, Any] = field(default_factory=dict)


class Run:
    """The run folder `root`, a path or any URI of fsspec.

    `identity` says whose folder it is (preset, data set): another identity is refused with
    RunError, while other settings only redo the stages that they touch.
    """

    def __init__(self, root: str, identity: Mapping[str, Any]) -> None:
        try:
            self._fs, self._path = open_place(root)
        except (ImportError, ValueError, OSError) as error:
            raise RunError(
                f"the run folder {root} cannot be opened",
                got=f"{type(error).__name__}: {error}",
                do="check --runs, and install the fsspec package of its protocol (s3fs, gcsfs, ...)",
            ) from error
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self.root = self._path if self.is_local else root.rstrip("/")
        with self._answering():
            self._claim(dict(identity))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn what a store raises (OSError, botocore, aiohttp) into RunError. Local errors stay as
        they are.
        """
        try:
            yield
        except (RaycdError, FileNotFoundError, NotADirectoryError):
            raise
        except Exception as error:
            if self.is_local:
                raise
            raise RunError(
                f"the store of the run {without_passwords(self.root)} refuses or does not answer",
                got=without_passwords(f"{type(error).__name__}: {error}"),
                do="check --runs, the store's address and credentials, then run the same command again: it goes on",
            ) from error

    def _claim(self, identity: dict[str, Any]) -> None:
        if self.is_local and os.path.lexists(self._path) and not os.path.isdir(self._path):
            raise RunError(f"{self.root} is not a folder", do="choose another --name or --runs")
        known = self.read_json(IDENTITY)
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
            self._fs.makedirs(self._path, exist_ok=True)
        except (NotADirectoryError, FileExistsError, FileNotFoundError) as error:
            raise RunError(
                f"the run folder {self.root} cannot be made",
                got=error.strerror,
                do="choose another --runs",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process (local folders). Raises RunError where another process has
        it.
        """
        if not self.is_local:
            yield
            return
        with open(os.path.join(self._path, ".lock"), "a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                raise RunError(
                    f"the run {self.root} is in use",
                    got=f"process {lock.read().strip()} works on it",
                    do="wait for it, or choose another --name",
                ) from error
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def path(self, *parts: str) -> str:
        """Path or URI of something in this run."""
        return posixpath.join(self.root, *parts)

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there."""
        with self._answering():
            return bool(self._fs.exists(posixpath.join(self._path, name)))

    def record(self, stage: str) -> dict[str, Any] | None:
        """stage.json of a stage that is whole, else None."""
        record: dict[str, Any] | None = self.read_json(f"{stage}/{RECORD}")
        return record

    def local(self, name: str) -> Path:
        """A stage's folder or a file of the run as a local one; of a remote run, a copy (see
        `local_copy`).
        """
        with self._answering():
            return local_copy(self.path(name))

    @contextmanager
    def writing(self, stage: str, mark: str, **about: Any) -> Iterator[Writing]:
        """Write a stage. On success it takes the place of an older one; otherwise nothing of it
        remains.

        `mark` is the stage's fingerprint; `about` goes into stage.json, as does what the block adds
        to `record`.
        """
        began = time.monotonic()
        with self._fresh(stage) as folder:
            writing = Writing(stage, mark, folder)
            yield writing
            seconds = round(time.monotonic() - began, 3)
            record = {
                "stage": stage,
                "fingerprint": mark,
                "seconds": seconds,
                **about,
                **writing.record,
            }
            (folder / RECORD).write_text(
                json.dumps(record, indent=1, default=str), encoding="utf-8"
            )

    @contextmanager
    def _fresh(self, stage: str) -> Iterator[Path]:
        """An empty local folder that becomes the stage's when the block ends well."""
        if self.is_local:
            with replacing(Path(self._path) / stage) as folder:
                yield folder
            return
        with scratch.folder() as folder:
            yield folder
            with self._answering():
                self._upload(stage, folder)

    def _upload(self, stage: str, folder: Path) -> None:
        final = posixpath.join(self._path, stage)
        record = (folder / RECORD).read_bytes()
        (folder / RECORD).unlink()
        if self._fs.exists(final):
            self._fs.rm(final, recursive=True)
        self._fs.put(f"{folder}/", f"{final}/", recursive=True)
        self._fs.pipe_file(f"{final}/{RECORD}", record)  # last: a stage without it is not whole
        _forget(self.path(stage))

    def discard(self, pattern: str) -> None:
        """Remove what the pattern matches, below the run's folder."""
        with self._answering():
            for found in self._fs.glob(posixpath.join(self._path, pattern)):
                self._fs.rm(found, recursive=True)

    def names(self, folder: str) -> list[str]:
        """What is in a folder of the run, in order; nothing where it is absent."""
        try:
            with self._answering():
                found = self._fs.ls(posixpath.join(self._path, folder), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = (posixpath.basename(str(path).rstrip("/")) for path in found)
        return sorted(name for name in names if not name.startswith("."))

    def read_json(self, name: str) -> Any:
        """A JSON file of the run, or None where it is absent. Raises RunError where it is
        malformed.
        """
        try:
            with self._answering():
                data = self._fs.cat_file(posixpath.join(self._path, name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise RunError(
                f"{self.path(name)} is not valid JSON",
                got=error,
                do="delete it; the stage is done again",
            ) from error

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON file at once: readers see the old one or the new one."""
        self.write_bytes(name, json.dumps(value, indent=1, default=str).encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file at once."""
        path = posixpath.join(self._path, name)
        if self.is_local:
            folder, leaf = posixpath.split(path)
            os.makedirs(folder, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{leaf}-", delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.chmod(file.name, 0o644)
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        else:
            with self._answering():
                self._fs.pipe_file(path, data)
            _forget(self.path(name))


def _differing(identity: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What an identity says otherwise than the other one: "format = 'cirr', root = '/data/cirr'"."""
    return ", ".join(
        f"{key} = {value!r}" for key, value in identity.items() if value != other.get(key)
    )


_copies: dict[str, Path] = {}


def _forget(uri: str) -> None:
    """What was copied of `uri`, or from within it, is out of date."""
    for known in [known for known in _copies if known == uri or known.startswith(f"{uri}/")]:
        del _copies[known]


def open_place(uri: str) -> tuple[AbstractFileSystem, str]:
    """Return fsspec's file system of a path or URI, and the path in it.

    It keeps no listings: what other processes write meanwhile must be seen.
    """
    file_system, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    return file_system, path


def local_copy(uri: str, into: Path | None = None) -> Path:
    """Return a folder or file as a local path: itself where it is local, else a copy.

    The copy lies in the empty folder `into`; without one, it stays until this process ends and is
    made only once.
    """
    file_system, path = open_place(uri)
    if isinstance(file_system, LocalFileSystem):
        return Path(path)
    if into is not None:
        return _copied(file_system, path, into)
    if uri not in _copies:
        _copies[uri] = _copied(file_system, path, scratch.new_folder())
    return _copies[uri]


def _copied(file_system: AbstractFileSystem, path: str, into: Path) -> Path:
    if file_system.isdir(path):
        file_system.get(f"{path.rstrip('/')}/", f"{into}/", recursive=True)
        return into
    into /= posixpath.basename(path)
    file_system.get_file(path, str(into))
    return into
