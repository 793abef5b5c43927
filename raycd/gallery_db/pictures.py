"""The pictures that clients have uploaded: files in a folder, or in a store of fsspec.

The gallery database has their locations, `pictures:<folder>/<name>`, which stay valid where the
folder is moved, or restored elsewhere from a backup.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import fsspec
from fsspec import AbstractFileSystem

from raycd import stores
from raycd.data.folder import is_local
from raycd.durable import PRIVATE_FILE, PRIVATE_FOLDER, replace_file, sync
from raycd.errors import GalleryError
from raycd.gallery_db import faults
from raycd.run import open_uri
from raycd.stores import Doing

SCHEME = "pictures:"
# Also the temporary name of `replace_file`: what a killed writer left is listed, as a picture that
# no image names, and removed like one.
_NAME = re.compile(
    r"[0-9a-f]{2}/\.?[0-9a-f]{32}(\.[a-z0-9]{1,8})?((\.[a-z0-9_]{1,16})?\.unfinished)?"
)

Answer = TypeVar("Answer")


class Pictures:
    """A store of pictures, a file each; any thread and any process may use it.

    Args:
        root: A folder, or an fsspec URI.
    """

    def __init__(self, root: str) -> None:
        local = is_local(root)
        self.root = os.path.abspath(os.path.expanduser(root)) if local else root.rstrip("/")

    def add(self, data: bytes, extension: str) -> str:
        """Keep a file; return its location once it is on the disk.

        Raises:
            GalleryError: It cannot be kept.
        """
        name = uuid.uuid4().hex
        inside = f"{name[:2]}/{name}"
        if re.fullmatch("[a-z0-9]{1,8}", extension):
            inside += f".{extension}"
        try:
            if is_local(self.root):
                _write(Path(self.root) / inside, data)
            else:
                with fsspec.open(f"{self.root}/{inside}", "wb") as file:
                    file.write(data)
        except Exception as error:  # whatever a store raises: OSError, ImportError, botocore's, ...
            raise _failed("a picture cannot be kept", error) from error
        return SCHEME + inside

    def locate(self, location: str) -> str:
        """Return the path or URI of a location; a path or URI itself stays as it is.

        Raises:
            GalleryError: The location is malformed, maybe forged.
        """
        if not location.startswith(SCHEME):
            return location
        inside = location.removeprefix(SCHEME)
        if not _NAME.fullmatch(inside):
            what = "the location of a picture is malformed"
            raise GalleryError(what, "damaged", got=repr(location[:100]))
        return f"{self.root}/{inside}"

    def remove(self, location: str) -> None:
        """Remove an uploaded picture, if it is there; other files stay.

        Raises:
            GalleryError: It cannot be removed.
        """
        if not location.startswith(SCHEME):
            return
        path = self.locate(location)
        try:
            if is_local(path):
                Path(path).unlink(missing_ok=True)
            else:
                store, inside = open_uri(path)
                with suppress(FileNotFoundError):
                    store.rm_file(inside)
        except Exception as error:  # as in `add`
            raise _failed("a picture cannot be removed", error) from error

    def restore(self, location: str, copy: Path) -> None:
        """Keep the copy of a picture under the location that it had; see `add`.

        Raises:
            GalleryError: The location is malformed, or the store fails.
            OSError: The disk fails.
        """
        path = self.locate(location)

        def put(store: AbstractFileSystem, inside: str) -> None:
            stores.make_folder(store, inside.rpartition("/")[0])
            store.put_file(str(copy), inside)

        if is_local(path):
            _write(Path(path), copy.read_bytes())
        else:
            _ask(path, put, "writing")

    def written(self, location: str) -> datetime | None:
        """Return when a picture was written; None where it has gone.

        Raises:
            GalleryError: The location is malformed, or the store fails.
        """
        path = self.locate(location)
        try:
            if is_local(path):
                return datetime.fromtimestamp(os.stat(path).st_mtime, UTC)
            written: datetime = _ask(path, lambda store, inside: store.modified(inside))
        except FileNotFoundError:
            return None
        return written

    def __iter__(self) -> Iterator[str]:
        """Iterate over the locations of all files, whether an image names them or not.

        Raises:
            GalleryError: The store fails.
        """
        if is_local(self.root):
            files = [path.relative_to(self.root).as_posix() for path in Path(self.root).glob("*/*")]
        else:
            files = _ask(self.root, _listed)
        return (SCHEME + name for name in sorted(files) if _NAME.fullmatch(name))


def _ask(
    uri: str, question: Callable[[AbstractFileSystem, str], Answer], doing: Doing = "reading"
) -> Answer:
    """Return what a question to the store of `uri` returns (`stores.ask`)."""
    return stores.ask(uri, lambda: question(*open_uri(uri)), doing=doing, kind=GalleryError)


def _listed(store: AbstractFileSystem, root: str) -> list[str]:
    return [path.removeprefix(f"{root.rstrip('/')}/") for path in store.find(root)]


def _write(path: Path, data: bytes) -> None:
    if not path.parent.is_dir():
        path.parent.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        path.parent.mkdir(PRIVATE_FOLDER, exist_ok=True)
        sync(path.parent.parent)  # the new folder's name: without it the file would be lost, too
    with replace_file(path, mode=PRIVATE_FILE) as fresh:
        fresh.write_bytes(data)


def _failed(what: str, error: Exception) -> GalleryError:
    reason: faults.Reason = faults.of_file(error) if isinstance(error, OSError) else "unreachable"
    got = f"{type(error).__name__}: {error}"
    return GalleryError(what, reason, got=got, do="check the folder of the pictures (pictures)")
