"""Features that take several shards, and the settings that mine them so."""

import numpy as np
from numpy.typing import NDArray

from raycd.config import MineConfig


def clustered() -> NDArray[np.float32]:
    """Return features (1000, 600) in clusters, with duplicates: several shards of 1 MiB."""
    rng = np.random.default_rng(2)
    centres = np.zeros((40, 600))
    centres[:, :12] = rng.normal(size=(40, 12))
    features_ND = centres[rng.integers(0, 40, 1000)]
    features_ND[:, :3] += 0.2 * rng.integers(0, 3, (1000, 3))
    return features_ND.astype(np.float32)


def small_shards(**fields: object) -> MineConfig:
    return MineConfig.model_validate(
        {"neighbours": 8, "floor": 0.5, "eps_low": 0.5, "worker_mib": 1, **fields}
    )
