"""What a bundle's head needs of a query beside pooled features; of most heads nothing.

A given image's maps come from the encoder, a named one's from the bundle. An image that was added
or replaced while the service runs has none there.

Shapes: B images, N texts, S image side, L context length, D feature size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from raycd.bundle import Bundle
from raycd.errors import DataError
from raycd.features.map_cache import TOKEN_MASK
from raycd.gallery.state import Image
from raycd.gallery.view import View
from raycd.model import maps
from raycd.model.embed_maps import cut
from raycd.model.encoder import Encoder
from raycd.model.fusion.head import WORDS
from raycd.model.graphs import RecordedEncoder
from raycd.model.maps import Extra


class HeadNeeds:
    """The needs of a bundle's head. One thread at a time may encode.

    Args:
        bundle: It.
        own: The bundle's own gallery.
        features: What gives pooled features alone: the bundle's encoder, or graphs of it.
    """

    def __init__(self, bundle: Bundle, own: View, features: Encoder | RecordedEncoder) -> None:
        self.names, self._features = bundle.head.needs, features
        self._encoder, self._head, self._shapes = (
            bundle.encoder,
            bundle.head_config.name,
            bundle.head_config.extra,
        )
        self._extras = bundle.extras
        self._wanted = [need for need in maps.IMAGE_NEEDS if need in self.names]
        self._own = own if self._wanted else None  # it is large

    def encode_images(self, pixels_BSS3: torch.Tensor) -> tuple[torch.Tensor, list[Extra]]:
        """Return un-normalised features (B, D), and each image's maps as the head was trained."""
        if not self._wanted:
            image_BD = self._features.encode_images(pixels_BSS3).cpu()
            return image_BD, [{}] * len(image_BD)
        image_BD, found = maps.encode_images(self._encoder, pixels_BSS3, self.names)
        found = {
            need: _kept(maps.pooled(value, max(self._shapes[need][1:])))
            for need, value in found.items()
        }
        rows = range(len(image_BD))
        return image_BD.cpu(), [{need: found[need][row] for need in found} for row in rows]

    def encode_tokens(self, tokens_NL: torch.Tensor) -> tuple[torch.Tensor, list[Extra]]:
        """Return un-normalised features (N, D), and each text's tokens or their states."""
        if WORDS in self.names:
            rows = [{WORDS: tokens} for tokens in tokens_NL]
            return self._encoder.encode_tokens(tokens_NL).cpu(), rows
        if maps.TOKENS not in self.names:
            return self._features.encode_tokens(tokens_NL).cpu(), [{}] * len(tokens_NL)
        text_ND, found = maps.encode_tokens(self._encoder, tokens_NL)
        states, counts = _kept(found[maps.TOKENS]), found[TOKEN_MASK].sum(1).tolist()
        rows = [{maps.TOKENS: state[:count]} for state, count in zip(states, counts, strict=True)]
        return text_ND.cpu(), rows

    def check(self, image: Image) -> None:
        """Raise DataError unless the bundle has what the head needs of this gallery image."""
        if self._own is None:
            return
        image_id = image.image_id
        own = self._own.position(image_id)
        known = all(
            need in self._extras.caches and image_id in self._extras.caches[need]
            for need in self._wanted
        )
        # An image of the same id that was replaced has other features, and would have other maps
        if known and own is not None and _same(image, self._own, own):
            return
        raise DataError(
            f"the head {self._head} needs more of a reference image than its feature, and the "
            "bundle does not have that of this one",
            got=f"image_id {image_id!r}",
            expected="an image that the bundle was written with, and that was not replaced since",
            do="send the image itself",
        )

    def of_image(self, image_id: str) -> Extra:
        """Return the maps of a gallery image that `check` has accepted."""
        return {need: value[0] for need, value in self._extras.of_images([image_id]).items()}

    def batch(self, rows: Sequence[Extra]) -> Extra:
        """Return the head's keyword arguments for several queries, on the encoder's device."""
        found: Extra = {}
        for need in rows[0] if rows else ():
            values = [row[need] for row in rows]
            if need == maps.TOKENS:
                counts = torch.tensor([len(value) for value in values])
                mask = torch.arange(int(counts.max())) < counts[:, None]
                found[TOKEN_MASK] = mask.to(self._encoder.device)
            stacked = pad_sequence(values, batch_first=True)
            found[need] = stacked.to(self._encoder.device)
        return found


def _same(image: Image, own: View, position: int) -> bool:
    own_D = own.features(np.array([position]))[0]
    return image.feature_D is not None and np.allclose(image.feature_D, own_D, rtol=1e-3, atol=1e-4)


def _kept(value: torch.Tensor) -> torch.Tensor:
    """Return what a cache would keep of it: numbers of float16, cut at its limits."""
    return cut(value).float().cpu()
