"""Features of queries as plain arrays, against which the searcher is checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raycd import bundle
from raycd.search.searcher import Searcher

Vector = NDArray[np.float32]


@torch.inference_mode()
def image_feature(searcher: Searcher, image: Any) -> torch.Tensor:
    encoder = searcher.bundle.encoder
    return encoder.encode_images(encoder.preprocess(image)[None])[0]


@torch.inference_mode()
def text_feature(searcher: Searcher, text: str) -> torch.Tensor:
    encoder = searcher.bundle.encoder
    return encoder.encode_tokens(encoder.tokenize([text]))[0]


@torch.inference_mode()
def fused(searcher: Searcher, image_D: torch.Tensor, text_D: torch.Tensor) -> Vector:
    query: Vector = searcher.bundle.head(image_D[None], text_D[None])[0].numpy()
    return query


def unit(vector: Any) -> Vector:
    array = np.asarray(vector, np.float32)
    normalised: Vector = array / np.linalg.norm(array)
    return normalised


def gallery_features(searcher: Searcher) -> Vector:
    features = bundle.gallery_features(bundle.read_gallery(searcher.bundle.folder))
    units: Vector = features / np.linalg.norm(features, axis=1, keepdims=True)
    return units
