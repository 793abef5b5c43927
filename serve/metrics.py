"""What Prometheus gets, through Ray: each node exports the metrics of its replicas, tagged by replica."""

from collections.abc import Mapping

from ray.serve.metrics import Counter, Gauge, Histogram

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
_SIZES = [1, 2, 4, 8, 16, 32, 64, 128]


class Metrics:
    """The service's own metrics; made in a replica."""

    def __init__(self) -> None:
        self._requests = Counter("raycd_requests", "Requests by route and status.", ("path", "status"))
        self._seconds = Histogram("raycd_request_seconds", "Seconds of a request.", _SECONDS, ("path",))
        self._steps = Histogram("raycd_step_seconds", "Seconds of a search's steps.", _SECONDS, ("step",))
        self._batch = Histogram("raycd_batch_size", "Queries that the model answered at once.", _SIZES)
        self._busy = Gauge("raycd_busy", "Searches at work and waiting in a replica.")
        self._gallery = Gauge("raycd_gallery_images", "Images in the index.")

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.inc(1, {"path": path, "status": str(status)})
        self._seconds.observe(seconds, {"path": path})

    def search(self, steps_ms: Mapping[str, float], batch: int, busy: int) -> None:
        """A search was answered."""
        for step, milliseconds in steps_ms.items():
            self._steps.observe(milliseconds / 1000, {"step": step})
        self._batch.observe(batch)
        self._busy.set(busy)

    def gallery(self, size: int) -> None:
        """The index that is searched."""
        self._gallery.set(size)
