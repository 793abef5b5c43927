"""Names of which each may be given once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def twice(names: Iterable[str]) -> str | None:
    """Return the first name that is there more than once; None where each is there once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)
