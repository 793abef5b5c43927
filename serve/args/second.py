"""The second model: what it is, and what its answers are for."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from raycd.config import Positive, Section
from raycd.config.fields import Fraction


class Second(Section):
    """A second model, beside the bundle's: in the shadow of its answers, or for some users."""

    bundle: str = ""
    """Folder, models:/... or s3://... as `bundle`; empty: there is no second model."""
    shadow: Fraction = 0.0
    """Share of the searches that it answers, too, once the answer has gone out: for metrics alone.
    """
    users: Fraction = 0.0
    """Share of the users whom it answers in place of the first, always the same ones."""
    waiting: Positive = 8
    """Searches of a replica that the shadow is at work on or keeps waiting; more are dropped, and
    counted.
    """

    @model_validator(mode="after")
    def _has_one_use(self) -> Self:
        if not self.bundle and (self.shadow or self.users):
            raise ValueError(
                "there is no second model: got a share without second.bundle, expected its bundle"
            )
        if self.bundle and not self.shadow and not self.users:
            raise ValueError(
                "the second model answers nobody: give second.shadow or second.users, 0 to 1"
            )
        if self.shadow and self.users:
            raise ValueError(
                "the second model has two uses: got second.shadow and second.users, expected one: "
                "the shadow has no part in any answer, users get its answers"
            )
        return self
