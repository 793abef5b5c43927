"""The constraints of eq. 9 and alpha as filters on the candidates: no features, no encoder.

A million rows take well under a tenth of a second, so a sweep can try thresholds by the thousand.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycd.data.schema import PSEUDO_TRIPLET
from raycd.errors import ConfigError, DataError
from raycd.mine.candidates import SIDES
from raycd.mine.counts import Counts, Group, Left
from raycd.mine.neighbours import META

Mask = NDArray[np.bool_]


def filter_candidates(
    candidates: pa.Table, *, eps_low: float, eps_high: float, s_max: int, alpha: float
) -> tuple[pa.Table, Counts]:
    """Return pseudo triplets (schema PSEUDO_TRIPLET) and how many each constraint left.

    They keep the order of the candidates. The substitute set M_k of an image (eq. 9) is its first
    `s_max` neighbours with eps_low <= similarity <= eps_high, whichever triplets use it. A
    replacement by one of them is kept if its score is greater than `alpha`.

    Args:
        candidates: Table CANDIDATES of `make_candidates`, in any order of rows.
    Raises:
        ConfigError: eps_low is below the floor of the table, or above eps_high.
    """
    meta = meta_of(candidates)
    _check(eps_low, eps_high, s_max, meta)
    similarity, rank = candidates["similarity"].to_numpy(), candidates["rank"].to_numpy()
    score, useful = candidates["score"].to_numpy(), candidates["score"].is_valid().to_numpy()
    image, images = _images(candidates)

    # Neighbours are ranked by falling similarity, so those above eps_high come first: one more than
    # the greatest rank among them.
    too_near = np.zeros(images, np.int64)
    above = similarity > eps_high
    np.maximum.at(too_near, image[above], rank[above] + 1)
    nth = rank - too_near[image]  # among the substitutes within the thresholds, from 0
    similar = (similarity >= eps_low) & ~above
    substitute = similar & (nth < s_max)
    with np.errstate(invalid="ignore"):
        kept = substitute & useful & (score > alpha)

    last = candidates["truncated"].to_numpy() & (rank == meta["neighbours"] - 1)
    cut = last & (similarity >= eps_low) & (nth + 1 < s_max)
    within = score[substitute & useful]
    masks = {
        "candidates": useful,
        "after_similarity": similar & useful,
        "after_s_max": substitute & useful,
        "after_alpha": kept,
    }
    counts: Counts = {
        **_left({name: int(mask.sum()) for name, mask in masks.items()}),
        "groups": _groups(candidates, masks),
        "degenerate": int(len(useful) - useful.sum()) - meta.get("known_pairs", 0),
        "known_pairs": meta.get("known_pairs", 0),
        "images": meta["images"],
        "images_without_substitute": meta["images"] - _distinct(image[substitute], images),
        "images_cut_short": _distinct(image[cut], images),
        "best_score": float(within.max()) if len(within) else None,
        "settings": {
            "eps_low": eps_low,
            "eps_high": eps_high,
            "s_max": s_max,
            "alpha": alpha,
            "neighbours": meta["neighbours"],
            "floor": meta["floor"],
        },
    }
    return _pseudo(candidates, kept, meta["encoder"]), counts


def _check(eps_low: float, eps_high: float, s_max: int, meta: dict[str, Any]) -> None:
    if eps_low < meta["floor"]:
        raise ConfigError(
            "mine.eps_low is below the loosest similarity in the candidates",
            got=eps_low,
            expected=f"at least {meta['floor']} (mine.floor)",
            do="raise mine.eps_low, or lower mine.floor and mine again",
        )
    if eps_low > eps_high or s_max < 1:
        raise ConfigError(
            "no substitute can meet these settings",
            got=f"mine.eps_low {eps_low}, mine.eps_high {eps_high}, mine.s_max {s_max}",
            expected="eps_low at most eps_high, s_max at least 1",
        )


def meta_of(candidates: pa.Table) -> dict[str, Any]:
    """Return the candidates' metadata: encoder, neighbours (S), floor, images, known pairs."""
    try:
        meta: dict[str, Any] = json.loads(candidates.schema.metadata[META])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            "the table of candidates does not say how it was made",
            expected=f"metadata {META.decode()}, as raycd.mine.make_candidates writes it",
            do="mine again, and keep the schema's metadata where the table is copied",
        ) from None
    return meta


def _images(candidates: pa.Table) -> tuple[NDArray[np.int64], int]:
    """Return a number for the replaced image (and pool) of each row, and the count of numbers."""
    (pool, names), (replaced, ids) = _codes(candidates["pool"]), _codes(candidates["replaced"])
    return pool.astype(np.int64) * len(ids) + replaced, len(names) * len(ids)


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], pa.Array]:
    """Return codes and words of a column of names, however a file or a library encoded it."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    array = column.unify_dictionaries().combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    return array.indices.to_numpy(), array.dictionary


def _distinct(number: NDArray[np.int64], limit: int) -> int:
    seen = np.zeros(limit, np.bool_)
    seen[number] = True
    return int(seen.sum())


def _groups(candidates: pa.Table, masks: dict[str, Mask]) -> list[Group]:
    """Return the counts by category, then side."""
    (category, categories), (side, sides) = (
        _codes(candidates["category"]),
        _codes(candidates["side"]),
    )
    cell = category * len(sides) + side
    table = {
        name: np.bincount(cell[mask], minlength=len(categories) * len(sides))
        for name, mask in masks.items()
    }
    number_of = {word: code for code, word in enumerate(sides.to_pylist())}
    groups: list[Group] = []
    for code, name in sorted(enumerate(categories.to_pylist()), key=lambda item: str(item[1])):
        for word in SIDES:
            if word in number_of:
                at = code * len(sides) + number_of[word]
                left = _left({step: int(number[at]) for step, number in table.items()})
                groups.append({**left, "category": name, "side": word})
    return groups


def _left(number: dict[str, int]) -> Left:
    return {
        "candidates": number["candidates"],
        "after_similarity": number["after_similarity"],
        "after_s_max": number["after_s_max"],
        "after_alpha": number["after_alpha"],
    }


def _pseudo(candidates: pa.Table, kept: Mask, encoder: str) -> pa.Table:
    rows = candidates.filter(pa.array(kept))
    rows = rows.append_column("encoder", pa.repeat(pa.scalar(encoder, pa.string()), len(rows)))
    return rows.select(PSEUDO_TRIPLET.names).cast(PSEUDO_TRIPLET).replace_schema_metadata(None)
