"""Examples to look at: pseudo triplets far from all thresholds, near one, or just refused by alpha.

They show what a threshold does, and so help to choose it. Distances are cosines, as the thresholds
are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain, zip_longest

import numpy as np
import pyarrow as pa

from raycd.config import MineConfig
from raycd.data.schema import PSEUDO_TRIPLET
from raycd.mine.filter import eligible, filter_candidates, resolve
from raycd.mine.search import DECIMALS

GROUPS = ("good", "borderline", "refused")
THRESHOLDS = ("alpha", "eps_low", "eps_high")

EXAMPLE = pa.schema(
    [
        *PSEUDO_TRIPLET,
        pa.field("group", pa.string(), nullable=False),  # one of GROUPS
        pa.field("near", pa.string(), nullable=False),  # the nearest threshold: one of THRESHOLDS
        # Distance of the score or the similarity from it, 6 decimals
        pa.field("distance", pa.float64(), nullable=False),
    ]
)


def choose_examples(
    candidates: pa.Table, triplets: pa.Table, mine: MineConfig, *, count: int, seed: int
) -> pa.Table:
    """Return table EXAMPLE: at most `count` rows of each group, by group.

    No group has a triplet or a pair of images twice.

    good        kept, drawn from the quarter that is farthest from its nearest threshold;
                farthest first
    borderline  kept, the nearest to each threshold in turn, from the nearer half;
                by threshold, nearest first
    refused     within eps_low, eps_high and s_max, but with a score of alpha or less; nearest first

    Args:
        candidates: Table CANDIDATES.
        triplets: Table TRIPLET that the candidates were made from.
        mine: The thresholds, and which candidates are eligible.
        seed: Draws the good ones, and decides between equal distances.
    """
    now = resolve(candidates, mine)
    eps_low, eps_high, alpha = now["eps_low"], now["eps_high"], now["alpha"]
    within, _ = filter_candidates(
        eligible(candidates, triplets, mine),
        eps_low=eps_low,
        eps_high=eps_high,
        s_max=now["s_max"],
        alpha=-math.inf,
    )
    similarity_C, score_C = within["similarity"].to_numpy(), within["score"].to_numpy()
    away_C3 = np.stack(
        [np.abs(score_C - alpha), similarity_C - eps_low, eps_high - similarity_C], 1
    )
    kept_C = score_C > alpha
    near_C = np.where(kept_C, away_C3.argmin(axis=1), 0)
    distance_C = np.round(away_C3[np.arange(len(within)), near_C], DECIMALS)

    drawn = np.random.default_rng([seed, 11]).permutation(len(within))
    by_distance = drawn[np.argsort(distance_C[drawn], kind="stable")]
    kept, refused = by_distance[kept_C[by_distance]], by_distance[~kept_C[by_distance]]
    far, middle = (np.quantile(distance_C[kept], q) if len(kept) else 0 for q in (0.75, 0.5))
    drawn_far = drawn[kept_C[drawn] & (distance_C[drawn] >= far)]
    half = kept[distance_C[kept] < middle]
    # In turn, or the threshold near which most of the rows are would take all examples
    turns = zip_longest(*(half[near_C[half] == index] for index in range(len(THRESHOLDS))))
    in_turn = (row for row in chain.from_iterable(turns) if row is not None)
    good, borderline, just = (_first(r, within, count) for r in (drawn_far, in_turn, refused))
    good.sort(key=lambda row: -distance_C[row])
    borderline.sort(key=lambda row: (near_C[row], distance_C[row]))

    rows = np.array([*good, *borderline, *just], np.int64)
    groups = np.repeat(GROUPS, [len(good), len(borderline), len(just)])
    return pa.Table.from_arrays(
        [
            *within.take(rows).columns,
            pa.array(groups.tolist(), pa.string()),
            pa.array([THRESHOLDS[near] for near in near_C[rows]], pa.string()),
            pa.array(distance_C[rows], pa.float64()),
        ],
        schema=EXAMPLE,
    )


def _first(rows: Iterable[int], within: pa.Table, count: int) -> list[int]:
    """Return the first `count` rows whose triplet and pair of images have not come before."""
    first: list[int] = []
    seen: set[object] = set()
    for row in rows:
        if len(first) == count:
            break
        [one] = within.slice(row, 1).to_pylist()
        names = {one["triplet_id"], frozenset([one["replaced"], one[one["side"]]])}
        if not names & seen:
            first.append(int(row))
            seen |= names
    return first
