"""The galleries of a replica's process: a `Replica` for each, of queues and threads of its own.

So one gallery that is slow, full or without its database does not keep the others waiting; what
they share is the process, with its cores and memory, and encoders of the same files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from raycd.api import BundleInfo
from raycd.bundle import SharedEncoders
from serve.args import DEFAULT, ServeArgs, Wanted
from serve.replica import Observer, Replica
from serve.second.shadow import Shadow


class Galleries:
    """The replicas by their galleries' names, the default's first.

    Args:
        args: The settings.
        name: What the replicas of this service have in common, and no other service has.
        observer: Returns what records the work of a gallery.
        shadow: What has a second model answer, unseen, in the default gallery.

    Raises:
        GalleryError: The database of one cannot be opened.
    """

    def __init__(
        self,
        args: ServeArgs,
        *,
        name: str,
        observer: Callable[[str], Observer],
        shadow: Shadow | None = None,
    ) -> None:
        self.args, encoders = args, SharedEncoders()
        self._replicas = {
            gallery: Replica(
                args.of(gallery),
                name=name if gallery == DEFAULT else f"{name}, gallery {gallery}",
                observer=observer(gallery),
                shadow=shadow if gallery == DEFAULT else None,
                gallery=gallery,
                encoders=encoders,
            )
            for gallery in (DEFAULT, *args.galleries)
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all galleries."""
        return tuple(self._replicas)

    def __getitem__(self, gallery: str) -> Replica:
        return self._replicas[gallery]

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())

    async def change_bundles(self, wanted: dict[str, Any]) -> None:
        """Have each load or change to the bundle that is wanted of it, or refuse that alone.

        Raises:
            RaycdError: One has none to go on with.
        """
        try:
            asked = Wanted.model_validate(wanted)
        except ValidationError:  # each says so
            for replica in self:
                await replica.change_bundle(wanted)
            return
        for replica in self:  # one by one: beside those at work memory holds one more
            one = asked.of(self.args, replica.gallery)
            await replica.change_bundle(one.model_dump())

    async def check_canaries(self) -> None:
        """Raise where one of them cannot search."""
        await asyncio.gather(*(replica.check_canary() for replica in self))

    def bundle_infos(self) -> dict[str, BundleInfo]:
        """Return by gallery which bundle is served, and why another was refused."""
        return {replica.gallery: replica.bundle_info() for replica in self}

    def close(self) -> None:
        """Write the feedback that waits."""
        for replica in self:
            replica.close()
