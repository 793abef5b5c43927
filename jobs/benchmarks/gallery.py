"""The live gallery: an import, a replica that loads it, its memory, and what writes cost searches.

Images are imported twice: into a database of their own, and beside searches.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import shlex
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from jobs import gallery
from jobs.benchmarks.measuring import DIM, chosen, elsewhere, features, memory, timed
from jobs.benchmarks.serve import clients
from jobs.benchmarks.serving import bundles, servers
from jobs.benchmarks.serving.load import Site
from raycd import bundle
from raycd.config import Config
from raycd.errors import RunError
from raycd.model.architecture import LOCAL_CONFIGS

IMAGES, OWN = 100_000, 1000  # in the database, and in the bundle, which is another gallery
CLIENTS = (1, 4)  # that search at a time
RATE, LINES = 1100, 500  # writes a second that are sent; of them in a request
NEW = 0.7  # share of the written images that are new; the others replace one
DISTINCT = 4000  # features of written images
LONGER = 4  # times the length of a scenario with writes: a new index is built in that time
EVERY_S = 0.2  # the lag is asked for
BESIDE = 200_000  # images that are imported beside searches
INDEXED_S = 300  # within which a replica has built its index


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and memory of a replica that loads, and searches without and with writes."""
    size, parts = flags.images or IMAGES, chosen(flags.only, ("import", "beside"))
    rows: dict[str, Any] = {"images": size, "dim": DIM, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="raycd-") as name:
        scratch = Path(name)
        folder, database = scratch / "run" / "bundle", scratch / "gallery.sqlite"
        demo = json.loads((LOCAL_CONFIGS / "raycd-demo.json").read_text(encoding="utf-8"))
        (scratch / "configs").mkdir()
        config_640 = scratch / "configs" / "raycd-640.json"
        config_640.write_text(json.dumps(demo | {"embed_dim": DIM}), encoding="utf-8")
        bundles.random("raycd-640", folder, OWN, configs=str(scratch / "configs"))
        table = scratch / "table.parquet"
        pq.write_table(_table(folder, size), table)
        imported = partial(_import, table, database)
        rows["imported into a new database, images/s (at least 20,000)"] = size / imported("--new")
        rows["imported again, unchanged, images/s"] = size / imported()
        if parts == ["import"]:
            return rows
        seconds, mebibytes = elsewhere(_load, folder, database)
        rows["loaded into a ready replica, s (at most 10)"] = seconds
        rows["memory that this takes, MiB"] = mebibytes
        bundles.write_requests(scratch / "requests", bundles.image_ids(OWN), 64)
        options = [*shlex.split(flags.service), "--gallery", str(database)]
        with servers.service(folder, "haproxy", options, scratch) as port:
            if size > Config().index.flat_up_to:  # else it stays flat
                rows["index built beside the searches, s"] = timed(lambda: _indexed(port))[1]
            site = Site(port, scratch / "requests", flags.seconds)
            for number in CLIENTS if "import" in parts else ():
                found = _beside_writes(site, number, bundle.verify(folder).encoder.fingerprint)
                rows |= {f"{number} clients: {figure}": value for figure, value in found.items()}
            pq.write_table(_table(folder, BESIDE, drawn=3), table)
            rows |= _beside_import(site, partial(_import, table, database))
            here = psutil.Process().children(recursive=True)
            replicas = [one for one in here if "ServeReplica" in " ".join(one.cmdline())]
            for number, replica in enumerate(replicas, start=1):
                rows[f"replica {number}, MiB"] = memory(replica)
    return rows


def _table(folder: Path, size: int, *, drawn: int = 0) -> pa.Table:
    fingerprint, ids = bundle.verify(folder).encoder.fingerprint, bundles.image_ids(size)
    ids = [f"{drawn}-{one}" for one in ids] if drawn else ids
    vectors_GD = features(size, drawn=drawn)
    columns = (ids, [["dress"]] * size, [None] * size, vectors_GD, fingerprint)
    return bundle.gallery_table(*columns, attributes=[{"colour": "blue"}] * size)


def _import(table: Path, database: Path, *more: str) -> float:
    """Return the seconds of an import, checks included, without those of starting Python."""
    command = ["import", "--gallery", str(database), "--from", str(table), *more]
    code, seconds = timed(lambda: gallery.main(command))
    if code:
        raise RunError("the import failed", got=f"exit code {code}")
    return seconds


def _load(folder: Path, database: Path) -> tuple[float, float]:
    """Return seconds and MiB that a process needs to answer, as a replica does it."""
    from serve.args import ServeArgs
    from serve.engine.engine import Engine
    from serve.live.store import GalleryStore

    before, began = memory(), time.perf_counter()
    args = ServeArgs(bundle=str(folder), gallery=str(database))
    with ThreadPoolExecutor(1) as model:
        engine = Engine(
            folder, args, threads=1, model=model, store=GalleryStore.open(args, "benchmark")
        )
        engine.searcher.answer([engine.canary])
        found = time.perf_counter() - began, memory() - before
        engine.close()
    return found


