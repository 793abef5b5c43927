"""A data set's folder, local or any URI that fsspec knows, and the JSON files in it.

Every failure to find or parse a file becomes a DataError that names the file.
"""

from __future__ import annotations

import os.path
import posixpath
from functools import partial
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from raycd import extras, stores
from raycd.data import json_text
from raycd.errors import DataError
from raycd.redact import without_passwords


def is_local(path: str) -> bool:
    """Return whether `path` is a plain local path, not a URI (`s3://...`, `zip://...::...`)."""
    return "://" not in path


def absolute(path: str) -> str:
    """Return a local path as an absolute one, `~` opened; a URI stays as it is."""
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path


class Folder:
    """The folder `root`.

    Raises DataError where it is absent, or no file system is installed for its URI.
    """

    def __init__(self, root: str) -> None:
        if not root:
            raise DataError(
                "data.root is empty",
                expected="the folder or URI of the data set",
                do="set data.root",
            )
        try:
            self._fs, self._path = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError, OSError) as error:
            raise DataError(
                f"the data folder {without_passwords(root)} cannot be opened",
                got=f"{type(error).__name__}: {error}",
                do="check data.root, and install the fsspec package of its protocol "
                f"(gcsfs, adlfs, ...; for s3: {extras.install('s3fs')})",
            ) from error
        # A process may read a data set twice, and its files may have changed in between
        self._fs.invalidate_cache()
        is_there = stores.ask(root, partial(self._fs.isdir, self._path))
        self.root = self._path if isinstance(self._fs, LocalFileSystem) else root
        if not is_there:
            raise DataError(
                f"the data folder {without_passwords(root)} is absent",
                got=f"nothing at {without_passwords(self.root)}",
                expected="a folder or a URI of one",
                do="set data.root to where the data set was unpacked",
            )

    def names(self, subfolder: str) -> list[str]:
        """Return the sorted names in a subfolder, from one listing; none where it is absent."""
        folder = posixpath.join(self._path, subfolder)
        return stores.names(self.resolve(subfolder), self._fs, folder)

    def resolve(self, path: str) -> str:
        """Return the path or URI of a file in this folder; absolute paths and URIs are kept."""
        if not is_local(path) or os.path.isabs(path):
            return path
        path = posixpath.normpath(path)
        if is_local(self.root):
            return posixpath.join(self.root, path)
        links = self.root.split("::")  # a chain such as zip://inner::s3://bucket/a.zip
        first = next(i for i, link in enumerate(links) if "://" in link)
        links[first] += path if links[first].endswith("/") else f"/{path}"
        return "::".join(links)

    def read(self, path: str) -> bytes:
        """Return the bytes of a file. Raises DataError where it cannot be read."""
        try:
            if not is_local(self.resolve(path)):
                return stores.read(self.resolve(path))
            with open(self.resolve(path), "rb") as file:
                return bytes(file.read())
        except (ValueError, OSError) as error:
            raise DataError(
                f"{self.resolve(path)} cannot be read",
                got=f"{type(error).__name__}: {error}",
                do="check that the file is there and that you may read it",
            ) from error

    def json(self, path: str) -> Any:
        """Return the content of a JSON file. Raises DataError where `json_text` refuses it."""
        data = self.read(path)
        try:
            return json_text.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._malformed(path, str(error)) from error

    def _malformed(self, path: str, got: str) -> DataError:
        return DataError(
            f"{self.resolve(path)} is not valid JSON",
            got=got,
            do="correct the file, or fetch the annotations again: it may be cut off",
        )
