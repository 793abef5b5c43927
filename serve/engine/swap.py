"""The change to another bundle: which is wanted, and whether it may replace the one at work."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from raycd import bundle
from raycd.bundle import cache
from raycd.errors import GalleryError, RaycdError, WeightsError, called
from serve.args import REGISTRY, is_fetched


def folder(wanted: str) -> Path:
    """Return the folder of a bundle, fetched where it is one of the registry or on a store.

    Raises:
        WeightsError: The bundle is damaged, or the store has none there.
        TrackingError: The registry does not answer, or has no such bundle.
        DataError: The store refuses or does not answer.
    """
    if wanted.startswith(REGISTRY):
        from raycd.runtime.record import registry

        return registry.fetch(wanted)
    if is_fetched(wanted):
        return cache.fetch(wanted)
    return Path(wanted)


def digest(folder: Path) -> str:
    """Return the digest of a bundle whose files all have their hash. Raises WeightsError."""
    return bundle.verify(folder).digest


def check(before: int, now: int) -> None:
    """Raise GalleryError where another engine would lose images of the gallery.

    Of the one at work and of the other, these are the images that they cannot find.
    """
    if now > before:
        raise GalleryError(
            "the new bundle's encoder cannot encode the whole gallery",
            "mismatch",
            got=f"{now - before} images without a feature of it whose pictures cannot be read",
            do="import them again with their pictures, or remove them",
        )


def reason(error: Exception) -> str:
    """Return why a bundle was refused, in words that may be shown to anybody: no paths."""
    match error:
        case GalleryError(reason="mismatch"):
            return (
                "its encoder has not encoded the whole gallery: "
                f"run {called('jobs/index.py')} --gallery with it first"
            )
        case WeightsError():
            return (
                "it is damaged, does not fit together or does not answer: "
                "the service's log says more"
            )
        case RaycdError():
            return (
                "it cannot be fetched, or the gallery cannot be read: the service's log says more"
            )
        case ValidationError():
            return "user_config must be {bundle: a folder or models:/name@alias}"
        case _:
            return f"{type(error).__name__}: the service's log says more"
