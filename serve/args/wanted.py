"""The bundles that a service shall serve, which change while it runs."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from serve.args.galleries import DEFAULT

if TYPE_CHECKING:
    from serve.args import ServeArgs


class Wanted(BaseModel):
    """The bundle that a service shall serve: `user_config` of the deployment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str = Field(min_length=1)
    """A folder that every node sees, or models:/<name>/<version> or models:/<name>@<alias> of
    MLflow's registry.
    """
    again: int = 0
    """Another number has the service look again at the same folder, or under the same alias."""
    galleries: dict[str, Annotated[str, Field(min_length=1)]] = Field(default={})
    """Bundles of further galleries, by their names; those that are absent are of their settings."""

    def of(self, args: ServeArgs, gallery: str) -> Wanted:
        """Return what is wanted of one of the galleries."""
        own = self.bundle
        if gallery != DEFAULT:
            own = self.galleries.get(gallery) or args.of(gallery).bundle
        return Wanted(bundle=own, again=self.again)

    def but(self, refused: Collection[str], back: Wanted, args: ServeArgs) -> Wanted:
        """Return what is wanted, but for galleries that go back."""
        names = {DEFAULT, *args.galleries}
        if names <= set(refused):
            return back
        bundles = {
            name: (back if name in refused else self).of(args, name).bundle for name in names
        }
        own = bundles.pop(DEFAULT)
        return Wanted(bundle=own, again=self.again, galleries=bundles)
