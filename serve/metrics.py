"""What Prometheus gets, through Ray: each node exports the metrics of its replicas, tagged by
replica.

A number costs Ray about as much as parsing a request, so there is one a request and one a batch; of
the steps of searches only a sample is told when there are many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ray.serve.metrics import Gauge, Histogram

from raycd.search.query import Answer

if TYPE_CHECKING:
    from serve.engine import Engine

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
_CROWD, _SAMPLED = (
    4,
    8,
)  # beside more searches than the first, one in the second is told step by step
_SIZES = [1, 2, 4, 8, 16, 32, 64, 128]


class Metrics:
    """The service's own metrics; made in a replica."""

    def __init__(self) -> None:
        self._requests = Histogram(
            "raycd_request_seconds", "Seconds of a request.", _SECONDS, ("path", "status")
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

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.observe(seconds, {"path": path, "status": str(status)})

    def search(self, timings_ms: Mapping[str, float], busy: int) -> None:
        """A search was answered, with so many others beside it."""
        self._searches += 1
        if busy > _CROWD and self._searches % _SAMPLED:
            return
        for step, milliseconds in timings_ms.items():
            self._steps.observe(milliseconds / 1000, {"step": step})

    def batch(self, answer: Answer, busy: int) -> None:
        """A batch was answered; this is one of its answers."""
        self._batch.observe(answer.batch)
        self._busy.set(busy)

    def gallery(self, engine: Engine) -> None:
        """The gallery that is searched."""
        self._images.set(len(engine.view))
        self._version.set(engine.view.version)
        self._lag.set(engine.follower.lag_s if engine.follower else 0.0)
