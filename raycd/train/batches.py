"""Rows and batches of an epoch, decided by seed and epoch alone, for any number of workers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raycd.config import Stage2Config
from raycd.distributed import shares

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

    The shares of a batch of all workers together are the batch of a single worker; where they
    cannot be equal, the first have a row more (`distributed.shares`). `batch_sizes` says which
    batches there are.
    """
    order = np.random.default_rng([seed, epoch, 1]).permutation(count)
    sizes = batch_sizes(count, batch_size, world, drop_last=drop_last)
    batches = []
    for number, size in enumerate(sizes):
        own = shares(size, world)
        first = number * batch_size + sum(own[:rank])
        batches.append(order[first : first + own[rank]])
    return batches


def batch_sizes(
    count: int, batch_size: int, world: int = 1, *, drop_last: bool = False
) -> list[int]:
    """Return the rows of each batch of an epoch, those of all workers.

    The last, smaller batch is kept if it gives every worker a row, and, unless it is the only one,
    has two: one row has no negative. `drop_last` drops it, unless it is the only one.
    """
    whole, rest = divmod(count, batch_size)
    sizes = [batch_size] * whole
    if rest >= world and (not whole or (rest >= 2 and not drop_last)):
        sizes.append(rest)
    return sizes


def rows_seen(count: int, settings: Stage2Config) -> int:
    """Return how many of so many triplets an epoch of stage 2 sees, with one worker."""
    return sum(batch_sizes(count, settings.batch_size, drop_last=settings.drop_last))


def triplets_seen(settings: Stage2Config, epochs: int, original: int, pseudo: int) -> int:
    """Return how many triplets so many epochs of stage 2 see: k of originals before each pseudo.

    `original` and `pseudo` are the numbers of such triplets.
    """
    of_pseudo = epochs // (settings.k + 1) if pseudo else 0
    original, pseudo = (rows_seen(count, settings) for count in (original, pseudo))
    return (epochs - of_pseudo) * original + of_pseudo * pseudo


def epochs_to_see(settings: Stage2Config, triplets: int, original: int, pseudo: int) -> int:
    """Return the least number of epochs that see so many triplets."""
    epochs = 0
    while triplets_seen(settings, epochs, original, pseudo) < triplets:
        epochs += 1
    return epochs


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
    order_NT = np.argsort(right_NT < 0, axis=1, kind="stable")  # first those that there are
    draws_N = np.random.default_rng([seed, epoch, 3]).integers(0, np.maximum(counts_N, 1))
    rows_N = np.arange(len(target_N))
    drawn_N: Rows = np.where(counts_N > 0, right_NT[rows_N, order_NT[rows_N, draws_N]], target_N)
    return drawn_N
