"""The funnel: filters on the candidates, with no features and no encoder, and what each leaves.

Some candidates may not become pseudo triplets at all (`eligible`: ours, not the paper's, off by
default): a text describes what the target has and the reference lacks, so it seldom fits another
target, while most other references leave it true; and pseudo triplets add most where the data set
says something seldom. The rest meets the thresholds (`filter_candidates`: eq. 9 and alpha), as
configured, or as quantiles of a data set's own similarities (`resolve`): a cosine means something
else with every encoder, "the nearer half of the neighbours" does not.

A million rows take well under a tenth of a second, so a sweep can try thresholds by the thousand.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Container
from typing import Any, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycd.config import MineConfig
from raycd.data import targets
from raycd.data.schema import PSEUDO_TRIPLET
from raycd.errors import ConfigError, DataError
from raycd.mine.neighbours import META
from raycd.mine.pools import SIDES
from raycd.mine.search import DECIMALS


class Thresholds(TypedDict):
    """What `filter_candidates` filters by; all but s_max are cosines."""

    eps_low: float
    eps_high: float
    s_max: int
    alpha: float


class Left(TypedDict):
    """Candidates left after each constraint, in this order."""

    candidates: int
    after_similarity: int
    after_s_max: int
    after_alpha: int


class Group(Left):
    """Candidates left of one category and side."""

    category: str
    side: str


class Counts(Left):
    """The counts of a filter, for its report."""

    groups: list[Group]
    degenerate: int  # make reference and target the same image; counted nowhere else
    known_pairs: int  # give the pair of a triplet of the data set; counted nowhere else
    images: int  # that the triplets name (once for each pool)
    images_without_substitute: int  # whose substitute set (eq. 9) is empty
    images_cut_short: int  # have fewer than s_max because only S neighbours were kept
    best_score: float | None  # among the candidates within thresholds and s_max
    settings: dict[str, float | int]  # the thresholds; neighbours (S) and floor of the tables


def eligible(
    candidates: pa.Table,
    triplets: pa.Table,
    mine: MineConfig,
    searched: Container[str] | None = None,
) -> pa.Table:
    """Return the candidates of the side `mine.replace` and of texts as rare as `mine.rare_texts`.

    Texts are the captions of a triplet together, without regard to case and spaces.

    Args:
        candidates: Table CANDIDATES; its metadata counts what is left.
        triplets: Table TRIPLET that the candidates were made from.
        searched: The images that have features, of whose triplets they were made; None: all.
    Raises:
        DataError: The metadata is lost.
    """
    if mine.replace == "both" and not mine.rare_texts:
        return candidates
    sides = SIDES if mine.replace == "both" else (mine.replace,)
    texts = [" ".join(" ".join(row).lower().split()) for row in triplets["captions"].to_pylist()]
    counts, most = Counter(texts), mine.rare_texts or len(texts)
    rare = pa.array([counts[text] <= most for text in texts], pa.bool_())
    triplets = triplets.filter(rare)
    if searched is not None:
        triplets = targets.readable(triplets, searched)
    chosen = {"side": pa.array(sides), "triplet_id": triplets["triplet_id"].combine_chunks()}
    left = candidates
    for name, words in chosen.items():
        left = left.filter(pc.is_in(left[name].cast(pa.string()), value_set=words))
    by_category = any(left["pool"].unique().to_pylist())
    images = {
        (row["category"] if by_category else "", row[side])
        for row in triplets.to_pylist()
        if row["target"] is not None
        for side in sides
    }
    meta = meta_of(candidates) | {"images": len(images)}
    return left.replace_schema_metadata({META: json.dumps(meta)})


def resolve(candidates: pa.Table, mine: MineConfig) -> Thresholds:
    """Return the thresholds of `mine`, measured on table CANDIDATES where they are quantiles.

    A quantile is a value that the table holds: at least that share of the candidates is at or below
    it. eps_low and eps_high are quantiles of the similarities, alpha is one of the scores. For an
    empty table all are the floor.
    """
    eps_low, eps_high, alpha = mine.eps_low, mine.eps_high, mine.alpha
    if mine.thresholds == "quantile":
        eps_low, eps_high = (_at(candidates["similarity"], q, mine) for q in (eps_low, eps_high))
        alpha = _at(candidates["score"].drop_null(), alpha, mine)
    return {"eps_low": eps_low, "eps_high": eps_high, "s_max": mine.s_max, "alpha": alpha}


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
    similarity, rank, score = (
        candidates[name].to_numpy() for name in ("similarity", "rank", "score")
    )
    useful = candidates["score"].is_valid().to_numpy()
    (pool, _), (replaced, ids) = _codes(candidates["pool"]), _codes(candidates["replaced"])
    # Numbered as they come: pools times ids may be many more than the rows
    image, _ = _codes(pa.chunked_array([pool.astype(np.int64) * len(ids) + replaced]))
    # Neighbours are ranked by falling similarity, so those above eps_high come first: one more than
    # the greatest rank among them.
    above = similarity > eps_high
    too_near = np.zeros(image.max(initial=-1) + 1, np.int64)
    np.maximum.at(too_near, image[above], rank[above] + 1)
    nth = rank - too_near[image]  # among the substitutes within the thresholds, from 0
    similar = (similarity >= eps_low) & ~above
    substitute = similar & (nth < s_max)
    within = substitute & useful
    last = candidates["truncated"].to_numpy() & (rank == meta["neighbours"] - 1)
    cut = last & (similarity >= eps_low) & (nth + 1 < s_max)
    kept = within & (score > alpha)
    masks = {
        "candidates": useful,
        "after_similarity": similar & useful,
        "after_s_max": within,
        "after_alpha": kept,
    }
    settings = {"eps_low": eps_low, "eps_high": eps_high, "s_max": s_max, "alpha": alpha}
    unscored = candidates.filter(pa.array(~useful))
    same = pc.equal(*(unscored[side].cast(pa.string()) for side in SIDES))
    degenerate = pc.sum(same, min_count=0).as_py()
    counts: Counts = {
        **cast("Left", {step: int(mask.sum()) for step, mask in masks.items()}),
        "groups": _groups(candidates, masks),
        "degenerate": degenerate,
        "known_pairs": len(unscored) - degenerate,
        "images": meta["images"],
        "images_without_substitute": meta["images"] - _distinct(image[substitute]),
        "images_cut_short": _distinct(image[cut]),
        "best_score": float(score[within].max()) if within.any() else None,
        "settings": settings | {name: meta[name] for name in ("neighbours", "floor")},
    }
    rows = candidates.filter(pa.array(kept))
    rows = rows.append_column("encoder", pa.array([meta["encoder"]] * len(rows), pa.string()))
    rows = rows.select(PSEUDO_TRIPLET.names).cast(PSEUDO_TRIPLET).replace_schema_metadata(None)
    return rows, counts


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
    """Return the candidates' metadata: encoder, neighbours (S), floor, images."""
    try:
        meta: dict[str, Any] = json.loads(candidates.schema.metadata[META])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            "the table of candidates does not say how it was made",
            expected=f"metadata {META.decode()}, as raycd.mine.make_candidates writes it",
            do="mine again, and keep the schema's metadata where the table is copied",
        ) from None
    return meta


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], pa.Array]:
    """Return codes and words of a column, however a file or a library encoded it."""
    array = column.dictionary_encode().unify_dictionaries().combine_chunks()
    return array.indices.to_numpy(), array.dictionary


def _distinct(number: NDArray[np.int32]) -> int:
    return int(np.count_nonzero(np.bincount(number)))


def _groups(candidates: pa.Table, masks: dict[str, NDArray[np.bool_]]) -> list[Group]:
    """Return the counts by category, then side."""
    category, categories = _codes(candidates["category"])
    side, sides = _codes(candidates["side"])
    cell, cells = category * len(sides) + side, len(categories) * len(sides)
    left = {step: np.bincount(cell[mask], minlength=cells) for step, mask in masks.items()}
    names = itertools.product(categories.to_pylist(), sides.to_pylist())
    groups = [
        cast("Group", {step: int(number[at]) for step, number in left.items()})
        | {"category": name, "side": word}
        for at, (name, word) in enumerate(names)
    ]
    return sorted(groups, key=lambda group: (group["category"], SIDES.index(group["side"])))


def _at(column: pa.ChunkedArray, share: float, mine: MineConfig) -> float:
    if len(column) == 0:
        return mine.floor
    return round(float(np.quantile(column.to_numpy(), share, method="inverted_cdf")), DECIMALS)
