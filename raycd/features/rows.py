"""Rows to embed, as a worker reads them: a range of a table, or the pictures of a .tar file.

A shard of the features belongs to each range or file (`shards`).
"""

from __future__ import annotations

import os
import posixpath
import socket
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycd import scratch, stores
from raycd.data import damaged
from raycd.data.sources import check_name, is_image
from raycd.errors import DataError
from raycd.features import shards
from raycd.redact import without_passwords

END = 1024  # zeros at the end of a .tar file
GROUP = 8192  # rows of a row group: the least that is read

Batch = Mapping[str, Any]


class Rows(Protocol):
    """Rows by the shard of features that they belong to."""

    def batches(self, shard: int, size: int) -> Iterator[Batch]:
        """Yield the columns of at most `size` rows at a time, in their order."""
        ...


@dataclass(frozen=True)
class TableRows:
    """The table `rows.parquet` of a folder, `shard_rows` for each shard."""

    uri: str
    shard_rows: int
    logins: Mapping[str, str] = field(default_factory=dict)
    """What `write_table` has hidden in its paths, and what was there (`redact.logins`)."""

    def batches(self, shard: int, size: int) -> Iterator[Batch]:
        """Read the row groups that a shard's rows are in.

        Raises DataError where the table is not there: its folder is on another machine.
        """
        uri = posixpath.join(self.uri, shards.ROWS)
        try:
            own = stores.ask(uri, partial(self._read, uri, shard * self.shard_rows))
        except FileNotFoundError as error:
            raise DataError(
                f"a worker does not find {uri}",
                got=f"no such file on {socket.gethostname()}",
                do="give --runs or --out a URI, or a folder that all machines of the cluster share",
            ) from error
        for start in range(0, len(own), size):
            yield own.slice(start, size).to_pydict()

    def _read(self, uri: str, first: int) -> pa.Table:
        what = f"the table {without_passwords(uri)} cannot be read"
        with (
            fsspec.open(uri, "rb") as opened,  # a store that refuses is no damage
            damaged.told(what, "delete its folder, and embed again"),
            pq.ParquetFile(opened) as file,
        ):
            groups = range(first // GROUP, -(-(first + self.shard_rows) // GROUP))
            groups = groups[: max(0, file.num_row_groups - groups.start)]
            table = (
                file.read_row_groups(list(groups)) if groups else file.schema_arrow.empty_table()
            )
        return _replaced(table.slice(first % GROUP, self.shard_rows), self.logins.items())


def _replaced(table: pa.Table, pairs: Iterable[tuple[str, str]]) -> pa.Table:
    for old, new in pairs:
        paths = pc.replace_substring(table["path"], old, new)
        table = table.set_column(table.schema.get_field_index("path"), "path", paths)
    return table


def write_table(
    uri: str,
    blocks: Iterable[pa.Table],
    schema: pa.Schema,
    logins: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Write the table of a folder, in row groups of GROUP rows; return the number of all rows.

    The passwords of `logins` do not get into it.
    """
    hidden = [(whole, without) for without, whole in logins.items()]
    total, waiting = 0, schema.empty_table()
    with scratch.folder() as folder:
        with pq.ParquetWriter(folder / shards.ROWS, schema) as writer:
            for block in blocks:
                total += len(block)
                waiting = pa.concat_tables([waiting, _replaced(block, hidden).cast(schema)])
                whole = len(waiting) - len(waiting) % GROUP
                if whole:
                    writer.write_table(waiting.slice(0, whole), row_group_size=GROUP)
                    waiting = waiting.slice(whole)
            if len(waiting):
                writer.write_table(waiting, row_group_size=GROUP)
        shards.write_file(posixpath.join(uri, shards.ROWS), folder / shards.ROWS)
    return total


@dataclass(frozen=True)
class TarRows:
    """The pictures in .tar files, such as WebDataset's: a shard of features for each file.

    A picture is called as its file in the .tar, up to the first dot of its name. In WebDataset that
    is the name of a sample, of which the first picture counts. A file is read from its beginning to
    its end.
    """

    files: Sequence[str]

    def batches(self, shard: int, size: int) -> Iterator[Batch]:
        """Read one .tar file. Raises DataError where it is damaged."""
        pictures = self._pictures(self.files[shard])
        while some := list(islice(pictures, size)):
            keys, data = zip(*some, strict=True)
            yield {"key": keys, "data": data}

    def _pictures(self, uri: str) -> Iterator[tuple[str, bytes]]:
        before = None
        try:
            with stores.opened(uri) as opened:
                _check_end(opened)
                with tarfile.open(fileobj=opened, mode="r|") as archive:
                    for member in archive:
                        folder, name = posixpath.split(member.name)
                        key = posixpath.join(folder, name.partition(".")[0])
                        if member.isfile() and is_image(member.name) and key != before:
                            check_name(member.name)
                            file = archive.extractfile(member)
                            assert file is not None, "it is a regular file"
                            yield key, file.read()
                            before = key
                _check_over(opened, archive.offset)
        except (tarfile.TarError, EOFError, FileNotFoundError) as error:
            raise DataError(
                f"{without_passwords(uri)} cannot be read as .tar",
                got=f"{type(error).__name__}: {error}",
                do="write the file again; the same command then goes on",
            ) from error


def _check_over(file: Any, offset: int) -> None:
    """Raise ReadError unless there is nothing behind the first archive's end."""
    file.seek(offset)
    while piece := file.read(2**20):
        if any(piece):
            raise tarfile.ReadError("it holds several archives: give each as a file of its own")


def _check_end(file: Any) -> None:
    """Raise ReadError unless a .tar file has its end: tarfile takes any end for one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END))
    if size < END or any(file.read(END)):
        raise tarfile.ReadError("it does not end as a .tar file does: it may be cut off")
    file.seek(0)
