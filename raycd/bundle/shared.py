"""Encoders that several loaded bundles share: the weights of one are in memory once."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakValueDictionary

from raycd.bundle.manifest import Manifest
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.model.fusion import joint


class SharedEncoders:
    """The encoders in use in a process, by the hashes of the files that they were made of.

    Threads may encode by a shared one at the same time. So an encoder is its bundle's alone where
    more is read of it than features: heads that need more put hooks into it meanwhile.
    """

    def __init__(self) -> None:
        self._used: WeakValueDictionary[frozenset[tuple[str, str]], Encoder] = WeakValueDictionary()

    def load(self, manifest: Manifest, make: Callable[[], Encoder]) -> Encoder:
        """Return the encoder of a bundle: the one in use, or what `make` returns."""
        name = str(manifest.head["name"])
        if name == joint.NAME or fusion.head_class(name).needs:
            return make()
        files = frozenset(
            (file, sha256) for file, sha256 in manifest.files.items() if file.startswith("encoder/")
        )
        found = self._used.get(files)
        if found is None:
            found = self._used[files] = make()
        return found
