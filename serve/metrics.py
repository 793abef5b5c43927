"""The metrics for Prometheus. Each node's Ray exports those of its replicas, tagged by replica.

A number costs Ray about as much as parsing a request, so there is one a request and one a batch; of
the steps of searches only a sample is recorded when there are many.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.serve.metrics import Counter, Gauge, Histogram

from raycd.search.query import Answer
from serve.engine import Engine
from serve.second.shadow import Outcome

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
# Beside more than BUSY other searches, the steps of one search in SAMPLED are recorded.
_BUSY, _SAMPLED = 4, 8
_SHARES = [0.001, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
_SIZES: list[float] = [1, 2, 4, 8, 16, 32, 64, 128]


class Metrics:
    """The metrics of a replica; they need a running Ray."""

    def __init__(self) -> None:
        self._requests = Histogram(
            "raycd_request_seconds",
            "Seconds of a request.",
            _SECONDS,
            ("path", "status"),  # type: ignore[arg-type]  # Ray says tuple[str], of any length
        )
        self._steps = Histogram(
            "raycd_step_seconds", "Seconds of a search's steps.", _SECONDS, ("step",)
        )
        self._batch = Histogram(
            "raycd_batch_size", "Queries that the model answered at once.", _SIZES
        )
        self._busy = Gauge("raycd_busy", "Searches that wait in a replica.")
        self._searches = 0
        self._images = Gauge("raycd_gallery_images", "Images that can be found.")
        self._version = Gauge(
            "raycd_gallery_version", "Version of the gallery that a replica searches."
        )
        self._lag = Gauge(
            "raycd_gallery_lag_seconds", "Seconds since a replica has heard of its database."
        )
        self._written = Counter(
            "raycd_feedback_written", "Searches and events that were written for feedback."
        )
        self._lost = Counter("raycd_feedback_lost", "Searches and events that were not.")

        self._shadow = Counter(
            "raycd_shadow_searches",
            "Searches sampled for the second model: answered, failed, dropped.",
            ("outcome",),
        )
        self._overlap = Histogram(
            "raycd_shadow_overlap",
            "Share of the results of both models that are the same.",
            _SHARES,
        )
        self._shadow_seconds = Histogram(
            "raycd_shadow_seconds", "Seconds that the second model took.", _SECONDS
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Record a request that was answered."""
        self._requests.observe(seconds, {"path": path, "status": str(status)})

    def search(self, timings_ms: Mapping[str, float], busy: int) -> None:
        """Record a search that was answered with so many others beside it."""
        self._searches += 1
        if busy > _BUSY and self._searches % _SAMPLED:
            return
        for step, milliseconds in timings_ms.items():
            self._steps.observe(milliseconds / 1000, {"step": step})

    def batch(self, answer: Answer, waiting: int) -> None:
        """Record a batch by one of its answers, and the searches that wait meanwhile."""
        self._batch.observe(answer.batch)
        self._busy.set(waiting)

    def feedback(self, written: int, lost: int) -> None:
        """Record how many searches and events were written, and lost, since the last time."""
        if written:
            self._written.inc(written)
        if lost:
            self._lost.inc(lost)

    def gallery(self, engine: Engine) -> None:
        """Record the state of the gallery that is searched."""
        self._images.set(len(engine.view))
        self._version.set(engine.view.version)
        self._lag.set(engine.follower.lag_s if engine.follower else 0.0)

    def shadow(self, outcome: Outcome) -> None:
        """Record what became of a search that was sampled for the second model."""
        self._shadow.inc(tags={"outcome": outcome})

    def compared(self, overlap: float, seconds: float) -> None:
        """Record the share of the results that both models have, and how long the second took."""
        self._overlap.observe(overlap)
        self._shadow_seconds.observe(seconds)
