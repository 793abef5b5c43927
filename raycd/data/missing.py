"""The record of missing and broken images: how many, which, why, and whether that is too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from raycd.errors import DataError


class ImageReport:
    """Image ids with the reason why each cannot be read (`images.BrokenImage.reason`).

    Args:
        reasons: Image id -> reason.
        more: Reason -> number of further images, which are listed elsewhere.
    """

    def __init__(
        self, reasons: Mapping[str, str] | None = None, more: Mapping[str, int] | None = None
    ) -> None:
        self.reasons: dict[str, str] = dict(reasons or {})
        self.more = Counter(more or {})

    def __len__(self) -> int:
        return len(self.reasons) + self.more.total()

    def add(self, image_id: str, reason: str) -> None:
        """Record one image; recording it again changes nothing."""
        self.reasons.setdefault(image_id, reason)

    def counts(self) -> dict[str, int]:
        """Return the number of images for each reason, the most frequent reason first."""
        found = Counter(self.reasons.values()) + self.more
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def check(self, total: int, max_missing: float, *, listed: str = "") -> None:
        """Raise DataError where more than the share `max_missing` of `total` images cannot be read.

        `listed` names the file that has the whole list.
        """
        if len(self) <= max_missing * total:
            return
        share = len(self) / total if total else 1.0
        first = ", ".join(
            f"{image_id} ({reason})" for image_id, reason in list(self.reasons.items())[:3]
        )
        by_reason = ", ".join(f"{count} {reason}" for reason, count in self.counts().items())
        file = f"; the list is in {listed}" if listed else ""
        raise DataError(
            f"{len(self)} of {total} images ({share:.1%}) are missing or broken: {by_reason}",
            got=f"{first}{', ...' if len(self) > 3 else ''}{file}",
            expected=f"at most {max_missing:.1%} (data.max_missing)",
            do="put the files under data.root, or raise data.max_missing to go on without them",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return {"missing": total, "by_reason": {reason: count}, "images": {image_id: reason}}.

        "images" lacks those that are listed elsewhere.
        """
        return {
            "missing": len(self),
            "by_reason": self.counts(),
            "images": dict(sorted(self.reasons.items())),
        }
