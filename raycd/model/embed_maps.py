"""The frozen encoder over images and texts, for maps and token states: batches in, batches out.

As `raycd.model.embed`, but a value is float16 bytes of one row's map (C, H, W) or of one text's
real tokens (l, E), and None where the status is not READABLE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raycd.errors import WeightsError
from raycd.features import READABLE
from raycd.features.map_cache import TOKEN_MASK
from raycd.model import maps
from raycd.model.embed import Batch
from raycd.model.encoder import Encoder

HALF_MAX = torch.finfo(torch.float16).max


class EncodeMaps:
    """Encoding: {key, status, pixels} -> {key, status, value}.

    Args:
        need: `map` or `middle`.
        size: The side that maps are pooled to; 0 leaves them.
    """

    def __init__(self, encoder: Encoder, need: str, size: int) -> None:
        self.encoder, self.need, self.size = encoder, need, size

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        readable = np.asarray(batch["status"]) == READABLE
        values = np.full(len(readable), None, object)
        if readable.any():
            pixels = torch.from_numpy(np.ascontiguousarray(np.asarray(batch["pixels"])[readable]))
            with torch.inference_mode():
                _, found = maps.encode_images(self.encoder, pixels, [self.need], self.size)
            rows = zip(np.flatnonzero(readable), half(found[self.need], self.need), strict=True)
            for row, value in rows:
                values[row] = value.tobytes()
        return {"key": batch["key"], "status": batch["status"], "value": values}


class EmbedTokens:
    """Encoding of texts: {key: texts} -> {key, status, value}, the states of real tokens alone."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        texts = [str(text) for text in batch["key"]]
        with torch.inference_mode():
            _, found = maps.encode_tokens(self.encoder, self.encoder.tokenize(texts))
        counts: Sequence[int] = found[TOKEN_MASK].sum(1).tolist()
        states = half(found[maps.TOKENS], maps.TOKENS)
        values = np.full(len(texts), None, object)
        for row, (state, count) in enumerate(zip(states, counts, strict=True)):
            values[row] = state[:count].tobytes()
        return {
            "key": np.array(texts, object),
            "status": np.array([READABLE] * len(texts), object),
            "value": values,
        }


def half(values: torch.Tensor, what: str) -> NDArray[np.float16]:
    """Return values in float16, cut at its limits. Raises WeightsError where one is not finite."""
    if not torch.isfinite(values).all():
        raise WeightsError(
            f"the encoder gives a {what} that is not finite",
            expected="finite numbers",
            do="take another encoder, or embed.precision fp32; "
            "where stage 1 trained it, lower stage1.lr",
        )
    found: NDArray[np.float16] = cut(values).cpu().numpy()
    return found


def cut(values: torch.Tensor) -> torch.Tensor:
    """Return values in float16, cut at its limits."""
    return values.clamp(-HALF_MAX, HALF_MAX).half()