def _indexed(port: int) -> None:
    """Wait until the index has the kind that so many images get."""
    until = time.monotonic() + INDEXED_S
    while time.monotonic() < until:
        if _json(f"http://127.0.0.1:{port}/v1/info")["index"]["kind"] != "flat":
            return
        time.sleep(0.5)
    raise RunError("the service has built no index", expected=f"one in {INDEXED_S} s")


def _beside_writes(site: Site, number: int, fingerprint: str) -> dict[str, Any]:
    """Search without writes, with them, and without them again."""
    quiet, over = clients(site, number), Event()
    longer = replace(site, seconds=LONGER * site.seconds)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(_write, site.port, fingerprint, over)
        asking = pool.submit(_lags, site.port, over)
        try:
            busy = clients(longer, number)
        finally:
            over.set()
    (rate, failed), lags, after = writing.result(), asking.result(), clients(site, number)
    calm = min(float(quiet["p50, ms"]), float(after["p50, ms"]))
    return {
        "writes went on for, s": longer.seconds,
        "lag of answers, p50, s": float(np.median(lags)),
        "lag of answers, longest, s (at most 1)": max(lags),
        "p50 without writes, ms": calm,
        "p50 with writes, ms": busy["p50, ms"],
        "p99 with writes, ms": busy["p99, ms"],
        "searches that failed": busy["failures"],
        "p50 with : without writes (at most 1.5)": float(busy["p50, ms"]) / calm,
        "writes acknowledged/s (at least 1000)": rate,
        "writes that failed": failed,
    }


def _beside_import(site: Site, imported: Callable[[], float]) -> dict[str, Any]:
    """Search while BESIDE images are imported, until all replicas have them."""
    over, url = Event(), f"http://127.0.0.1:{site.port}/v1/info"
    wanted = _json(url)["index"]["size"] + BESIDE
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(_waits, site.port, over)
        try:
            seconds, began = imported(), time.perf_counter()
            while (index := _json(url)["index"])["size"] < wanted:
                if time.perf_counter() - began > INDEXED_S:
                    raise RunError("the service does not follow the import", got=index)
                time.sleep(0.1)
            behind = time.perf_counter() - began
        finally:
            over.set()
    waits = asking.result()
    return {
        f"beside searches: {BESIDE:,} imported, images/s": BESIDE / seconds,
        "beside searches: all of them found after the import, s": behind,
        "beside searches: p50, ms": 1000 * float(np.median(waits)),
        "beside searches: longest, ms": 1000 * max(waits),
        "beside searches: answers": len(waits),
    }


def _waits(port: int, over: Event) -> list[float]:
    """Return the seconds that searches take, one after the other; one that fails is an error."""
    body = json.dumps({"image_id": bundles.image_ids(1)[0], "text": "is blue"}).encode()
    found = list[float]()
    while not over.is_set():
        found.append(timed(lambda: _json(f"http://127.0.0.1:{port}/v1/search", body))[1])
    return found


def _write(port: int, fingerprint: str, over: Event) -> tuple[float, int]:
    """Import images with features, evenly over time; return writes a second and failures."""
    rng, drawn = random.Random(0), features(DISTINCT, drawn=2)
    encoded = [base64.b64encode(feature_D.tobytes()).decode() for feature_D in drawn]
    fixed = {"category": ["dress"], "attributes": {"colour": "red"}, "encoder": fingerprint}
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/x-ndjson"}
    began, made, kept = time.perf_counter(), 0, 0
    while not over.wait(max(0.0, began + made / RATE - time.perf_counter())):
        lines = []
        for number in range(made, made := made + LINES):
            name = f"new-{number}" if rng.random() < NEW else f"G{rng.randrange(10_000):06d}"
            line = {"image_id": name, "feature": encoded[number % DISTINCT]}
            lines.append(json.dumps(fixed | line))
        connection.request("POST", "/v1/gallery:import", "\n".join(lines), headers)
        answers = connection.getresponse().read().splitlines()
        kept += sum(json.loads(answer)["status"] in (200, 201) for answer in answers)
    return kept / (time.perf_counter() - began), made - kept


def _lags(port: int, over: Event) -> list[float]:
    """Return the lags that answers state, by a search that costs little."""
    body, lags = json.dumps({"image_id": bundles.image_ids(1)[0], "top_k": 1}).encode(), []
    while not over.wait(EVERY_S):
        lags.append(_json(f"http://127.0.0.1:{port}/v1/search", body)["index"]["lag_s"])
    return lags


def _json(url: str, body: bytes | None = None) -> dict[str, Any]:
    request = urllib.request.Request(url, body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
