"""The search step from 10,000 to 1,000,000 images of 640 numbers: time, recall and memory.

The largest gallery gets each kind of index, from features in a mapped file.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.benchmarks.measuring import DIM, elsewhere, features, peak
from raycd.config import Config, IndexConfig
from raycd.gallery.static import SCHEMA, Gallery
from raycd.index import Index, blocks, effort
from raycd.index.choice import resident_mib
from raycd.index.half import room
from raycd.index.structure import FIRST, Found

SIZES = (10_000, 100_000, 1_000_000)
KINDS = ("ivf", "sq8", "rabitq", "half")  # of the largest gallery
QUERIES, WARM_UP = 500, 50
FEW = 20  # queries of an index that takes long
SLOW_S = 0.05  # a search


class Queries(NamedTuple):
    """Queries (Q, D) of one sort, and what they should find among features of float32."""

    query_QD: NDArray[np.float32]
    truth: Found


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return what was built, p50 and p99 of single queries, recall and a replica for each index."""
    largest = flags.images or SIZES[-1]
    rows: dict[str, Any] = {"dim": DIM, "cores": os.cpu_count(), "queries": QUERIES}
    p50 = {}
    for size in [*(size for size in SIZES if size < largest), largest]:
        features_GD = features(size, room=room)
        queries = _queries(features_GD)
        chosen = size < largest or config.index.kind != "auto" or bool(config.index.memory_mib)
        for kind in (config.index.kind,) if chosen else KINDS:
            settings = config.index.model_copy(update={"kind": kind})
            found = _one(features_GD, queries, settings)
            name = f"{size:,} {found['kind']}"
            rows |= {f"{name}: {key}": value for key, value in found.items() if key != "kind"}
            p50[name] = min(found[f"p50 with {threads} threads, ms"] for threads in (1, 2))
    first, *others = p50
    return rows | {f"p50 of {name} : {first}": p50[name] / p50[first] for name in others}


def _queries(features_GD: NDArray[np.float32]) -> dict[str, Queries]:
    """Return two sorts of queries with the true first of them."""
    image_QD = features(QUERIES, drawn=1)
    image_QD /= np.linalg.norm(image_QD, axis=1, keepdims=True)
    sorts = {"images": image_QD, "between": effort.between(image_QD, seed=1)}
    lengths_G = blocks.lengths(features_GD)
    found = {}
    for sort, query_QD in sorts.items():
        parts = blocks.unit_blocks(features_GD, lengths_G)
        found[sort] = Queries(query_QD, blocks.nearest(query_QD, parts, FIRST))
    return found


def _one(
    features_GD: NDArray[np.float32], queries: dict[str, Queries], settings: IndexConfig
) -> dict[str, Any]:
    size = len(features_GD)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (rows, sha256), own = peak(
            lambda: _build(features_GD, settings, folder), counted="Pss_Anon"
        )
        rows["memory to build, without mapped files, MiB"] = own
        gc.collect()
        index = Index.load(folder, sha256)
        rows["bytes an image, in memory"] = resident_mib(index.kind, settings, size, DIM) * (
            2**20 / size
        )
        rows["bytes an image, in files"] = (
            sum((folder / name).stat().st_size for name in sha256) / size
        )
        for threads in (1, 2):
            index.threads = threads
            rows |= _latencies(index, queries["between"].query_QD, threads)
        for name, sort in queries.items():
            rows[f"recall@10 of {name}"] = _recall(features_GD, index, sort)
        del index
        rows |= elsewhere(_replica, folder, sha256, size)
        return rows


def _build(
    features_GD: NDArray[np.float32], settings: IndexConfig, folder: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    began = time.perf_counter()
    built = Index.build(features_GD, settings, threads=os.cpu_count() or 1)
    sha256 = built.save(folder)
    seconds = time.perf_counter() - began
    rows = {"kind": built.kind, "effort": built.effort, "recall@10 when built": built.recall}
    return rows | {"built and saved, s": seconds}, sha256


def _latencies(index: Index, query_BD: NDArray[np.float32], threads: int) -> dict[str, float]:
    """Search for one query after the other, each by itself."""
    milliseconds: list[float] = []
    began = time.perf_counter()
    index.search(query_BD[:1], FIRST)
    slow = time.perf_counter() - began > SLOW_S
    for row in range(FEW) if slow else [*range(WARM_UP), *range(len(query_BD))]:
        began = time.perf_counter()
        index.search(query_BD[row : row + 1], FIRST)
        milliseconds.append(1e3 * (time.perf_counter() - began))
    p50, p99 = np.percentile(milliseconds[0 if slow else WARM_UP :], [50, 99])
    name = f"with {threads} threads, ms"
    return {f"p50 {name}": float(p50), f"p99 {name}": float(p99)}


def _recall(features_GD: NDArray[np.float32], index: Index, sort: Queries) -> float:
    """Return the share of the true first that is found, by cosines of float32."""
    _, position_QK = index.search(sort.query_QD, FIRST)
    found_QKD = np.asarray(features_GD[position_QK.ravel()]).reshape(*position_QK.shape, DIM)
    found_QKD /= np.linalg.norm(found_QKD, axis=2, keepdims=True)
    return effort.recall(np.einsum("qkd,qd->qk", found_QKD, sort.query_QD), sort.truth[0])


def _replica(folder: Path, sha256: dict[str, str], size: int) -> dict[str, float]:
    """Return by how many MiB a process grows, alone and in mapped files, and its cold p50.

    It opens the index, answers queries, and opens the tables of a gallery. Between, the system is
    told to drop what of the files is not in a process: what the next queries need is read again.
    """
    query_QD = features(2 * QUERIES, drawn=2)
    query_QD /= np.linalg.norm(query_QD, axis=1, keepdims=True)
    before = _resident()
    index = Index.load(folder, sha256, threads=1)
    loaded = _resident() - before
    _drop(folder)
    cold = _latencies(index, query_QD[:QUERIES], 1)["p50 with 1 threads, ms"]
    searched = _resident() - before
    gallery = Gallery(_table(size))
    pa.default_memory_pool().release_unused()
    gc.collect()
    assert len(gallery) == index.size
    own, mapped = _resident() - before
    return {
        "p50 with 1 threads from the disk, ms": cold,
        "a replica: index alone, own MiB": float(loaded[0]),
        "a replica: index after searches, mapped MiB": float(searched[1]),
        "a replica: with the gallery's tables, own MiB": float(own),
        "a replica: with the gallery's tables, mapped MiB": float(mapped),
    }


def _table(size: int) -> pa.Table:
    """Return the table of a gallery, each image with a category, two attributes and a path."""
    parts = []
    for start in range(0, size, 100_000):
        numbers = range(start, min(size, start + 100_000))
        columns = {
            "image_id": [f"image-{number:08d}" for number in numbers],
            "categories": [[("dress", "shirt", "toptee")[number % 3]] for number in numbers],
            "path": [f"s3://bucket/photos/image-{number:08d}.jpg" for number in numbers],
            "attributes": [
                [("colour", f"colour {number % 12}"), ("size", "SML"[number % 3])]
                for number in numbers
            ],
        }
        parts.append(pa.table(columns, SCHEMA))
    return pa.concat_tables(parts)


def _drop(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # the system drops nothing that is not on the disk yet
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _resident() -> NDArray[np.float64]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return np.array([int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")])
