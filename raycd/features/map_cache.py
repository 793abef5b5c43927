"""Maps and token states by key, in float16, on disk: written once, read by rows as memory maps.

    shape.json           name and shape of a value: "map", [2560, 9, 9], or "tokens", [77, 640]
    map-00000.npy        a shard: float16 (R, 2560, 9, 9); ragged: (R, 640)
    part-00000.parquet   what is in it: key, first row, number of rows
    shards.json          how the table rows.parquet is cut into them, as `shards` says

Workers write the shards, each its part last: a shard without it is not there. The cache of a
bundle, or of an earlier raycd, has one file keys.parquet (key, shard, first row, number of rows)
in place of parts and plan.

A ragged cache keeps of a text as many rows as it has tokens. Nothing is held in memory but the
index of keys; the system keeps the pages that were read last.

Shapes: R rows of a shard, B keys of a batch, C channels, H x W positions, L tokens, E their size.
"""

from __future__ import annotations

import glob
import json
import posixpath
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from raycd import stores
from raycd.errors import DataError
from raycd.features import shards
from raycd.features.shards import ShardPlan
from raycd.features.stored import Stored
from raycd.run import open_uri

SHAPE, KEYS = "shape.json", "keys.parquet"
INDEX = {"key": pa.string(), "shard": pa.int32(), "first": pa.int64(), "rows": pa.int32()}
TOKEN_MASK = "token_mask"
SHARD_BYTES = 256 * 2**20

Half = NDArray[np.float16]


class Form(NamedTuple):
    """What a cache keeps: its name, the shape of a value, whether values have rows of their own."""

    name: str
    shape: list[int]
    ragged: bool

    def json(self) -> str:
        """Return the content of SHAPE."""
        return json.dumps(self._asdict())


def begin(uri: str, plan: ShardPlan, form: Form) -> None:
    """Write form and plan into a folder or URI: from now on shards are written, others are gone."""
    file_system, path = open_uri(uri)
    for pattern in ("part-*.parquet", "*.npy"):  # no part is there without its values
        find = partial(file_system.glob, posixpath.join(glob.escape(path), pattern))
        for found in stores.ask(uri, find):
            stores.ask(uri, partial(file_system.rm_file, found), doing="writing")
    shards.write_file(posixpath.join(uri, SHAPE), form.json().encode())
    shards.begin(uri, plan)


def write_shard(
    uri: str, number: int, form: Form, keys: Sequence[str], values: Sequence[Half]
) -> None:
    """Write the values of some keys as a shard, and then that it is there."""
    rows = [value if form.ragged else value[None] for value in values]
    counts = np.array([len(own) for own in rows], np.int32)
    if rows:
        buffer = BytesIO()
        np.save(buffer, np.concatenate(rows))
        shards.write_file(posixpath.join(uri, _shard(form.name, number)), buffer.getbuffer())
    first = np.cumsum(counts) - counts
    columns = {"key": keys, "first": first, "rows": counts}
    table = pa.table({name: pa.array(own, INDEX[name]) for name, own in columns.items()})
    shards.write(uri, number, table)


def stored_bytes(uri: str, form: Form) -> int:
    """Return the bytes of all values in a folder or URI."""
    whole = Stored(tuple(shards.parts(uri).values()))
    rows = sum(pc.sum(block["rows"]).as_py() or 0 for block in whole.blocks(["rows"]))
    return rows * 2 * prod(form.shape[1:] if form.ragged else form.shape)


