"""The record of images that are missing or broken: how many, which, why, and whether that is too
many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from raycd.errors import DataError


class ImageReport:
    """Image id -> reason, as `images.BrokenImage.reason` gives it."""

    def __init__(self, reasons: Mapping[str, str] | None = None) -> None:
        self.reasons: dict[str, str] = dict(reasons or {})

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, image_id: str, reason: str) -> None:
        """Note one image; noting it again changes nothing."""
        self.reasons.setdefault(image_id, reason)

    def counts(self) -> dict[str, int]:
        """Images per reason, the most frequent reason first."""
        return dict(
            sorted(Counter(self.reasons.values()).items(), key=lambda item: (-item[1], item[0]))
        )

    def check(self, total: int, max_missing: float, *, listed: str = "") -> None:
        """Raise `DataError` where more than the share `max_missing` of `total` images is missing or
        broken.

        `listed` says where the whole list can be read.
        """
        if len(self) <= max_missing * total:
            return
        share = len(self) / total if total else 1.0
        first = ", ".join(
            f"{image_id} ({reason})" for image_id, reason in list(self.reasons.items())[:3]
        )
        by_reason = ", ".join(f"{count} {reason}" for reason, count in self.counts().items())
        place = f"; the list is in {listed}" if listed else ""
        raise DataError(
            f"{len(self)} of {total} images ({share:.1%}) are missing or broken: {by_reason}",
            got=f"{first}{', ...' if len(self) > 3 else ''}{place}",
            expected=f"at most {max_missing:.1%} (data.max_missing)",
            do="put the files where data.root says, or raise data.max_missing to go on without them",
        )

    def to_dict(self) -> dict[str, Any]:
        """{"missing": total, "by_reason": {reason: count}, "images": {image_id: reason}} for a
        stage's report.
        """
        return {
            "missing": len(self),
            "by_reason": self.counts(),
            "images": dict(sorted(self.reasons.items())),
        }
