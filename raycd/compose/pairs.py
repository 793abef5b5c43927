"""Pairs of images that look alike and differ in little, drawn so that rare values are not lost.

Neighbours are gone through twice in blocks, for the counts and for the draw: beside their table,
which has 12 bytes a neighbour, codes, drawn pairs and one block are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycd.compose.coded import UNKNOWN, Coded
from raycd.config import ComposeConfig

BLOCK = 4096  # images whose neighbours are looked at together
_BINS = 20_000  # of the cosines' histogram, from -1 to 1
_EQUAL = 1 - 5e-7  # similarities are rounded to 6 decimals: the same picture twice

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_NONE: Ints = np.empty(0, np.int64)


@dataclass(frozen=True)
class Pairs:
    """C pairs in both directions, each once, by pool, reference and target."""

    pool: list[str]
    reference_C: Ints
    target_C: Ints
    similarity_C: Floats
    weight_C: Floats
    """What the pair weighed in the draw, of at most 1."""


class _Block(NamedTuple):
    """The P pairs of some images with their neighbours."""

    pool: NDArray[np.object_]
    image_P: Ints
    other_P: Ints
    similarity_P: Floats

    def take(self, rows: NDArray[np.bool_] | Ints) -> _Block:
        """Return some of the pairs."""
        return _Block(
            self.pool[rows], self.image_P[rows], self.other_P[rows], self.similarity_P[rows]
        )


def draw(
    coded: Coded,
    neighbours: pa.Table,
    settings: ComposeConfig,
    seed: int,
    asked_K: Ints = _NONE,
) -> tuple[Pairs, dict[str, Any]]:
    """Return the pairs that triplets are made of, and counts.

    A pair differs in at most `compose.differences` attributes and shares, its category counted, as
    many or more; where a value is unknown the attribute counts as neither. Of each image's pairs
    `compose.per_image` are drawn without replacement, by their weights (Efraimidis and Spirakis,
    2006).

    Args:
        neighbours: Table raycd.mine.NEIGHBOURS, whose rows are those of `coded`.
        seed: The run's.
        asked_K: Pairs that are evaluated on, reference << 32 | target by row: they are left out, in
            both directions.
    """
    limit = _limit(neighbours, settings.copies)
    starts = np.concatenate([[0], np.cumsum([len(own) for own in coded.words])]).astype(np.int64)
    changed_V = np.zeros(starts[-1], np.int64)  # pairs that change each value
    looked_at = fitting = copies = asked = 0
    for block in _blocks(neighbours):
        differs_PA, asked_P, copy_P, fits_P = _compared(coded, block, settings, limit, asked_K)
        looked_at, asked = looked_at + len(fits_P), asked + int(asked_P.sum())
        copies, fitting = copies + int(copy_P.sum()), fitting + int(fits_P.sum())
        for side_P in (block.image_P, block.other_P):
            values_PA = coded.code_NA[side_P[fits_P]] + starts[:-1]
            changed_V += np.bincount(values_PA[differs_PA[fits_P]], minlength=len(changed_V))
    drawn: list[tuple[_Block, Floats]] = []
    for number, block in enumerate(_blocks(neighbours)):
        differs_PA, _, _, fits_P = _compared(coded, block, settings, limit, asked_K)
        own = block.take(fits_P)
        weight_P = _weights(coded, own, differs_PA[fits_P], starts, changed_V, settings.rarity)
        rng = np.random.default_rng([seed, 21, number])
        rows = _first(own, -np.log1p(-rng.random(len(weight_P))) / weight_P, settings.per_image)
        drawn.append((own.take(rows), weight_P[rows]))
    pairs = _both_ways(drawn, len(coded.code_NA))
    images = len(neighbours["image"].unique())  # one of two categories has two rows
    counts = {
        "images": images,
        "pairs": looked_at,
        "asked_in_val": asked,
        "copies": copies,
        "differing_in_little": fitting,
        "triplets": len(pairs.reference_C),
        "images_without": images - len(np.unique(pairs.reference_C)),
        "attributes": len(coded.names),
    }
    return pairs, counts


def _blocks(neighbours: pa.Table) -> Iterator[_Block]:
    for start in range(0, len(neighbours), BLOCK):
        part = neighbours.slice(start, BLOCK).combine_chunks()
        of = pc.list_parent_indices(part["neighbours"]).to_numpy()
        pool = np.asarray(part["pool"].to_pylist(), dtype=object)
        yield _Block(
            pool[of],
            part["image"].to_numpy().astype(np.int64)[of],
            pc.list_flatten(part["neighbours"]).to_numpy().astype(np.int64),
            pc.list_flatten(part["similarities"]).to_numpy(),
        )


def _limit(neighbours: pa.Table, copies: float) -> float:
    """Return the cosine above which lies the share `copies` of all pairs, to four decimals.

    Equal pictures are above it however many they are.
    """
    counts = np.zeros(_BINS, np.int64)
    for block in _blocks(neighbours):
        counts += np.histogram(block.similarity_P, _BINS, (-1.0, 1.0))[0]
    if not copies or not counts.sum():
        return np.inf
    kept = np.searchsorted(np.cumsum(counts), (1 - copies) * counts.sum())
    return min(float(2 * (kept + 1) / _BINS - 1), _EQUAL)


def _compared(
    coded: Coded, block: _Block, settings: ComposeConfig, limit: float, asked_K: Ints
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return in which attributes the pairs differ (P, A), and of those that differ in little which
    are asked, which of the others are copies, and which are left (P,).
    """
    one_PA, other_PA = (coded.code_NA[side] for side in (block.image_P, block.other_P))
    known_PA = (one_PA != UNKNOWN) & (other_PA != UNKNOWN)
    differs_PA = known_PA & (one_PA != other_PA)
    count_P, shared_P = differs_PA.sum(1), (known_PA & ~differs_PA).sum(1)
    little_P = (count_P >= 1) & (count_P <= settings.differences) & (shared_P + 1 >= count_P)
    asked_P = little_P & _among(block, asked_K)
    copy_P = little_P & ~asked_P & (block.similarity_P > limit)
    return differs_PA, asked_P, copy_P, little_P & ~(asked_P | copy_P)


