"""Sample queries made of a gallery and example texts, on which the recall of an index is measured.

Shapes: Q queries, G gallery images, T texts, D feature size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from raycd.config import Config
from raycd.index.blocks import FeatureRows
from raycd.model.encoder import Encoder
from raycd.model.fusion import Head


@torch.inference_mode()
def queries(
    encoder: Encoder,
    head: Head,
    features_GD: FeatureRows,
    texts: Sequence[str],
    config: Config,
) -> dict[str, NDArray[np.float32]]:
    """Return at most `index.sample` queries (Q, D) of each sort: an image, a text, both.

    They are L2-normalised. `encoder` and `head` are in eval mode and on one device. For a head that
    needs more than pooled features, the sum of both stands in.
    """
    rng = np.random.default_rng([config.seed, 12])
    rows = rng.permutation(features_GD.shape[0])[: config.index.sample]
    image_QD = torch.from_numpy(features_GD[rows]).to(encoder.device)
    text_TD = encoder.encode_tokens(encoder.tokenize(texts[: config.index.sample]))
    text_QD = text_TD[rng.integers(len(text_TD), size=len(rows))]
    both_QD = image_QD + text_QD if head.needs else head(image_QD, text_QD)
    sorts = {"image": image_QD, "text": text_TD, "image and text": both_QD}
    return {
        sort: F.normalize(feature_QD.float(), dim=-1).cpu().numpy()
        for sort, feature_QD in sorts.items()
    }
