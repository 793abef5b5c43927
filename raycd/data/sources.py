"""Pictures to embed that are no data set of triplets: what a name on the command line means.

    gallery.csv, gallery.jsonl, gallery.parquet  a gallery table: image_id, path
    train-*.parquet, or a folder of them         pictures inside Parquet files (`parquet_images`)
    shard-*.tar, or a folder of them             WebDataset's shards
    a folder or prefix                           every picture below it, called by its path there

All of them a path or any URI of fsspec. Tables are read in blocks; an image that has several rows,
one for each of its categories, is one image.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import posixpath
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from raycd import stores
from raycd.data import files, parquet_images, rows
from raycd.data.folder import Folder, is_local
from raycd.data.images import FORMATS
from raycd.errors import DataError
from raycd.redact import without_passwords
from raycd.run import open_uri

SCHEMA = pa.schema(
    [pa.field("key", pa.string(), nullable=False), pa.field("path", pa.string(), nullable=False)]
)
TABLES = (".csv", ".jsonl", ".ndjson", ".parquet")
BLOCK = 8192  # pictures
_OTHERS = (".heic", ".heif", ".avif", ".jp2")  # are counted among the images that cannot be read
_ENDINGS = frozenset(
    (*(f".{name.lower()}" for name in FORMATS), ".jpg", ".jpe", ".jfif", ".tif", *_OTHERS)
)


def is_image(name: str) -> bool:
    """Tell by its ending whether a file is a picture, of a format that is read or of another."""
    return PurePosixPath(name).suffix.lower() in _ENDINGS and not _is_hidden(name)


def check_name(name: str) -> None:
    """Raise DataError for a file's name that is no UTF-8: it can be in no table."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "the name of a picture is not UTF-8", got=repr(name), do="rename it (with convmv, say)"
        ) from error


def _is_hidden(name: str) -> bool:
    """Tell whether a system keeps something of its own there: ._photo.jpg, .thumbnails."""
    return posixpath.basename(name).startswith(".")


def tar_files(source: str) -> list[str]:
    """Return the .tar files that a source means, sorted; none where it means something else.

    Raises DataError as `_check_unmixed`.
    """
    if source.endswith(".tar") and not _is_pattern(source):
        return [source]
    parent, name = posixpath.split(source.rstrip("/"))
    names = _names(parent if _is_pattern(source) else source)
    found = [
        posixpath.join(parent if _is_pattern(source) else source, each)
        for each in names
        if each.endswith(".tar") and (not _is_pattern(source) or fnmatch.fnmatchcase(each, name))
    ]
    if found and not _is_pattern(source):
        _check_unmixed(source, found[0])
    return found


def blocks(source: str, root: str = "") -> Iterator[pa.Table]:
    """Yield the pictures of a source, tables of SCHEMA, each key once.

    Args:
        root: Where relative paths of a table start; empty: in its own folder.

    Raises:
        DataError: There are none, or a table is malformed or names an image with two paths.
    """
    seen: dict[str, int] = {}  # key -> hash of its path
    for where, pictures in _pictures(source, root):
        kept: dict[str, str] = {}
        for key, path in pictures:
            if key not in seen:
                seen[key], kept[key] = hash(path), path
            elif seen[key] != hash(path):
                raise DataError(
                    f"{where} gives an image another path",
                    got=f"{key}: {without_passwords(path)}",
                    expected="one path of each image_id",
                    do="give each image an image_id of its own",
                )
        yield pa.table([list(kept), list(kept.values())], schema=SCHEMA)
    if not seen:
        raise DataError(
            f"there are no pictures in {without_passwords(source)}",
            expected=f"a table ({', '.join(TABLES)}), Parquet files with pictures, .tar files, or "
            "a folder of pictures",
            do="check the name",
        )


def content(source: str, root: str = "") -> str:
    """Return a hash of what a source names and of its files, which changes with either.

    Raises DataError as `blocks`, and where a store does not answer.
    """
    digest, tars = hashlib.sha256(), tar_files(source)
    named = [(tars, tars)] if tars else (b.to_pydict().values() for b in blocks(source, root))
    for keys, paths in named:
        digest.update(json.dumps([keys, paths, files.states(paths)]).encode())
    return digest.hexdigest()


