"""The live gallery: how long a replica takes to load it, its memory, and what writes cost the
searches beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from jobs.benchmarks.memory import proportional
from jobs.benchmarks.scale import DIM, catalogue
from jobs.benchmarks.serving import bundles, material, servers, writes
from jobs.benchmarks.serving.scenarios import Site, clients
from raycd import bundle
from raycd.config import Config
from raycd.errors import RunError
from raycd.gallery_db import GalleryDatabase
from raycd.model.encoder import LOCAL_CONFIGS

IMAGES, OWN = 100_000, 1000  # in the database, and in the bundle, which is another gallery
CLIENTS = (1, 4)  # that search at a time
RATE = 1100  # writes a second that are sent
LONGER = 4  # times the length of a scenario in which there are writes: the index is made anew in it
EVERY_S = 0.2  # somebody looks at the lag
INDEXED_S = 300  # within which a replica has built its index


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of a replica that loads, then p50 of searches without and with writes."""
    size = flags.images or IMAGES
    rows: dict[str, Any] = {"images": size, "dim": DIM, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="raycd-") as name:
        scratch = Path(name)
        folder, database = scratch / "run" / "bundle", scratch / "gallery.sqlite"
        bundles.random("raycd-640", folder, OWN, configs=_architecture(scratch))
        rows["written into the database, s"] = _fill(database, folder, size)
        rows |= _loaded(folder, database)
        material.write(scratch / "material", bundles.image_ids(OWN), 64)
        options = [*shlex.split(flags.service), "--gallery", str(database)]
        with servers.service(folder, "haproxy", options, scratch) as port:
            rows["index built beside the searches, s"] = _indexed(port)
            site = Site(port, str(scratch / "material"), flags.seconds)
            for number in CLIENTS:
                rows |= _beside_writes(site, number, folder)
            rows |= _replicas()
    return rows


def _architecture(scratch: Path) -> str:
    """The folder of a model configuration: the demo's, with features of DIM numbers."""
    folder = scratch / "configs"
    folder.mkdir()
    demo = LOCAL_CONFIGS / "raycd-demo.json"
    settings = json.loads(demo.read_text(encoding="utf-8")) | {"embed_dim": DIM}
    (folder / "raycd-640.json").write_text(json.dumps(settings), encoding="utf-8")
    return str(folder)


def _fill(database: Path, folder: Path, size: int) -> float:
    fingerprint = bundle.verify(folder).encoder.fingerprint
    table = bundle.gallery_table(
        bundles.image_ids(size),
        [["dress"]] * size,
        [None] * size,
        catalogue(size),
        fingerprint,
        attributes=[{"colour": "blue"}] * size,
    )
    began = time.perf_counter()
    with GalleryDatabase.open(str(database)) as opened:
        opened.begin(table, fingerprint, "not the bundle's gallery")
    return time.perf_counter() - began


def _loaded(folder: Path, database: Path) -> dict[str, float]:
    """What a process that has done its imports needs to answer, as a replica does it."""
    receiving, sending = get_context("spawn").Pipe(duplex=False)
    process = get_context("spawn").Process(target=_load, args=(folder, database, sending))
    process.start()
    seconds, mebibytes = receiving.recv()
    process.join()
    return {
        "loaded into a ready replica, s (at most 10)": seconds,
        "memory that this takes, MiB": mebibytes,
    }


def _load(folder: Path, database: Path, sending: Any) -> None:
    from serve.args import ServeArgs
    from serve.engine import Engine
    from serve.live.store import GalleryStore

    before, began = proportional(), time.perf_counter()
    args = ServeArgs(bundle=str(folder), gallery=str(database))
    with ThreadPoolExecutor(1) as model:
        engine = Engine(
            folder, args, threads=1, model=model, store=GalleryStore.open(args, "benchmark")
        )
        engine.searcher.answer([engine.canary])
        seconds = time.perf_counter() - began
        sending.send((seconds, (proportional() - before) / 2**20))
        engine.close()


def _indexed(port: int) -> float:
    """Seconds until the index has the kind that so many images get, from the service's first answer
    on.
    """
    began = time.perf_counter()
    while time.perf_counter() - began < INDEXED_S:
        if _index(port)["kind"] != "flat":
            return time.perf_counter() - began
        time.sleep(0.5)
    raise RunError("the service has built no index", expected=f"one in {INDEXED_S} s")


def _beside_writes(site: Site, number: int, folder: Path) -> dict[str, Any]:
    """p50 of searches without writes, with them, and without them again; and how far behind the
    writes answers are.
    """
    fingerprint = bundle.verify(folder).encoder.fingerprint
    quiet = clients(site, number)
    with writes.sent(site.port, fingerprint, RATE) as written, _lags(site.port) as lags:
        busy = clients(replace(site, seconds=LONGER * site.seconds), number)
    after = clients(site, number)
    calm = min(float(quiet["p50, ms"]), float(after["p50, ms"]))
    name = f"{number} clients"
    return {
        f"{name}: writes went on for, s": LONGER * site.seconds,
        f"{name}: lag told, p50, s": float(np.median(lags)),
        f"{name}: lag told, longest, s (at most 1)": max(lags),
        f"{name}: p50 without writes, ms": calm,
        f"{name}: p50 with writes, ms": busy["p50, ms"],
        f"{name}: p99 with writes, ms": busy["p99, ms"],
        f"{name}: searches that failed": busy["failures"],
        f"{name}: p50 with : without writes (at most 1.5)": float(busy["p50, ms"]) / calm,
        f"{name}: writes acknowledged/s (at least 1000)": written.rate,
        f"{name}: writes that failed": written.failed,
    }


@contextmanager
def _lags(port: int) -> Iterator[list[float]]:
    """The lags that answers tell while open, asked for a few times a second."""
    lags: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(EVERY_S):
            lags.append(_search(port)["index"]["lag_s"])

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield lags
    finally:
        ended.set()
        asking.join()


def _search(port: int) -> dict[str, Any]:
    """The answer to a search that costs little: an image of the bundle's, alone."""
    body = json.dumps({"image_id": bundles.image_ids(1)[0], "top_k": 1}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/search", body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


def _index(port: int) -> dict[str, Any]:
    """What one of the replicas says of its index."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/info", timeout=10) as answer:
        told: dict[str, Any] = json.load(answer)["index"]
    return told


def _replicas() -> dict[str, float]:
    """Memory of each replica of the service that runs, in MiB (PSS)."""
    here = psutil.Process().children(recursive=True)
    replicas = [one for one in here if "ServeReplica" in " ".join(one.cmdline())]
    return {
        f"replica {number}, MiB": proportional(one) / 2**20
        for number, one in enumerate(replicas, start=1)
    }
