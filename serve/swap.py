"""The change to another bundle: where it is, whether it may take the place of the one at work, and
why not.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raycd import bundle
from raycd.errors import GalleryError, RaycdError, WeightsError
from serve.args import REGISTRY
from serve.engine import Engine


class Wanted(BaseModel):
    """`user_config` of the deployment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str = Field(min_length=1)
    """A folder that every node sees, or `models:/<name>/<version>` or `models:/<name>@<alias>` of
    MLflow's registry.
    """
    again: int = 0
    """Another number has the service look again at the same place, where there may be another
    bundle by now.
    """


def folder(wanted: str) -> Path:
    """Where the bundle lies, fetched if it must be. Raises WeightsError and TrackingError."""
    if wanted.startswith(REGISTRY):
        from raycd.runtime import registry

        return registry.fetch(wanted)
    return Path(wanted)


def digest(place: Path) -> str:
    """The bundle's, once every file has its hash. Raises WeightsError."""
    return bundle.verify(place).digest


def check(old: Engine, new: Engine) -> None:
    """Raises GalleryError where the new one would lose images of the gallery."""
    lost = (new.follower.without if new.follower else 0) - (
        old.follower.without if old.follower else 0
    )
    if lost > 0:
        raise GalleryError(
            "the new bundle's encoder cannot encode the whole gallery",
            "mismatch",
            got=f"{lost} images without a feature of it whose pictures cannot be read",
            do="import them again with their pictures, or remove them",
        )


def reason(error: Exception) -> str:
    """Why a bundle was refused, in words that may be shown to anybody: no paths."""
    match error:
        case GalleryError(reason="mismatch"):
            return "its encoder has not encoded the whole gallery: run jobs/index.py --gallery with it first"
        case WeightsError():
            return "it is damaged, does not fit together or does not answer: the service's log says more"
        case RaycdError():
            return (
                "it cannot be fetched, or the gallery cannot be read: the service's log says more"
            )
        case ValidationError():
            return "user_config must be {bundle: a folder or models:/name@alias}"
        case _:
            return f"{type(error).__name__}: the service's log says more"