def _among(block: _Block, asked_K: Ints) -> NDArray[np.bool_]:
    """Return which pairs (P,) are asked, in either direction."""
    one_P, other_P = block.image_P, block.other_P
    return np.isin(one_P << 32 | other_P, asked_K) | np.isin(other_P << 32 | one_P, asked_K)


def _weights(
    coded: Coded,
    block: _Block,
    differs_PA: NDArray[np.bool_],
    starts: Ints,
    changed_V: Ints,
    rarity: float,
) -> Floats:
    """Return by how much pairs (P,) are preferred: by the rarest value that they change."""
    rarest_P = np.full(len(differs_PA), np.iinfo(np.int64).max)
    for side_P in (block.image_P, block.other_P):
        values_PA = np.where(differs_PA, coded.code_NA[side_P] + starts[:-1], 0)
        counts_PA = np.where(differs_PA, changed_V[values_PA], np.iinfo(np.int64).max)
        rarest_P = np.minimum(rarest_P, counts_PA.min(1, initial=np.iinfo(np.int64).max))
    weight_P: Floats = np.maximum(rarest_P, 1).astype(np.float64) ** -rarity
    return weight_P


def _first(block: _Block, key_P: Floats, count: int) -> Ints:
    """Return the rows of each image's `count` least keys."""
    _, pool_P = np.unique(block.pool.astype(str), return_inverse=True)
    order = np.lexsort((key_P, block.image_P, pool_P))
    both = np.stack([pool_P[order], block.image_P[order]])
    begins = np.flatnonzero(np.r_[True, (both[:, 1:] != both[:, :-1]).any(0)][: len(order)])
    nth = np.arange(len(order)) - np.repeat(begins, np.diff(np.r_[begins, len(order)]))
    return order[nth < count]


def _both_ways(drawn: Sequence[tuple[_Block, Floats]], images: int) -> Pairs:
    """Return the drawn pairs in both directions, each once."""
    if not drawn:
        return Pairs([], _NONE, _NONE, _NONE.astype(np.float64), _NONE.astype(np.float64))
    names, pool_C = np.unique(
        np.concatenate([block.pool for block, _ in drawn]).astype(str), return_inverse=True
    )
    one_C = np.concatenate([block.image_P for block, _ in drawn])
    other_C = np.concatenate([block.other_P for block, _ in drawn])
    reference_C, target_C = np.r_[one_C, other_C], np.r_[other_C, one_C]
    key_C = (np.r_[pool_C, pool_C] * images + reference_C) * images + target_C
    _, rows = np.unique(key_C, return_index=True)
    half = rows % max(len(one_C), 1)
    return Pairs(
        names[pool_C[half]].tolist(),
        reference_C[rows],
        target_C[rows],
        np.concatenate([block.similarity_P for block, _ in drawn])[half],
        np.concatenate([weight_P for _, weight_P in drawn])[half],
    )
