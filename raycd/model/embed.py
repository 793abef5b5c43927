"""The frozen encoder over images and texts (eq. 8): batches of columns in, batches of columns out.

Each step is a class that is called with a batch, so it runs in a plain loop as well as in Ray Data.
Decoding belongs on CPUs, encoding on the accelerator; where both are the same, `EmbedImages` does
one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raycd.config import DataConfig, Precision
from raycd.data.images import BrokenImage, decode, load
from raycd.data.preprocess import Preprocess
from raycd.errors import WeightsError
from raycd.features import READABLE
from raycd.features.map_cache import moved
from raycd.model import precision
from raycd.model.casting import hold_in_bf16
from raycd.model.encoder import Encoder

Batch = dict[str, NDArray[Any]]


class DecodeImages:
    """Decoding: {key, path} or {key, data} -> {key, status, pixels (B, H, W, 3) uint8}.

    `data` are the bytes of picture files. The pixels of a broken image are black and its status
    says why.
    """

    def __init__(self, preprocess: Mapping[str, Any], data: DataConfig) -> None:
        self.preprocess, self.data = Preprocess.from_dict(preprocess), data

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        status: list[str] = []
        pixels = np.zeros((len(batch["key"]), *self.preprocess.size, 3), np.uint8)
        most, least = self.data.max_pixels, self.data.min_side
        read, given = (decode, batch["data"]) if "data" in batch else (load, batch["path"])
        for row, one in enumerate(given):
            try:
                image = read(one, max_pixels=most, min_side=least, enough=self.preprocess.enough)
                pixels[row] = self.preprocess(image).numpy()
                status.append(READABLE)
            except BrokenImage as error:
                status.append(error.reason)
        return {
            "key": np.asarray(batch["key"], object),
            "status": np.array(status, object),
            "pixels": pixels,
        }


class EncodeImages:
    """Encoding: {key, status, pixels} -> {key, status, feature (B, D) float32}.

    The feature is zero where the status is not READABLE.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        return self.begin(batch)()

    def begin(self, batch: Mapping[str, Any]) -> Callable[[], Batch]:
        """Begin to encode a batch, and return what waits for the features and returns them.

        What is not readable is encoded too, black: batches of one size run compiled.
        """
        readable = np.asarray(batch["status"]) == READABLE
        features = np.zeros((len(readable), self.encoder.dim), np.float32)
        encoded = _nothing
        if readable.any():
            # Copied, for what Ray gives may be read only
            pixels = moved(torch.from_numpy(np.array(batch["pixels"])), self.encoder.device)
            with torch.inference_mode():
                encoded = _copied(self.encoder.encode_images(pixels))

        def end() -> Batch:
            if readable.any():
                features[readable] = encoded()[readable]
            _check_finite(features, "image", batch["key"])
            return {"key": batch["key"], "status": batch["status"], "feature": features}

        return end


class EmbedImages:
    """Decoding and encoding in one step: {key, path or data} -> {key, status, feature}."""

    def __init__(self, encoder: Encoder, data: DataConfig) -> None:
        self.decode = DecodeImages(encoder.preprocess.to_dict(), data)
        self.encode = EncodeImages(encoder)

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        return self.encode(self.decode(batch))


class ComposeQueries:
    """Decoding and composing: {key, path, text} -> {key, status, feature (B, D) float32}."""

    def __init__(self, encoder: Encoder, data: DataConfig) -> None:
        self.encoder, self.decode = encoder, DecodeImages(encoder.preprocess.to_dict(), data)

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        decoded = self.decode(batch)
        readable = decoded["status"] == READABLE
        features = np.zeros((len(readable), self.encoder.dim), np.float32)
        if readable.any():
            pixels = torch.from_numpy(decoded["pixels"][readable])
            texts = [str(text) for text in np.asarray(batch["text"], object)[readable]]
            with torch.inference_mode():
                composed = self.encoder.compose(pixels, self.encoder.tokenize(texts))
            features[readable] = composed.cpu().numpy()
        _check_finite(features, "query", batch["key"])
        return {"key": decoded["key"], "status": decoded["status"], "feature": features}


class EmbedTexts:
    """Encoding of texts: {key: texts} -> {key, status, feature (B, D) float32}."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __call__(self, batch: Mapping[str, Any]) -> Batch:
        return self.begin(batch)()

    def begin(self, batch: Mapping[str, Any]) -> Callable[[], Batch]:
        """Begin to encode a batch, and return what waits for the features and returns them."""
        texts = [str(text) for text in batch["key"]]
        with torch.inference_mode():
            encoded = _copied(self.encoder.encode_tokens(self.encoder.tokenize(texts)))

        def end() -> Batch:
            features = encoded()
            _check_finite(features, "text", texts)
            return {
                "key": np.array(texts, object),
                "status": np.array([READABLE] * len(texts), object),
                "feature": features,
            }

        return end


def overlapped(
    step: Callable[[Mapping[str, Any]], Batch], batches: Iterable[Mapping[str, Any]]
) -> Iterator[Batch]:
    """Yield what a step makes of batches, each begun before the one before is waited for.

    So a GPU has work while features are copied back and the next batch is read.
    """
    if not isinstance(step, EncodeImages | EmbedTexts):
        yield from map(step, batches)
        return
    before: Callable[[], Batch] | None = None
    for batch in batches:
        after = step.begin(batch)
        if before is not None:
            yield before()
        before = after
    if before is not None:
        yield before()


def _copied(features_BD: torch.Tensor) -> Callable[[], NDArray[np.float32]]:
    """Begin to copy features from their device, and return what waits for them."""
    if features_BD.device.type != "cuda":
        return features_BD.numpy
    copy = features_BD.to("cpu", non_blocking=True)  # pinned, by torch
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
    done.record()

    def wait() -> NDArray[np.float32]:
        done.synchronize()
        found: NDArray[np.float32] = copy.numpy()
        return found

    return wait


def _nothing() -> NDArray[np.float32]:
    return np.zeros((0, 0), np.float32)


def _check_finite(
    features_BD: NDArray[np.float32], kind: str, keys: Sequence[str] | NDArray[Any]
) -> None:
    plural = "queries" if kind == "query" else f"{kind}s"
    broken = np.flatnonzero(~np.isfinite(features_BD).all(axis=1))
    if len(broken):
        raise WeightsError(
            f"the encoder gives features that are not finite, for {len(broken)} of {len(keys)} "
            f"{plural} of a batch",
            got=f"{kind} {str(keys[broken[0]])[:200]!r}",
            expected="finite numbers",
            do="take another encoder, or embed.precision fp32; "
            "where stage 1 trained it, lower stage1.lr",
        )


def frozen(encoder: Encoder, wanted: Precision, device: str) -> Encoder:
    """Return the encoder on `device`, ready to encode and nothing else."""
    encoder.precision = precision.use(wanted, torch.device(device))
    encoder.to(device)
    encoder.trainable("none")
    if encoder.precision == "bf16":
        hold_in_bf16(encoder)
    return encoder