class CacheWriter:
    """A cache with KEYS that is being written into `folder` (created): `add` values, then `close`.

    Args:
        name: What is kept; shards are named after it.
        shape: That of a value, such as (C, H, W); of tokens (L, E), L the most that a text has.
        ragged: Values are (l, E), with l <= L of their own.

    Attributes:
        bytes: Of all values so far.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        shape: Sequence[int],
        *,
        ragged: bool = False,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name, self.shape, self.ragged = folder, name, list(shape), ragged
        self.bytes = 0
        self._shard_bytes = shard_bytes
        self._waiting: list[Half] = []
        self._waiting_bytes = self._waiting_rows = self._shards = 0
        self._index: list[tuple[str, int, int, int]] = []

    def add(self, key: str, value: Half) -> None:
        """Add a value; it is written when a shard is full."""
        rows = value if self.ragged else value[None]
        if list(rows.shape[1:]) != self.shape[1 if self.ragged else 0 :]:
            raise ValueError(f"{key}: a value of shape {value.shape} instead of {self.shape}")
        if self._waiting_bytes >= self._shard_bytes:
            self._write()
        self._index.append((key, self._shards, self._waiting_rows, len(rows)))
        self._waiting.append(rows)
        self._waiting_rows += len(rows)
        self._waiting_bytes += rows.nbytes
        self.bytes += rows.nbytes

    def _write(self) -> None:
        np.save(self.folder / _shard(self.name, self._shards), np.concatenate(self._waiting))
        self._shards, self._waiting = self._shards + 1, []
        self._waiting_bytes = self._waiting_rows = 0

    def close(self) -> None:
        """Write what waits, and the index of keys."""
        if self._waiting:
            self._write()
        form = Form(self.name, self.shape, self.ragged)
        (self.folder / SHAPE).write_text(form.json(), encoding="utf-8")
        columns = zip(*self._index, strict=True) if self._index else ([], [], [], [])
        arrays = map(pa.array, columns, INDEX.values())
        pq.write_table(pa.table(list(arrays), names=list(INDEX)), self.folder / KEYS)


@dataclass(frozen=True)
class MapCache:
    """A cache that was written, with all of its shards mapped: its files may be unlinked.

    It stays in its process: another one is sent the cache's path or URI, and opens it there.
    """

    name: str
    shape: list[int]
    ragged: bool
    slots: Mapping[str, tuple[int, int, int]]
    """Of each key: shard, first row, number of rows."""
    shards: Sequence[Half]

    def __contains__(self, key: str) -> bool:
        return key in self.slots

    def __reduce__(self) -> NoReturn:
        # Pickled memory maps are copies of all that they map, and a folder of this machine is
        # nowhere else
        raise TypeError("a cache is not sent to another process: send its path or URI")

    def value(self, key: str) -> Half:
        """Return a key's value, (*shape), or (l, E) where ragged; of the file itself."""
        shard, first, rows = self.slots[key]
        found = self.shards[shard][first : first + rows]
        return found if self.ragged else found[0]

    def take(
        self, keys: Iterable[str], device: torch.device | str | None = None
    ) -> dict[str, torch.Tensor]:
        """Return {name: values (B, *shape) float32} on `device`.

        Ragged values are padded with zeros to the longest of them, l, and there is {TOKEN_MASK:
        (B, l)}, True where there is a token.
        """
        slots = [self.slots[key] for key in keys]
        longest = max((rows for _, _, rows in slots), default=0)
        shape = (longest, *self.shape[1:]) if self.ragged else (1, *self.shape)
        values = np.zeros((len(slots), *shape), np.float16)
        # In the order of the files: neighbours are read together
        for at in sorted(range(len(slots)), key=slots.__getitem__):
            shard, first, rows = slots[at]
            values[at, :rows] = self.shards[shard][first : first + rows]
        if not self.ragged:
            return {self.name: moved(torch.from_numpy(values[:, 0]), device).float()}
        counts = torch.tensor([rows for _, _, rows in slots])
        mask = torch.arange(longest) < counts[:, None]
        return {
            self.name: moved(torch.from_numpy(values), device).float(),
            TOKEN_MASK: moved(mask, device),
        }


def moved(values: torch.Tensor, device: torch.device | str | None) -> torch.Tensor:
    """Return values of this process's memory on `device`, to which they may still be copied."""
    if torch.device(device or "cpu").type == "cuda":
        values = values.pin_memory()  # else the copy waits for what the card computes
    return values.to(device, non_blocking=True)


