"""The metrics for Prometheus. Each node's Ray exports those of its replicas, tagged by replica.

Their names end as Prometheus asks: in a unit, `_total` or `_info`; Ray puts `ray_` before them. A
number costs Ray about as much as parsing a request, so there is one a request and one a batch; of
the steps of searches only a sample is recorded when there are many, and what changes slowly is
recorded with each canary. What is of one gallery has its name as the label `gallery`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, Self, TypeVar

import torch
from ray.serve.metrics import Counter, Gauge, Histogram

from raycd import __version__
from raycd.search.cache import CountedCache
from raycd.search.query import Answer
from serve.args import DEFAULT
from serve.replica import Replica
from serve.second.shadow import Outcome

FORMER = {"raycd_batch_queries": "raycd_batch_size", "raycd_queue_searches": "raycd_busy"}
"""Metrics that are exported under their former name, too, for one release."""

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
# Beside more than BUSY other searches, the steps of one search in SAMPLED are recorded.
_BUSY, _SAMPLED = 4, 8
_SHARES = [0.001, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
_SIZES: list[float] = [1, 2, 4, 8, 16, 32, 64, 128]

_GALLERY: Any = ("gallery",)  # a label; Ray says tuple[str], of any length

Kind = TypeVar("Kind", Gauge, Histogram)


class Metrics:
    """The metrics of a replica, those of the default gallery first; they need a running Ray."""

    def __init__(self) -> None:
        self._tags, self._searches = {"gallery": DEFAULT}, 0
        self._requests = Histogram(
            "raycd_request_seconds",
            "Seconds of a request.",
            _SECONDS,
            ("path", "status", *_GALLERY),
        )
        self._steps = Histogram(
            "raycd_step_seconds", "Seconds of a search's steps.", _SECONDS, ("step", *_GALLERY)
        )
        self._batches = _named(
            "raycd_batch_queries",
            lambda name: Histogram(
                name, "Queries that the model answered at once.", _SIZES, _GALLERY
            ),
        )
        self._queues = _named(
            "raycd_queue_searches",
            lambda name: Gauge(name, "Searches that wait in a replica or are answered.", _GALLERY),
        )
        self._limit = Gauge(
            "raycd_queue_limit_searches",
            "Searches that a replica takes on before it refuses more.",
            _GALLERY,
        )
        self._lookups = Counter(
            "raycd_cache_lookups_total",
            "Texts and thumbnails that were looked for in a replica's caches.",
            ("cache", "result", *_GALLERY),
        )
        self._served: dict[str, str] = {}
        self._gpu = Gauge("raycd_gpu_memory_bytes", "Memory of a replica's GPU.", ("state",))
        self._of_galleries()
        self._beside_searches()

    def _of_galleries(self) -> None:
        self._images = Gauge("raycd_gallery_images", "Images that can be found.", _GALLERY)
        self._version = Gauge(
            "raycd_gallery_version", "Version of the gallery that a replica searches.", _GALLERY
        )
        self._lag = Gauge(
            "raycd_gallery_lag_seconds",
            "Seconds since a replica has heard of its database.",
            _GALLERY,
        )
        self._recall = Gauge(
            "raycd_index_recall_ratio",
            "Share of the true first 10 that the index finds.",
            _GALLERY,
        )
        self._info = Gauge(
            "raycd_bundle_info",
            "1 for what a replica serves, 0 for what it has served.",
            ("version", "bundle", "encoder", "head", "index", *_GALLERY),
        )

    def _beside_searches(self) -> None:
        self._written = Counter(
            "raycd_feedback_written_total",
            "Searches and events that were written for feedback.",
            _GALLERY,
        )
        self._lost = Counter(
            "raycd_feedback_lost_total", "Searches and events that were not.", _GALLERY
        )
        self._shadow = Counter(
            "raycd_shadow_searches_total",
            "Searches sampled for the second model: answered, failed, dropped.",
            ("outcome",),
        )
        self._overlap = Histogram(
            "raycd_shadow_overlap_ratio",
            "Share of the results of both models that are the same.",
            _SHARES,
        )
        self._shadow_seconds = Histogram(
            "raycd_shadow_seconds", "Seconds that the second model took.", _SECONDS
        )

    def of(self, gallery: str) -> Self:
        """Return these metrics as a gallery records them."""
        own = copy(self)
        own._tags, own._searches, own._served = {"gallery": gallery}, 0, {}
        return own

    def request(self, path: str, status: int, seconds: float, gallery: str) -> None:
        """Record a request that was answered."""
        tags = {"path": path, "status": str(status), "gallery": gallery}
        self._requests.observe(seconds, tags)

    def search(self, timings_ms: Mapping[str, float], busy: int) -> None:
        """Record a search that was answered with so many others beside it."""
        self._searches += 1
        if busy > _BUSY and self._searches % _SAMPLED:
            return
        for step, milliseconds in timings_ms.items():
            self._steps.observe(milliseconds / 1000, self._tags | {"step": step})

    def batch(self, answer: Answer, busy: int) -> None:
        """Record a batch by one of its answers, and the searches at work and waiting with it."""
        for batch in self._batches:
            batch.observe(answer.batch, self._tags)
        for queue in self._queues:
            queue.set(busy, self._tags)

    def feedback(self, written: int, lost: int) -> None:
        """Record how many searches and events were written, and lost, since the last time."""
        if written:
            self._written.inc(written, self._tags)
        if lost:
            self._lost.inc(lost, self._tags)

    def shadow(self, outcome: Outcome) -> None:
        """Record what became of a search that was sampled for the second model."""
        self._shadow.inc(tags={"outcome": outcome})

    def compared(self, overlap: float, seconds: float) -> None:
        """Record the share of the results that both models have, and how long the second took."""
        self._overlap.observe(overlap)
        self._shadow_seconds.observe(seconds)

    def state(self, replica: Replica) -> None:
        """Record what a replica serves, and the state of its gallery, caches and GPU."""
        engine = replica.engine
        view = engine.view
        self._limit.set(replica.searches.most, self._tags)
        self._images.set(len(view), self._tags)
        self._version.set(view.version, self._tags)
        self._lag.set(engine.follower.lag_s if engine.follower else 0.0, self._tags)
        if view.recall is not None:  # that of a search engine is not known
            self._recall.set(view.recall, self._tags)
        self._serves(
            {
                "version": __version__,
                "bundle": engine.bundle.manifest.digest[:12],
                "encoder": engine.model.encoder,
                "head": engine.model.head,
                "index": view.kind,
            }
        )
        caches: dict[str, CountedCache[Any]] = {
            "text": engine.searcher.texts,
            "thumbnail": replica.pictures.thumbnails,
        }
        for cache, values in caches.items():
            for result, count in values.looked().items():
                self._lookups.inc(count, self._tags | {"cache": cache, "result": result})
        if replica.args.gpus:
            free, total = torch.cuda.mem_get_info()
            self._gpu.set(total - free, {"state": "used"})
            self._gpu.set(free, {"state": "free"})

    def _serves(self, what: dict[str, str]) -> None:
        # Ray forgets no tags of a gauge as long as its process lives.
        if self._served and self._served != what:
            self._info.set(0, self._tags | self._served)
        self._info.set(1, self._tags | what)
        self._served = what


def _named(name: str, make: Callable[[str], Kind]) -> list[Kind]:
    """Return a metric by its name, and by its former one where it had another."""
    return [make(each) for each in (name, FORMER.get(name)) if each]
