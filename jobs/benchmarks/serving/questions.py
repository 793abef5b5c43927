"""The requests of the load generator: bodies are put together from parts that were read before the
clock starts.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

from jobs.benchmarks.serving.plan import Plan

TOP_K = 10
REPEATED = 16  # distinct texts where texts are to be repeated
PICTURES, TEXTS, IMAGE_IDS = (
    "pictures",
    "texts.json",
    "image_ids.json",
)  # in the folder of the material

_BOUNDARY = b"raycd-benchmark"
_HEAD = (
    b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
)
_PART = b"--" + _BOUNDARY + b'\r\nContent-Disposition: form-data; name="%s"'


class Questions:
    """Requests without end, each with the next picture (or image_id) and the next text."""

    def __init__(self, plan: Plan) -> None:
        folder = Path(plan.material)
        self._plan = plan
        self._texts: list[str] = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
        self._image_ids: list[str] = json.loads((folder / IMAGE_IDS).read_text(encoding="utf-8"))
        self._pictures = [path.read_bytes() for path in sorted((folder / PICTURES).iterdir())]
        self._numbers = count()

    def next(self) -> bytes:
        """A whole HTTP request."""
        number = next(self._numbers)
        text = self._text(number)
        if self._plan.upload:
            return upload(self._pictures[number % len(self._pictures)], text)
        return by_id(self._image_ids[number % len(self._image_ids)], text)

    def _text(self, number: int) -> str:
        if self._plan.new_texts:
            return f"{self._texts[number % len(self._texts)]}, number {self._plan.first + number}"
        return self._texts[number % REPEATED]


def upload(picture: bytes, text: str) -> bytes:
    """A form with a JPEG file."""
    body = b"".join((
        _PART % b"image", b'; filename="picture.jpg"\r\nContent-Type: image/jpeg\r\n\r\n', picture, b"\r\n",
        _PART % b"text", b"\r\n\r\n", text.encode(), b"\r\n",
        _PART % b"top_k", b"\r\n\r\n%d\r\n--" % TOP_K, _BOUNDARY, b"--\r\n",
    ))  # fmt: skip
    return _HEAD % (b"multipart/form-data; boundary=" + _BOUNDARY, len(body)) + body


def by_id(image_id: str, text: str) -> bytes:
    """JSON that names an image of the gallery."""
    body = json.dumps({"image_id": image_id, "text": text, "top_k": TOP_K}).encode()
    return _HEAD % (b"application/json", len(body)) + body
