"""Rows and batches of an epoch, decided by seed and epoch alone, for any number of workers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def epoch_batches(
    count: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    drop_last: bool = False,
) -> list[Rows]:
    """Return this worker's share of each batch of one epoch.

    The shares of a batch of all workers together are the batch of a single worker. The last,
    smaller batch is kept if it gives every worker at least two rows; up to `world` - 1 of its rows
    are dropped so that shares are equal. `drop_last` drops it, unless it is the only one.
    """
    order = np.random.default_rng([seed, epoch, 1]).permutation(count)
    batches = []
    for first in range(0, count, batch_size):
        batch = order[first : first + batch_size]
        if drop_last and first > 0 and len(batch) < batch_size:
            break
        share = len(batch) // world
        if share >= 2 or (count < 2 * world and share >= 1):
            batches.append(batch[rank * share : (rank + 1) * share])
    return batches


def batch_count(count: int, batch_size: int, world: int = 1, *, drop_last: bool = False) -> int:
    """Return the number of batches that `epoch_batches` returns, without drawing them."""
    whole, rest = divmod(count, batch_size)
    if drop_last and whole:
        return whole
    return whole + (rest // world >= 2 or (count < 2 * world and rest // world >= 1))


def epoch_choice(count: int, options: int, *, seed: int, epoch: int) -> Rows:
    """Draw one of `options` for each of `count` rows: which text a triplet shows in this epoch."""
    return np.random.default_rng([seed, epoch, 2]).integers(0, options, count)


def epoch_targets(target_N: Rows, right_NT: Rows, *, seed: int, epoch: int) -> Rows:
    """Draw one of the right targets of each triplet: which one it shows in this epoch.

    CoVR's public code (Ventura et al., AAAI 2024) draws one of the triplets of a group likewise.
    Over the epochs the loss is then the mean over a triplet's targets, outside of the logarithm, as
    in supervised contrastive learning (Khosla et al., NeurIPS 2020, eq. 2).

    Args:
        target_N: Numbers of the first targets, which stay where `right_NT` has none.
        right_NT: Those of all targets of a triplet of several, see `data.targets.padded`.
    """
    counts_N = (right_NT >= 0).sum(1)
    places_NT = np.argsort(right_NT < 0, axis=1, kind="stable")  # first those that there are
    draws_N = np.random.default_rng([seed, epoch, 3]).integers(0, np.maximum(counts_N, 1))
    rows_N = np.arange(len(target_N))
    drawn_N: Rows = np.where(counts_N > 0, right_NT[rows_N, places_NT[rows_N, draws_N]], target_N)
    return drawn_N
