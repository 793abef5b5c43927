"""What Prometheus gets, through Ray: each node exports the metrics of its replicas, tagged by replica.

A number costs Ray about as much as parsing a request, so there is one a request and a few a batch.
"""

from ray.serve.metrics import Gauge, Histogram

from raycd.query import Answer

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30]
_SIZES = [1, 2, 4, 8, 16, 32, 64, 128]


class Metrics:
    """The service's own metrics; made in a replica."""

    def __init__(self) -> None:
        self._requests = Histogram("raycd_request_seconds", "Seconds of a request.", _SECONDS, ("path", "status"))
        self._steps = Histogram("raycd_batch_seconds", "Seconds of a batch's steps.", _SECONDS, ("step",))
        self._batch = Histogram("raycd_batch_size", "Queries that the model answered at once.", _SIZES)
        self._busy = Gauge("raycd_busy", "Searches that wait in a replica.")
        self._gallery = Gauge("raycd_gallery_images", "Images in the index.")

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.observe(seconds, {"path": path, "status": str(status)})

    def batch(self, answer: Answer, busy: int) -> None:
        """A batch was answered; this is one of its answers."""
        self._steps.observe(answer.encode_s, {"step": "encode"})
        self._steps.observe(answer.search_s, {"step": "search"})
        self._batch.observe(answer.batch)
        self._busy.set(busy)

    def gallery(self, size: int) -> None:
        """The index that is searched."""
        self._gallery.set(size)