@dataclass(frozen=True)
class LazyTokens:
    """The tokens of texts, which are made when they are asked for: no file has them."""

    tokenize: Callable[[list[str]], torch.Tensor]
    """Texts -> tokens (B, L)."""
    shape: list[int]
    name: str = "words"
    ragged: bool = True
    """It is of texts, as what is ragged is."""

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str)

    def take(
        self, keys: Iterable[str], device: torch.device | str | None = None
    ) -> dict[str, torch.Tensor]:
        """Return {name: tokens (B, L) int64} on `device`."""
        return {self.name: moved(self.tokenize(list(keys)), device)}


@dataclass(frozen=True)
class Extras:
    """What a head needs beside pooled features, by its needs; nothing for most heads."""

    caches: Mapping[str, MapCache | LazyTokens] = field(default_factory=dict)

    def of_images(
        self,
        image_ids: Sequence[str],
        device: torch.device | str | None = None,
        *,
        only: Collection[str] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return maps (B, C, H, W) by need; `only` of these needs."""
        return self._of(image_ids, device, [need for need in self._images if _in(need, only)])

    def of_texts(
        self, texts: Sequence[str], device: torch.device | str | None = None
    ) -> dict[str, torch.Tensor]:
        """Return `tokens` (B, L, E) and `token_mask` (B, L), or nothing."""
        return self._of(texts, device, [need for need in self.caches if need not in self._images])

    def shapes(self) -> dict[str, list[int]]:
        """Return the shape of each need, without B."""
        return {need: cache.shape for need, cache in self.caches.items()}

    @property
    def _images(self) -> list[str]:
        return [need for need, cache in self.caches.items() if not cache.ragged]

    def _of(
        self, keys: Sequence[str], device: torch.device | str | None, needs: Iterable[str]
    ) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for need in needs:
            found |= self.caches[need].take(keys, device)
        return found

    def write(self, folder: Path, image_ids: Sequence[str]) -> None:
        """Write the images' values into a folder for each need, as caches of their own."""
        for need, cache in self.caches.items():
            if not isinstance(cache, MapCache) or cache.ragged:
                continue
            writer = CacheWriter(folder / need, need, cache.shape)
            for image_id in image_ids:
                writer.add(image_id, cache.value(image_id))
            writer.close()


NOTHING = Extras()


def _in(need: str, only: Collection[str] | None) -> bool:
    return only is None or need in only


def read(folder: Path) -> MapCache:
    """Open a cache of a local folder. Raises DataError where it is not whole."""
    try:
        about = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
        table = _index(folder)
        slots = list(
            zip(*(table[name].to_pylist() for name in ("shard", "first", "rows")), strict=True)
        )
        shards: list[Any] = [
            np.load(folder / _shard(about["name"], number), mmap_mode="r")
            for number in range(1 + max(table["shard"].to_pylist(), default=-1))
        ]
        found = MapCache(
            **about,
            slots=dict(zip(table["key"].to_pylist(), slots, strict=True)),
            shards=shards,
        )
        _check(found)
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, RecursionError) as error:
        raise DataError(
            f"the cached maps in {folder} cannot be read",
            got=f"{type(error).__name__}: {error}",
            expected=f"{SHAPE}, an index of keys, and the shards that it names",
            do="delete the folder, and run the same command again: its stage is done again",
        ) from error
    return found


def _index(folder: Path) -> pa.Table:
    """Return key, shard, first and rows of all values."""
    plan = shards.read_plan(str(folder))
    if plan is None:
        return pq.read_table(folder / KEYS)
    return pa.concat_tables(
        [
            part.append_column("shard", pa.repeat(pa.scalar(number, INDEX["shard"]), len(part)))
            for number in range(plan.shards)
            for part in [pq.read_table(folder / shards.name(number))]
        ]
    )


def _check(found: MapCache) -> None:
    """Raise ValueError where a shard is of another kind, or ends before a value that it has."""
    rest = found.shape[1 if found.ragged else 0 :]
    if any(one.dtype != np.float16 or list(one.shape[1:]) != rest for one in found.shards):
        raise ValueError(f"a shard of another kind than float16 of {rest}")
    if any(first + rows > len(found.shards[shard]) for shard, first, rows in found.slots.values()):
        raise ValueError("a shard that ends before its last value")


def _shard(name: str, number: int) -> str:
    return f"{name}-{number:05d}.npy"
