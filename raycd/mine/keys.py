"""Lists of neighbours as numbers: similarity and row packed into one int64, so that lists merge by
sorting.

Similarity means one thing here: the float64 dot product of the float32 normalised features, rounded
to 6 decimals. Keys sort by similarity descending, then by row: millionths below 1 in the high half,
the row in the low half. A list that is shorter than its place ends in NOTHING.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raycd.mine.pools import Rows

Keys = NDArray[np.int64]

DECIMALS = 6
UNIT = 10**DECIMALS
NOTHING = np.iinfo(np.int64).max


def encode(micro: NDArray[np.int64], row: Rows) -> Keys:
    """Keys of similarities in millionths and rows."""
    keys: Keys = (UNIT - micro) << 32 | row
    return keys


def decode(key: Keys) -> tuple[Rows, NDArray[np.float64]]:
    """Rows and similarities of keys other than NOTHING."""
    return (key & 0xFFFFFFFF).astype(np.int32), (UNIT - (key >> 32)) / UNIT


def merged(one_BK: Keys, other_BK: Keys) -> Keys:
    """The first K of two sorted lists (B, K) each; the order of merging does not matter."""
    both = np.concatenate([one_BK, other_BK], axis=1)
    both.sort(axis=1)
    return both[:, : one_BK.shape[1]]


def similarities(
    query_BD: NDArray[np.float32],
    unit_PD: NDArray[np.float32],
    place_BK: NDArray[np.int64],
    counts_B: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Similarities in millionths (B, K) of each query with the first `counts_B` of its places in
    `unit_PD`.

    The others are 0. Both matrices are normalised.
    """
    micro_BK = np.zeros(place_BK.shape, np.int64)
    narrow, wide = (
        np.empty((place_BK.shape[1], unit_PD.shape[1]), kind) for kind in (np.float32, np.float64)
    )
    for row, count in enumerate(
        counts_B
    ):  # one query at a time: its neighbours' features stay in a core's cache
        np.take(unit_PD, place_BK[row, :count], axis=0, out=narrow[:count], mode="clip")
        np.copyto(wide[:count], narrow[:count])
        micro_BK[row, :count] = np.rint(
            np.vecdot(wide[:count], query_BD[row].astype(np.float64)) * UNIT
        )
    return micro_BK
