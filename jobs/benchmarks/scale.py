"""The search step from 10,000 to 1,000,000 images of 640 numbers: time, recall and memory."""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.benchmarks.measuring import DIM, elsewhere, features, peak
from raycd.config import Config
from raycd.index import Index, effort

SIZES = (10_000, 100_000, 1_000_000)
QUERIES, WARM_UP, FIRST = 500, 50, effort.FIRST


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return what was built, p50 and p99 of single queries, recall and a replica for each size."""
    largest = flags.images or SIZES[-1]
    sizes = [*(size for size in SIZES if size < largest), largest]
    rows: dict[str, Any] = {"dim": DIM, "cores": os.cpu_count(), "queries": QUERIES}
    for size in sizes:
        rows |= {f"{size:,}: {name}": value for name, value in _one(size, config).items()}
    for threads in (1, 2):
        p50 = [rows[f"{size:,}: p50 with {threads} threads, ms"] for size in sizes]
        rows[f"p50 of {largest:,} : {sizes[0]:,}, {threads} threads"] = p50[-1] / p50[0]
    return rows


def _one(size: int, config: Config) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (rows, sha256), mebibytes = peak(lambda: _build(size, config, folder))
        rows["memory to build, MiB"] = mebibytes
        gc.collect()
        index = Index.load(folder, sha256)
        image_BD = features(QUERIES, drawn=1)
        image_BD /= np.linalg.norm(image_BD, axis=1, keepdims=True)
        queries = {"images": image_BD, "between": effort.between(image_BD, seed=1)}
        for threads in (1, 2):
            index.threads = threads
            rows |= _latencies(index, queries["between"], threads)
        for name, query_BD in queries.items():
            found, truth = (index.search(query_BD, FIRST, exact=way)[0] for way in (False, True))
            rows[f"recall@10 of {name}"] = effort.recall(found, truth)
        own, shared = elsewhere(_open, folder, sha256)
        return rows | {"another replica, own MiB": own, "another replica, shared MiB": shared}


def _build(size: int, config: Config, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    drawn, began = features(size), time.perf_counter()
    built = Index.build(drawn, config.index, threads=os.cpu_count() or 1)
    sha256 = built.save(folder)
    seconds = time.perf_counter() - began
    rows = {"kind": built.kind, "effort": built.effort, "recall@10 when built": built.recall}
    return rows | {"built and saved, s": seconds}, sha256


def _latencies(index: Index, query_BD: NDArray[np.float32], threads: int) -> dict[str, float]:
    """Search for one query after the other, each by itself."""
    milliseconds = []
    for row in [*range(WARM_UP), *range(len(query_BD))]:
        began = time.perf_counter()
        index.search(query_BD[row : row + 1], FIRST)
        milliseconds.append(1e3 * (time.perf_counter() - began))
    p50, p99 = np.percentile(milliseconds[WARM_UP:], [50, 99])
    name = f"with {threads} threads, ms"
    return {f"p50 {name}": float(p50), f"p99 {name}": float(p99)}


def _open(folder: Path, sha256: dict[str, str]) -> NDArray[np.float64]:
    """Return by how many MiB a process grows, alone and in mapped files, that compares all images.

    It opens the files that the process above has open.
    """
    before = _resident()
    index = Index.load(folder, sha256, threads=1)
    for exact in (False, True):
        index.search(np.eye(1, DIM, dtype=np.float32), FIRST, exact=exact)
    return _resident() - before


def _resident() -> NDArray[np.float64]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return np.array([int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")])
