"""Pictures inside Parquet files, as the datasets library writes them: nothing is unpacked.

A column of images is a struct {bytes, path} or plain bytes. A picture is read by its row
(`raycd.data.parts`), together with the others of its row group, which stay in memory while
neighbours are likely to follow. So reading in the order of the rows is cheap.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycd import stores
from raycd.data import damaged, parts
from raycd.data.folder import Folder, is_local
from raycd.data.rows import is_read, refuse_twice, texts, with_decimals
from raycd.errors import DataError
from raycd.redact import without_passwords

OPEN = 16  # files of each process
PART = 256  # rows of a row group that are read at once
KEPT_BYTES = 256 * 2**20  # of row groups, in each process; the one that was read last always stays
_SPLIT = re.compile(r"(train|validation|valid|val|dev|test)(?:[-_.]|$)")
ID = "image_id"
_NAMES = {"validation": "val", "valid": "val", "dev": "val"}


class _Cache:
    """Open files and row groups of this process, least recently used first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[Any, ...], pq.ParquetFile] = OrderedDict()
        self._starts: dict[tuple[Any, ...], list[int]] = {}  # see `_starts`; files may be closed
        self._groups: OrderedDict[tuple[Any, ...], pa.ChunkedArray] = OrderedDict()
        self._bytes = 0  # of these groups: there may be thousands, too many to ask for each picture

    def picture(self, row: parts.PictureRow) -> bytes:
        """Return the bytes of a picture. Raises FileNotFoundError where the row has none."""
        with self._lock:
            key = _identity(row.file)
            if key not in self._starts:
                self._starts[key] = _starts(self._file(key, row.file))
            starts = self._starts[key]
            if row.row >= starts[-1]:
                raise FileNotFoundError(f"{row.file} has {starts[-1]} rows, not row {row.row}")
            group = bisect_right(starts, row.row) - 1
            found = self._groups.pop((key, row.column, group), None)
            if found is None:
                found = _read_group(self._file(key, row.file), row.column, group)
                self._bytes += found.nbytes
            self._groups[key, row.column, group] = found
            while len(self._groups) > 1 and self._bytes > KEPT_BYTES:
                self._bytes -= self._groups.popitem(last=False)[1].nbytes
            picture = found[row.row - starts[group]].as_py()
        if picture is None:
            raise FileNotFoundError(f"row {row.row} of {row.file} has no bytes of a picture")
        return bytes(picture)

    def _file(self, key: tuple[Any, ...], path: str) -> pq.ParquetFile:
        """Return an open file."""
        file = self._files.pop(key, None) or _opened(path)
        self._files[key] = file
        while len(self._files) > OPEN:
            self._files.popitem(last=False)
        return file


_cache = _Cache()


def read(row: parts.PictureRow, *, patient: bool = True) -> bytes:
    """Return the bytes of a picture.

    Raises FileNotFoundError where file or picture are absent, DataError as `stores.ask` does or
    where the file is no Parquet file.
    """

    what, do = f"{without_passwords(row.file)} cannot be read as parquet", "write the file again"

    def picture() -> bytes:
        try:
            with damaged.told(what, do):
                return _cache.picture(row)
        except KeyError as error:  # a column
            raise DataError(what, got=error, do=do) from error

    return stores.ask(row.file, picture, patient=patient)


def _identity(file: str) -> tuple[Any, ...]:
    if not is_local(file):
        return (file,)
    state = os.stat(file)
    return (file, state.st_size, state.st_mtime_ns)


def _opened(file: str) -> pq.ParquetFile:
    if is_local(file):
        return pq.ParquetFile(file)
    store, path = fsspec.url_to_fs(file)
    return pq.ParquetFile(store.open(path, "rb"))


def _starts(file: pq.ParquetFile) -> list[int]:
    """Return the first row of each row group, and the number of rows."""
    groups = map(file.metadata.row_group, range(file.num_row_groups))
    return list(accumulate((group.num_rows for group in groups), initial=0))


