"""Reading of features: shards as `shards` writes them, or the one file of an earlier raycd.

The order is that of the table that the features are of. Nothing but a shard is in memory where the
features are asked for in blocks; `features` fills one array, shard by shard.

Shapes: N features, D their size, P rows.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from raycd import stores
from raycd.data import damaged
from raycd.data.folder import is_local
from raycd.data.missing import ImageReport
from raycd.errors import DataError
from raycd.features import READABLE, Features, readable, shards, vectors
from raycd.redact import without_passwords
from raycd.run import open_uri

LISTED = 1000  # images without a feature that a report names; the others are counted
_THREADS = 16  # shards whose small columns are read at once

Answer = TypeVar("Answer")
Room = Callable[[tuple[int, int], type[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Stored:
    """Features in files: image ids or texts with their status and, where that is READABLE, vector.

    It can be given to workers, which read the files by themselves.
    """

    parts: tuple[str, ...]

    @classmethod
    def open(cls, path: str | Path) -> Stored:
        """Open a folder of shards, a file, or the file `<path>.parquet` of an earlier raycd.

        Raises:
            DataError: There are none, or a shard is not there.
        """
        uri = str(path)
        plan = shards.read_plan(uri)
        if plan is not None:
            found = shards.parts(uri)
            lost = [number for number in range(plan.shards) if number not in found]
            if lost:
                raise DataError(
                    f"{len(lost)} of {plan.shards} shards of the features {uri} are not there",
                    got=f"no {shards.name(lost[0])}",
                    do="run the command that wrote them again: it does the rest; in a run, delete "
                    "the stage's folder first",
                )
            return cls(tuple(found.values()))
        for file in (uri, f"{uri}.parquet"):
            file_system, path = open_uri(file)
            if stores.ask(file, partial(file_system.isfile, path)):
                return cls((file,))
        raise DataError(
            f"there are no features at {uri}",
            expected=f"a folder with {shards.PLAN} and {shards.name(0)}, or a Parquet file",
            do="embed first",
        )

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows (key, status, feature, or some of them) of one shard after the other."""
        for part in self.parts:
            yield _read(part, columns)

    def keys(self) -> pa.StringArray:
        """Return the keys that have a feature."""
        found = self._each(lambda part: readable(_read(part, ["key", "status"]))["key"])
        chunks = [chunk for column in found for chunk in column.chunks]
        return pa.chunked_array(chunks, pa.string()).combine_chunks()

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Return the number of the first feature of each shard, and N; other rows do not count."""
        sizes = self._each(lambda part: len(readable(_read(part, ["status"]))))
        return np.cumsum([0, *sizes])

    @cached_property
    def dim(self) -> int:
        """Return D."""
        return _opened(
            self.parts[0], lambda file: int(file.schema_arrow.field("feature").type.list_size)
        )

    def rows(self, rows_P: NDArray[np.integer], *, room: Room = np.empty) -> NDArray[np.float32]:
        """Return the features (P, D) of these rows of N; shards without any are not read.

        They are copied, shard by shard, into an array that `room` makes.
        """
        found = room((len(rows_P), self.dim), np.float32)
        order_P = np.argsort(rows_P, kind="stable")
        ascending_P = rows_P[order_P]
        for part, (first, end) in zip(
            self.parts, zip(self.starts, self.starts[1:], strict=False), strict=True
        ):
            own = slice(*np.searchsorted(ascending_P, [first, end]))
            if own.start < own.stop:
                rows = ascending_P[own] - first
                found[order_P[own]] = vectors(readable(_read(part)))[rows]
        return found

    def features(self, order: Sequence[str] | None = None, *, room: Room = np.empty) -> Features:
        """Return the features in one array, or those in `order`, as far as they are there.

        `room` makes the array of those in `order`.
        """
        if order is not None:
            return self._ordered(pa.array(order, pa.string()), room)
        total = sum(self._each(lambda part: _opened(part, lambda file: file.metadata.num_rows)))
        values = np.empty((total, self.dim), np.float32)  # more than N: what is not used costs none
        keys, end = list[pa.Array](), 0
        for block in self.blocks():
            own = readable(block)
            values[end : end + len(own)] = vectors(own)
            keys += own["key"].chunks
            end += len(own)
        whole = pa.chunked_array(keys, pa.string()).combine_chunks()
        return Features.of(whole, torch.from_numpy(values[:end]))

    def _ordered(self, order: pa.Array, room: Room) -> Features:
        row = pc.index_in(order, value_set=self.keys())
        values = self.rows(row.drop_null().to_numpy(), room=room)
        return Features.of(order.filter(row.is_valid()), torch.from_numpy(values))

    def unreadable(self) -> Iterator[tuple[str, str]]:
        """Yield (key, status) of the rows without a feature."""
        for block in self.blocks(["key", "status"]):
            own = block.filter(pc.not_equal(block["status"], READABLE))
            yield from zip(own["key"].to_pylist(), own["status"].to_pylist(), strict=True)

    def report(self) -> ImageReport:
        """Return how many rows have no feature and why, and the first LISTED of them."""
        counted = self._each(lambda part: Counter(_read(part, ["status"])["status"].to_pylist()))
        counts = sum(counted, Counter[str]())
        del counts[READABLE]
        first = dict(islice(self.unreadable(), LISTED)) if counts else {}
        return ImageReport(first, more=counts - Counter(first.values()))

    def forget_unreadable(self) -> None:
        """Remove the shards that have rows without a feature, for these to be read again."""
        for part in set(self.parts) - set(self._readable()):
            shards.remove(part)

    def copy(self, uri: str, of: Mapping[str, Any], rows: int) -> None:
        """Copy shards to `uri`, which is cut as they are, where they are `of` this many rows.

        Those that have rows without a feature are not copied: these are to be read again.
        """
        plan = shards.read_plan(posixpath.dirname(self.parts[0]))
        if plan is None or (plan.of, plan.rows) != (of, rows):
            return
        if shards.read_plan(uri) != plan:
            shards.begin(uri, plan)
        there = {posixpath.basename(part) for part in shards.parts(uri).values()}
        todo = [part for part in self._readable() if posixpath.basename(part) not in there]
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(partial(shards.copy, uri=uri), todo))

    def _readable(self) -> list[str]:
        """Return the shards that have a feature of every row."""
        found = self._each(lambda part: set(_read(part, ["status"])["status"].to_pylist()))
        return [part for part, own in zip(self.parts, found, strict=True) if own <= {READABLE}]

    def listing(self, report: ImageReport) -> Iterator[bytes]:
        """Yield JSON as `ImageReport.to_dict`, with every row without a feature."""
        about = {key: value for key, value in report.to_dict().items() if key != "images"}
        yield json.dumps(about, indent=1)[:-2].encode() + b',\n "images": {'
        separator = b"\n  "
        for key, status in self.unreadable():
            yield separator + f"{json.dumps(key)}: {json.dumps(status)}".encode()
            separator = b",\n  "
        yield b"\n }\n}"

    def _each(self, ask: Callable[[str], Answer]) -> list[Answer]:
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(ask, self.parts))


def _read(part: str, columns: Sequence[str] | None = None) -> pa.Table:
    return _opened(part, lambda file: file.read(columns))


def _opened(part: str, use: Callable[[pq.ParquetFile], Answer]) -> Answer:
    """Return what `use` makes of a shard. Raises DataError where it cannot be read."""
    what = f"the features {without_passwords(part)} cannot be read"
    do = "delete that file, and run the command that wrote it again: it writes it anew"

    def whole() -> Answer:
        if is_local(part):
            with damaged.told(what, do), pq.ParquetFile(part, memory_map=True) as near:
                return use(near)
        file_system, path = open_uri(part)
        # A store that refuses is no damage
        with file_system.open(path, "rb") as far, damaged.told(what, do):
            return use(pq.ParquetFile(far))

    try:
        return stores.ask(part, whole)
    except FileNotFoundError as error:
        raise DataError(what, got=error, do=do) from error
