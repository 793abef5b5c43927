"""The pictures that clients have added: files in a folder, or in a store of fsspec's.

The gallery database keeps their locations, `pictures:<folder>/<name>`, which hold wherever the
folder lies: a backup may be restored elsewhere.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec

from raycd.data.folder import is_local
from raycd.durable import PRIVATE_FILE, PRIVATE_FOLDER, sync
from raycd.errors import GalleryError
from raycd.gallery_db import faults

SCHEME = "pictures:"
_UNFINISHED = ".unfinished"  # listed like a picture that nothing names, and removed like one
_NAME = re.compile(rf"[0-9a-f]{{2}}/[0-9a-f]{{32}}(\.[a-z0-9]{{1,8}})?({re.escape(_UNFINISHED)})?")


class Pictures:
    """Any thread and any process may use it; every picture has a file of its own.

    Args:
        root: A folder, or an fsspec URI.
    """

    def __init__(self, root: str) -> None:
        self.root = (
            os.path.abspath(os.path.expanduser(root)) if is_local(root) else root.rstrip("/")
        )

    def add(self, data: bytes, extension: str) -> str:
        """Keep a file; returns its location once it is on the disk. Raises GalleryError where it
        cannot be kept.
        """
        name = uuid.uuid4().hex
        inside = (
            f"{name[:2]}/{name}.{extension}"
            if re.fullmatch("[a-z0-9]{1,8}", extension)
            else f"{name[:2]}/{name}"
        )
        try:
            if is_local(self.root):
                _write(Path(self.root) / inside, data)
            else:
                with fsspec.open(f"{self.root}/{inside}", "wb") as file:
                    file.write(data)
        except (
            Exception
        ) as error:  # whatever a store uses: OSError, ImportError, those of botocore or aiohttp
            raise _failed("a picture cannot be kept", error) from error
        return SCHEME + inside

    def locate(self, location: str) -> str:
        """The path or URI of a location; what is none of ours stays as it is. Raises
        GalleryError: a forged one.
        """
        if not location.startswith(SCHEME):
            return location
        inside = location.removeprefix(SCHEME)
        if not _NAME.fullmatch(inside):
            raise GalleryError(
                "the location of a picture is malformed", "damaged", got=repr(location[:100])
            )
        return f"{self.root}/{inside}"

    def remove(self, location: str) -> None:
        """Remove a picture of ours, if it is there; others' stay. Raises GalleryError where it
        cannot be removed.
        """
        if not location.startswith(SCHEME):
            return
        path = self.locate(location)
        try:
            if is_local(path):
                Path(path).unlink(missing_ok=True)
            else:
                store, inside = fsspec.url_to_fs(path)
                if store.exists(inside):
                    store.rm_file(inside)
        except Exception as error:
            raise _failed("a picture cannot be removed", error) from error

    def __iter__(self) -> Iterator[str]:
        """The locations of all files that are there, whether anything names them or not."""
        if is_local(self.root):
            files = [path.relative_to(self.root).as_posix() for path in Path(self.root).glob("*/*")]
        else:
            store, inside = fsspec.url_to_fs(self.root)
            files = [path.removeprefix(f"{inside.rstrip('/')}/") for path in store.find(inside)]
        return (SCHEME + name for name in sorted(files) if _NAME.fullmatch(name))


def _write(path: Path, data: bytes) -> None:
    """A file that is on the disk, with its name, or not there at all."""
    if not path.parent.is_dir():
        path.parent.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        path.parent.mkdir(PRIVATE_FOLDER, exist_ok=True)
        sync(
            path.parent.parent
        )  # the new folder's name, without which the file would be lost with it
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        with open(unfinished, "wb", opener=partial(os.open, mode=PRIVATE_FILE)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        sync(path.parent)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _failed(what: str, error: Exception) -> GalleryError:
    reason: GalleryError.Reason = (
        faults.of_file(error) if isinstance(error, OSError) else "unreachable"
    )
    return GalleryError(
        what,
        reason,
        got=f"{type(error).__name__}: {error}",
        do="check the place of the pictures (pictures)",
    )