def _read_group(file: pq.ParquetFile, column: str, group: int) -> pa.ChunkedArray:
    """Return the pictures of a row group, in parts: together they may be beyond 2 GiB."""
    inside = pa.types.is_struct(file.schema_arrow.field(column).type)
    name = f"{column}.bytes" if inside else column
    batches = file.iter_batches(PART, row_groups=[group], columns=[name])
    parts = (batch.column(0) for batch in batches)
    return pa.chunked_array([pc.struct_field(part, "bytes") if inside else part for part in parts])


def image_column(schema: pa.Schema) -> str | None:
    """Return the column of images, None where there is none.

    Of several it is `image`, or the first struct, or the first of bytes, which may be anything.
    """
    found = [field for field in schema if _is_image(field.type)]
    found.sort(key=lambda field: (field.name != "image", not pa.types.is_struct(field.type)))
    return found[0].name if found else None


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
    names = {kind.field(index).name for index in range(kind.num_fields)}
    return {"bytes", "path"} <= names


def has_pictures(folder: Folder, name: str) -> bool:
    """Tell whether a Parquet file has pictures in it, and no column of their paths."""
    try:
        with stores.opened(folder.resolve(name)) as file:
            schema = pq.read_schema(file)
    except (OSError, ValueError, pa.ArrowException):
        return False  # `rows.read` says what is wrong with it
    names = [name.strip() for name in schema.names]
    return "path" not in names and image_column(schema) is not None


def files(folder: Folder, pattern: str) -> list[str]:
    """Return the sorted Parquet files that a name, a folder or a pattern (data/train-*) means."""
    parent, name = posixpath.split(pattern.rstrip("/"))
    if any(sign in name for sign in "*?["):
        found = [each for each in folder.names(parent) if fnmatch.fnmatchcase(each, name)]
        return [posixpath.join(parent, each) for each in found if each.endswith(".parquet")]
    inside = [] if name.endswith(".parquet") else folder.names(pattern)
    return [posixpath.join(pattern, each) for each in inside if each.endswith(".parquet")] or (
        [pattern] if name.endswith(".parquet") else []
    )


def rows(
    folder: Folder, name: str, wanted: Sequence[str], *, others: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row of a file that `has_pictures`, from 0, and its values without the pictures.

    Columns are read as by `rows.read`.
    Each has a `path` of its picture, an `image_id`, the picture's own name where no column gives
    one, and a `split` where the file's name says it (train-00000-of-00002.parquet).
    """
    resolved = folder.resolve(name)
    with (
        damaged.table(f"{name} cannot be read as parquet", "write the file again"),
        stores.opened(resolved) as opened,
    ):
        file = pq.ParquetFile(opened)
        schema = file.schema_arrow
        column = image_column(schema)
        assert column is not None, "it has pictures"
        named = [f.name for f in schema if is_read(f, wanted, others) and not _is_image(f.type)]
        inside = pa.types.is_struct(schema.field(column).type)
        table = file.read(columns=[*named, *([f"{column}.path"] if inside else [])])
        table.validate(full=True)  # refuses texts that are not UTF-8
    names = [each if each == column else each.strip() for each in table.schema.names]
    refuse_twice(names, names, name)
    table = with_decimals(table.rename_columns(names))
    if ID in names:
        ids = texts(table[ID], ID, name, 1)
        table = table.set_column(names.index(ID), ID, ids)
    match = _SPLIT.match(posixpath.basename(name))
    split = _NAMES.get(match[1], match[1]) if match else None
    for number, values in enumerate(table.to_pylist()):
        picture = (values.pop(column, None) or {}).get("path") if inside else None
        values.setdefault(ID, picture or f"{posixpath.basename(name)}:{number}")
        if split is not None:
            values.setdefault("split", split)
        yield number, values | {"path": parts.in_row(resolved, column, number)}
