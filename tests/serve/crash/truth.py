"""What clients have written, and so what the gallery must hold: the truth that an audit compares
with.

Shapes: D feature size.
"""

from __future__ import annotations

import base64
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow


@dataclass(frozen=True)
class Image:
    """What a client writes under an id. All of it follows from a tag that no other write has."""

    tag: str
    pictured: bool
    """Whether it comes with a picture for the service to encode, or else with a feature."""

    @property
    def category(self) -> str:
        return "pictured" if self.pictured else "given"

    @property
    def attributes(self) -> dict[str, str]:
        return {"tag": self.tag}

    def feature(self, dim: int) -> NDArray[np.float32]:
        """Return the feature (D,), not normalised."""
        return self._random().standard_normal(dim).astype(np.float32)

    def picture(self) -> bytes:
        """Return a small PNG of sixteen colours."""
        colours = self._random().integers(0, 256, (4, 4, 3), dtype=np.uint8)
        buffer = BytesIO()
        Pillow.fromarray(colours).resize((32, 32), Pillow.Resampling.NEAREST).save(buffer, "PNG")
        return buffer.getvalue()

    def body(self, encoder: str, dim: int) -> dict[str, Any]:
        """Return it as a `GalleryImage` of JSON."""
        labels = {"category": [self.category], "attributes": self.attributes}
        if self.pictured:
            return {"image_base64": base64.b64encode(self.picture()).decode(), **labels}
        feature = base64.b64encode(self.feature(dim).astype("<f4").tobytes()).decode()
        return {"feature": feature, "encoder": encoder, **labels}

    def _random(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(self.tag.encode()))


@dataclass
class Known:
    """What is known of one id, which one client alone writes; None: there is no image."""

    acknowledged: Image | None = None
    version: int | None = 0
    """Of the last acknowledged write, 0 before any; None: it was a delete whose first answer was
    lost.
    """
    unsure: list[Image | None] = field(default_factory=list)
    """What was sent since and not acknowledged: it may have been written, or not."""

    @property
    def possible(self) -> list[Image | None]:
        """Return what may be there."""
        return [self.acknowledged, *self.unsure]


class Ledger:
    """What every client has written."""

    def __init__(self) -> None:
        self.known: dict[str, Known] = defaultdict(Known)
        self.versions: dict[str, list[list[int]]] = defaultdict(list)
        """By client, those of each of its requests, in the order in which they were sent."""

    def sent(self, image_id: str, image: Image | None) -> None:
        """Note that a write is on its way."""
        self.known[image_id].unsure.append(image)

    def acknowledged(self, image_id: str, image: Image | None, version: int | None) -> None:
        """Note that a write that was sent is done, and what was sent before it is over.

        `version` where the service answered it.
        """
        unsure = self.known[image_id].unsure
        last = max(index for index, sent in enumerate(unsure) if sent == image)
        self.known[image_id] = Known(image, version, unsure[last + 1 :])

    def check_versions(self) -> None:
        """Check that no two writes have one version, and that later requests have later ones."""
        everyones = [
            version
            for requests in self.versions.values()
            for returned in requests
            for version in returned
        ]
        assert len(set(everyones)) == len(everyones), "two writes returned the same version"
        for client, requests in self.versions.items():
            for earlier, later in pairwise(requests):
                assert max(earlier) < min(later), f"{client} got {earlier}, then {later}"
