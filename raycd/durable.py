"""Atomic replacement of files and folders, second names, hashes, and locks between processes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import lock_descriptor

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700  # rights of what only the service's user may read

WRITING, REPLACED = ".writing", ".replaced"  # endings of folders in the making, and put aside


@contextmanager
def replace_file(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Give a new, empty file beside `path`; without an error it takes the name `path`.

    Readers see the old file or the new one, and so they do after a power cut. After an error in the
    block nothing has changed. A killed process leaves a file `.<name>.<random>.unfinished`.
    """
    prefix, suffix = f".{path.name}.", ".unfinished"
    descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
    os.fchmod(descriptor, mode)
    os.close(descriptor)
    fresh = Path(name)
    try:
        yield fresh
        sync(fresh)
        fresh.replace(path)
        sync(path.parent)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder under another name: a kill leaves no half of it under its own.

    What cannot be removed (on NFS a file that is open) stays for `remove_halves`.
    """
    gone = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{WRITING}")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def replace_folder(folder: Path, *, mode: int = 0o777, new: bool = False) -> Iterator[Path]:
    """Give a new, empty folder beside `folder`; without an error it takes the name `folder`.

    Everything is on the disk before the name changes. An older `folder` stays readable until then:
    it is renamed, and renamed back where the change fails. After an error in the block nothing has
    changed. Where the folder is to be `new`, one that is there by then stays: FileExistsError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}{WRITING}")
    old = folder.with_name(f".{folder.name}.{os.getpid()}{REPLACED}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode)
    try:
        yield fresh
        for parent, _, files in os.walk(fresh):
            for name in [*files, "."]:
                sync(Path(parent, name))
        if folder.exists():
            if new:
                raise FileExistsError(errno.EEXIST, "is there already", str(folder))
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        try:
            fresh.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
        sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def remove_halves(folder: Path) -> None:
    """Remove what processes have left in a folder that were killed in `replace_folder`.

    Nobody else writes there now. What was put aside for another of the same name comes back where
    that one is absent.
    """
    for path in sorted(folder.glob(".*.*.*")):
        name, _, kind = path.name[1:].rsplit(".", 2)
        if f".{kind}" == REPLACED and not (folder / name).exists():
            path.rename(folder / name)
        elif f".{kind}" in (WRITING, REPLACED):
            shutil.rmtree(path, ignore_errors=True)


def link_files(folder: Path, into: Path) -> None:
    """Give the files of a folder, unless it is absent, a second name in another one.

    Where the file system has no second names they are copied. What is hidden, of processes that
    were killed, is left out.
    """
    if folder.exists():
        hidden = shutil.ignore_patterns(".*")
        shutil.copytree(folder, into, copy_function=_link, ignore=hidden, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def create_folder_once(folder: Path, fill: Callable[[Path], object]) -> None:
    """Make `folder` by `fill(new folder)`, unless it exists: once among all threads and processes.

    The others wait until it is complete.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.parent):
        if not folder.exists():
            with replace_folder(folder) as fresh:
                fill(fresh)


@contextmanager
def held_alone(lock: Path, refused: Callable[[str], Exception]) -> Iterator[bool]:
    """Hold a lock file inside of the block, or raise what `refused` makes of its holder's number.

    The folder of the file is there. Gives what `file_lock` does.
    """
    with ExitStack() as stack:
        try:
            locked = stack.enter_context(file_lock(lock, wait=False))
        except BlockingIOError as error:
            raise refused(lock.read_text(encoding="utf-8").strip()) from error
        yield locked


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock a file or an existing folder inside of the block, among all threads and processes.

    The lock ends with its process, however that ends. A file is created where it is absent, gets
    the number of the process that holds it, and stays: if it was removed, two processes could lock
    two files of one name. Where the file system has no locks, the block runs without one: it gives
    whether there is one.

    Raises:
        BlockingIOError: `wait` is False and another one holds the lock.
    """
    is_folder = path.is_dir()
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        locked = True
        try:
            refused = not lock_descriptor(descriptor, blocking=wait)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            refused = locked = False
        if refused:
            raise BlockingIOError(errno.EWOULDBLOCK, "is locked by another process", str(path))
        if not is_folder:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield locked
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hexadecimal digits.

    Raises:
        OSError: It cannot be read, or is not a regular file: a pipe would never end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's bytes or a folder's names are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
