"""Writing of features: a folder of Parquet shards, each a fixed range of rows, whole or absent.

    rows.parquet          the table that they are of: key, path (of texts: key), in its order
    shards.json           {"shards": 46, "rows": 46609, "shard_rows": 1024, "of": {...}}
    part-00000.parquet    rows 0 to 1,023: key, status, feature (fixed_size_list<float32>[D])
    part-00001.parquet    rows 1,024 to 2,047

`shards.json` is written once, before the first shard: a job that is started again cuts the table as
it was cut, and does the shards that are not there. A shard gets its name when it is whole, so any
number of workers write at once, and a killed one leaves a file whose name begins with a dot. The
folder is a path or any URI of fsspec.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from raycd import stores
from raycd.data.folder import is_local
from raycd.durable import replace_file
from raycd.errors import DataError
from raycd.run import open_uri

PLAN, ROWS = "shards.json", "rows.parquet"
BLOCK = 1024  # rows of a shard, at most, unless that makes more than MOST shards
MOST = 10_000
_PART = re.compile(r"part-(\d{5,})\.parquet")

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ShardPlan:
    """How a table is cut into shards, and what they are of."""

    shards: int
    rows: int | None = None
    """Of the table; None where it is known when all shards are there (.tar files)."""
    shard_rows: int | None = None
    of: Mapping[str, Any] = field(default_factory=dict)
    """What the features depend on beside the table."""

    @classmethod
    def of_rows(
        cls, rows: int, least: int, parts: int, of: Mapping[str, Any], *, most: int | None = None
    ) -> ShardPlan:
        """Return a plan with a shard of `least` rows or more for each of `parts`, or more.

        No shard has more than `most` rows.
        """
        size = max(least, min(BLOCK, rows // parts), -(-rows // MOST))
        size = min(size, most or size)
        return cls(max(1, -(-rows // size)), rows, size, of)


def name(number: int) -> str:
    """Return the name of a shard."""
    return f"part-{number:05d}.parquet"


def read_plan(uri: str) -> ShardPlan | None:
    """Return the plan of a folder; None where there is none yet. Raises DataError."""
    file_system, path = open_uri(posixpath.join(uri, PLAN))
    try:
        data = stores.ask(uri, lambda: file_system.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return ShardPlan(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{posixpath.join(uri, PLAN)} cannot be read",
            got=error,
            do="delete the folder, and embed again",
        ) from error


def begin(uri: str, plan: ShardPlan) -> None:
    """Write the plan: from now on shards are written, those of another plan are gone."""
    for part in parts(uri).values():
        remove(part)
    write_file(posixpath.join(uri, PLAN), json.dumps(asdict(plan), indent=1).encode())


def parts(uri: str) -> dict[int, str]:
    """Return number -> path or URI of the shards that are there, in their order."""
    names = stores.names(uri, *open_uri(uri))
    found = {int(match[1]): each for each in names if (match := _PART.fullmatch(each))}
    return {number: posixpath.join(uri, found[number]) for number in sorted(found)}


def copy(part: str, uri: str) -> None:
    """Copy a shard into another folder of the same store."""
    file_system, path = open_uri(part)
    target = posixpath.join(uri, posixpath.basename(part))
    if stores.is_bucket(file_system):  # which copies by itself, and gives a name when all is there
        copied = partial(file_system.cp_file, path, open_uri(target)[1])
        stores.ask(uri, copied, doing="writing")
    else:
        write_file(target, Path(part) if is_local(part) else stores.read(part))


def remove(part: str) -> None:
    """Remove a shard, by its path or URI."""
    file_system, path = open_uri(part)
    stores.ask(part, partial(file_system.rm_file, path), doing="writing")


def write(uri: str, number: int, table: pa.Table) -> None:
    """Write a shard, uncompressed: features hardly compress."""
    buffer = BytesIO()
    pq.write_table(table, buffer, compression="none", use_dictionary=False)
    write_file(posixpath.join(uri, name(number)), buffer.getbuffer())


def write_file(uri: str, content: bytes | memoryview | Path) -> None:
    """Write a file, or copy a local one: whole or not at all, under a temporary name first."""
    file_system, path = open_uri(uri)
    if isinstance(file_system, LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replace_file(Path(path)) as fresh:
            if isinstance(content, Path):
                shutil.copyfile(content, fresh)
            else:
                fresh.write_bytes(content)
        return
    folder, last = posixpath.split(path)
    # A bucket gives a name when all is there
    whole = stores.is_bucket(file_system)
    first = path if whole else posixpath.join(folder, f".{last}.{uuid.uuid4().hex}")

    def put() -> None:
        stores.make_folder(file_system, folder)
        if isinstance(content, Path):
            file_system.put_file(str(content), first)
        else:
            file_system.pipe_file(first, bytes(content))
        if not whole:
            file_system.mv(first, path)

    stores.ask(uri, put, doing="writing")
