"""The pictures that clients have uploaded: files in a folder, or in a store of fsspec.

The gallery database has their locations, `pictures:<folder>/<name>`, which stay valid where the
folder is moved, or restored elsewhere from a backup.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec

from raycd.data.folder import is_local
from raycd.durable import PRIVATE_FILE, PRIVATE_FOLDER, replace_file, sync
from raycd.errors import GalleryError
from raycd.gallery_db import faults

SCHEME = "pictures:"
# Also the temporary name of `replace_file`: what a killed writer left is listed, as a picture that
# no image names, and removed like one.
_NAME = re.compile(
    r"[0-9a-f]{2}/\.?[0-9a-f]{32}(\.[a-z0-9]{1,8})?((\.[a-z0-9_]{1,16})?\.unfinished)?"
)


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
                store, inside = fsspec.url_to_fs(path)
                if store.exists(inside):
                    store.rm_file(inside)
        except Exception as error:  # as in `add`
            raise _failed("a picture cannot be removed", error) from error

    def __iter__(self) -> Iterator[str]:
        """Iterate over the locations of all files, whether an image names them or not."""
        if is_local(self.root):
            files = [path.relative_to(self.root).as_posix() for path in Path(self.root).glob("*/*")]
        else:
            store, inside = fsspec.url_to_fs(self.root)
            files = [path.removeprefix(f"{inside.rstrip('/')}/") for path in store.find(inside)]
        return (SCHEME + name for name in sorted(files) if _NAME.fullmatch(name))


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