def _pictures(source: str, root: str) -> Iterator[tuple[str, Iterable[tuple[str, str]]]]:
    """Yield where some pictures are named, and their ids and paths."""
    parent, name = posixpath.split(source.rstrip("/"))
    is_table = posixpath.splitext(name)[1].lower() in TABLES and not _is_pattern(source)
    if not is_table and not _is_pattern(source):
        parent, name = source, ""  # a folder: what it is in may be nothing that can be opened
    folder = _folder(parent or ".")
    tables = [name] if is_table else parquet_images.files(folder, name)
    if tables and not name:
        _check_unmixed(source, tables[0])
    for table in tables:
        if table.endswith(".parquet") and parquet_images.has_pictures(folder, table):
            found = parquet_images.rows(folder, table, [parquet_images.ID])
            yield table, ((row[parquet_images.ID], row["path"]) for _, row in found)
            continue
        base = _folder(root) if root else folder
        for first, block in rows.blocks(folder, table, ("image_id", "path"), BLOCK):
            ids, paths = (block[column].to_pylist() for column in ("image_id", "path"))
            yield (
                f"{table}, rows {first} to {first + len(block) - 1},",
                zip(ids, map(base.resolve, paths), strict=True),
            )
    if not tables:
        yield from _below(source)


def _check_unmixed(source: str, packed: str) -> None:
    """Raise DataError where a folder has pictures beside a .tar or Parquet file, or below it."""
    file_system, path = open_uri(source)
    for each in stores.ask(source, partial(file_system.ls, path, detail=True)):
        name = posixpath.basename(each["name"].rstrip("/"))
        is_itself = each["name"].rstrip("/") == path.rstrip("/")  # S3 may list it
        # What begins with _ is a system's, such as _delta_log
        is_folder = _is_folder(name, each["type"]) and not name.startswith("_") and not is_itself
        if is_image(name) or is_folder:
            ending = posixpath.splitext(packed)[1]
            raise DataError(
                f"{without_passwords(source)} has pictures of two kinds",
                got=f"{posixpath.basename(packed)} beside {name}",
                expected=f"{ending} files alone, or pictures and folders of pictures alone",
                do=f"name the files by a pattern, {posixpath.join(source, '*' + ending)}, or move "
                "them away",
            )


def _is_folder(name: str, kind: str) -> bool:
    return kind == "directory" and not _is_hidden(name)


def _below(source: str) -> Iterator[tuple[str, Iterable[tuple[str, str]]]]:
    """Yield the pictures of a folder, subfolder by subfolder, with paths below it as ids."""
    base, waiting = _folder(source), [""]
    file_system, top = open_uri(source)

    def kind(found: dict[str, Any]) -> str:
        # A link to a folder is not followed: it may lead back
        is_file = found.get("islink") and not file_system.isdir(found["name"])
        return "file" if is_file else str(found["type"])

    while waiting:
        folder = waiting.pop()
        path = posixpath.join(top, folder) if folder else top
        listed = stores.ask(source, partial(file_system.ls, path, detail=True))
        inside = sorted(
            (posixpath.join(folder, posixpath.basename(each["name"].rstrip("/"))), kind(each))
            for each in listed
            if each["name"].rstrip("/") != path.rstrip("/")  # S3 may list a folder in itself
        )
        folders = [name for name, what in inside if _is_folder(name, what)]
        waiting += folders[::-1]
        keys = [name for name, what in inside if what == "file" and is_image(name)]
        for key in keys:
            check_name(key)
        yield folder, zip(keys, map(base.resolve, keys), strict=True)


def _folder(path: str) -> Folder:
    try:
        return Folder(path)
    except DataError as error:
        raise DataError(
            f"the pictures' folder {without_passwords(path)} cannot be opened",
            got="; ".join(line.strip() for line in str(error).splitlines()[:2]),
            do="check the name and the store's credentials",
        ) from error


def _is_pattern(source: str) -> bool:
    """Tell whether the last part of a source is one, and no name of a file or folder."""
    signs = any(sign in posixpath.basename(source) for sign in "*?[")
    return signs and not (is_local(source) and os.path.lexists(source))


def _names(folder: str) -> list[str]:
    """Return the sorted names in a folder; none where it is absent or a file."""
    return stores.names(folder, *open_uri(folder))
