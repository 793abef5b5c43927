"""The search step from 10,000 to 1,000,000 images of 640 numbers: how long, how right, how much
memory.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.benchmarks.memory import proportional, watched
from raycd.config import Config
from raycd.index import Index, effort

DIM, SIZES = 640, (10_000, 100_000, 1_000_000)
QUERIES, WARM_UP, FIRST = 500, 50, effort.FIRST
CATEGORIES, SORTS = 20, 2000
SHARES = {
    "common": 0.5,
    "category": 0.12,
    "sort": 0.18,
    "own": 0.2,
}  # of a feature's squared length


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """For each size: what was built and in which time and memory, p50 and p99 of single queries,
    recall, a replica.
    """
    largest = flags.images or SIZES[-1]
    sizes = [*(size for size in SIZES if size < largest), largest]
    rows: dict[str, Any] = {"dim": DIM, "cores": os.cpu_count(), "queries": QUERIES}
    for size in sizes:
        rows |= {f"{size:,}: {name}": value for name, value in _one(size, config).items()}
    for threads in (1, 2):
        first, last = (
            rows[f"{size:,}: p50 with {threads} threads, ms"] for size in (sizes[0], sizes[-1])
        )
        rows[f"p50 of {largest:,} : {sizes[0]:,}, {threads} threads"] = last / first
    return rows


def catalogue(count: int, *, drawn: int = 0) -> NDArray[np.float32]:
    """Features (count, DIM) like those of a large catalogue; another `drawn` gives other images of
    the same one.

    A common direction, 20 categories, 2,000 sorts in them (sizes by Zipf's law, exponent 0.5), and
    each image's own part: two images have a cosine of 0.5 on average, of one category 0.62, of one
    sort 0.8. The variance of each part falls as 1/i over the dimensions i, as in features of
    trained encoders: about 30 dimensions count.
    """
    fixed = np.random.default_rng(0)
    spectrum = 1 / np.arange(1, DIM + 1) ** 0.5
    spectrum = (spectrum / np.linalg.norm(spectrum)).astype(np.float32)

    def part(rng: np.random.Generator, rows: int, share: str) -> NDArray[np.float32]:
        return rng.standard_normal((rows, DIM), dtype=np.float32) * (
            spectrum * np.float32(SHARES[share] ** 0.5)
        )

    common = fixed.standard_normal(DIM, dtype=np.float32)
    common *= SHARES["common"] ** 0.5 / np.linalg.norm(common)
    category = part(fixed, CATEGORIES, "category")[fixed.integers(CATEGORIES, size=SORTS)]
    centres = common + category + part(fixed, SORTS, "sort")
    share = 1 / np.arange(1, SORTS + 1) ** 0.5
    rng = np.random.default_rng([1, drawn])
    features = np.empty((count, DIM), np.float32)
    for start in range(0, count, 4096):
        own = features[start : start + 4096]
        own[:] = centres[rng.choice(SORTS, len(own), p=share / share.sum())] + part(
            rng, len(own), "own"
        )
    return features


def _one(size: int, config: Config) -> dict[str, Any]:
    gc.collect()
    before = proportional()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with watched() as peak:
            features = catalogue(size)
            began = time.perf_counter()
            built = Index.build(features, config.index, threads=os.cpu_count() or 1)
            sha256 = built.save(folder)
            seconds = time.perf_counter() - began
        rows: dict[str, Any] = {
            "kind": built.kind,
            "effort": built.effort,
            "recall@10 when built": built.recall,
        }
        rows |= {
            "built and saved, s": seconds,
            "memory to build, MiB": (peak.bytes - before) / 2**20,
        }
        del features, built
        gc.collect()
        index = Index.load(folder, sha256)
        queries = dict(_queries())
        for threads in (1, 2):
            index.threads = threads
            rows |= _latencies(index, queries["between"], threads)
        rows |= {
            f"recall@10 of {name}": _recall(index, query_BD) for name, query_BD in queries.items()
        }
        rows |= _replica(folder, sha256)
        return rows


def _queries() -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Images of the same catalogue that are not in the gallery, and queries between two of them."""
    image_BD = catalogue(QUERIES, drawn=1)
    image_BD /= np.linalg.norm(image_BD, axis=1, keepdims=True)
    yield "images", image_BD
    yield "between", effort.between(image_BD, seed=1)


def _latencies(index: Index, query_BD: NDArray[np.float32], threads: int) -> dict[str, float]:
    """One query after the other, each by itself."""
    milliseconds = []
    for row in [*range(WARM_UP), *range(len(query_BD))]:
        began = time.perf_counter()
        index.search(query_BD[row : row + 1], FIRST)
        milliseconds.append(1e3 * (time.perf_counter() - began))
    p50, p99 = np.percentile(milliseconds[WARM_UP:], [50, 99])
    return {
        f"p50 with {threads} threads, ms": float(p50),
        f"p99 with {threads} threads, ms": float(p99),
    }


def _recall(index: Index, query_BD: NDArray[np.float32]) -> float:
    found, _ = index.search(query_BD, FIRST)
    truth, _ = index.search(query_BD, FIRST, exact=True)
    return effort.recall(found, truth)


def _replica(folder: Path, sha256: dict[str, str]) -> dict[str, float]:
    """What another process costs that opens the same files, while this one has them open, and
    compares every image.
    """
    receiving, sending = get_context("spawn").Pipe(duplex=False)
    process = get_context("spawn").Process(target=_open, args=(folder, sha256, sending))
    process.start()
    own, shared = receiving.recv()
    process.join()
    return {"another replica, own MiB": own, "another replica, shared MiB": shared}


def _open(folder: Path, sha256: dict[str, str], sending: Any) -> None:
    before = _resident()
    index = Index.load(folder, sha256, threads=1)
    for exact in (False, True):
        index.search(np.eye(1, DIM, dtype=np.float32), FIRST, exact=exact)
    sending.send([after - then for after, then in zip(_resident(), before, strict=True)])


def _resident() -> tuple[float, float]:
    """Memory of this process alone, and of files that it maps, in MiB (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, shared = (int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    return own, shared
