"""Candidates: every triplet with one image replaced by a neighbour, and stage 1's matching score.

No threshold of eq. 9 is applied yet, so `filter_candidates` can try any of them on this table. Two
sorts of replacement never become pseudo triplets: one that makes reference and target the same
image asks for no change, and one that gives the reference and target of a triplet of the data set
is that triplet under another text. They stay in the table without a score, because they still count
among the s_max substitutes of an image.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycd.mine.neighbours import META, rows_for
from raycd.mine.pools import SIDES, Rows, TripletRows, pairs_of
from raycd.mine.search import DECIMALS

_CHUNK = 256  # candidates measured at once: their features stay in a core's cache

_NAME = pa.dictionary(pa.int32(), pa.string())  # four bytes a row, however long the ids are

CANDIDATES = pa.schema(
    [
        pa.field("triplet_id", _NAME, nullable=False),  # the original triplet
        pa.field("category", _NAME, nullable=False),
        # Pool that the substitute was searched in: "" or the category
        pa.field("pool", _NAME, nullable=False),
        pa.field("side", _NAME, nullable=False),  # which side is replaced: "reference" or "target"
        pa.field("replaced", _NAME, nullable=False),  # the original's image_id on this side
        pa.field("substitute", _NAME, nullable=False),  # the image_id that replaces it
        pa.field("reference", _NAME, nullable=False),  # image_id, after replacement
        pa.field("target", _NAME, nullable=False),  # image_id, after replacement
        # Cosine of replaced and substitute, 6 decimals
        pa.field("similarity", pa.float64(), nullable=False),
        # Rank of the substitute among all neighbours, from 0
        pa.field("rank", pa.int32(), nullable=False),
        # The replaced image has more neighbours than the table
        pa.field("truncated", pa.bool_(), nullable=False),
        # Matching score, 6 decimals; null where it cannot become a pseudo triplet
        pa.field("score", pa.float64()),
    ]
)


Score = Callable[[Rows, Rows, Rows], NDArray[np.float64]]
"""References, targets and triplets (C,) by row -> matching scores (C,)."""


def matching_scores(
    image_ND: NDArray[np.float32],
    text_TD: NDArray[np.float32],
    reference_C: Rows,
    target_C: Rows,
    triplet_C: Rows,
) -> NDArray[np.float64]:
    """Return the cosine (C,) of L2(x_reference + t_triplet) (eq. 3) with x_target.

    Features are stage 1's, NOT normalised. The cosine is computed in float64 and rounded to 6
    decimals: float32 sums differ in the seventh with the size of the batch, and scores must not
    depend on how candidates are divided among workers. A sum or a target of length 0 scores 0.
    Memory: a few MB beyond the result.
    """
    score_C = np.empty(len(reference_C))
    for start in range(0, len(score_C), _CHUNK):
        own = slice(start, start + _CHUNK)
        query_KD = image_ND[reference_C[own]].astype(np.float64) + text_TD[triplet_C[own]]
        target_KD = image_ND[target_C[own]].astype(np.float64)
        square_K = np.vecdot(query_KD, query_KD) * np.vecdot(target_KD, target_KD)
        length_K = np.sqrt(np.where(square_K > 0, square_K, np.inf))
        score_C[own] = np.vecdot(query_KD, target_KD) / length_K
    rounded: NDArray[np.float64] = np.round(score_C, DECIMALS)
    return rounded


def make_candidates(
    triplets: TripletRows, neighbours: pa.Table, score: Score, *, encoder: str
) -> pa.Table:
    """Return table CANDIDATES: by triplet, then side, then rank.

    Its metadata holds the encoder, S, the floor, and the number of replaceable images.

    Args:
        triplets: The original triplets, T rows.
        neighbours: Table NEIGHBOURS for their images.
        score: Measures replacements, e.g. `partial(matching_scores, image_ND, text_TD)`.
        encoder: Fingerprint of the encoder that made the features.
    Raises:
        DataError: The neighbours lack images of the triplets.
    """
    # U uses of an image: both sides of the triplets whose target is known
    triplet_U = np.repeat(np.flatnonzero(triplets.known_T).astype(np.int32), 2)
    side_U = np.arange(len(triplet_U), dtype=np.int32) % 2
    image_U = np.where(side_U == 0, triplets.reference_T[triplet_U], triplets.target_T[triplet_U])
    category_U = triplets.categories.take(pa.array(triplet_U)).dictionary_encode()
    by_category = any(neighbours["pool"].unique().to_pylist())
    pool_U = category_U if by_category else pa.array([""] * len(triplet_U)).dictionary_encode()
    row_U = rows_for(neighbours, pool_U.cast(pa.string()), pa.array(image_U))
    found = neighbours.take(row_U).combine_chunks()
    use_C = pc.list_parent_indices(found["neighbours"]).to_numpy()
    substitute_C = pc.list_flatten(found["neighbours"]).to_numpy()
    triplet_C, side_C = triplet_U[use_C], side_U[use_C]
    reference_C = np.where(side_C == 0, substitute_C, triplets.reference_T[triplet_C])
    target_C = np.where(side_C == 1, substitute_C, triplets.target_T[triplet_C])
    useful_C = (reference_C != target_C) & ~np.isin(
        pairs_of(reference_C, target_C), triplets.pairs_K
    )
    score_C = np.zeros(len(useful_C))
    score_C[useful_C] = score(reference_C[useful_C], target_C[useful_C], triplet_C[useful_C])
    rows_C = (image_U[use_C], substitute_C, reference_C, target_C)
    columns = [
        _names(triplet_C, triplets.triplet_ids),
        category_U.take(pa.array(use_C)),
        pool_U.take(pa.array(use_C)),
        _names(side_C, pa.array(SIDES)),
        *(_names(rows, triplets.image_ids) for rows in rows_C),
        pc.list_flatten(found["similarities"]),
        pa.array(np.arange(len(use_C)) - np.searchsorted(use_C, use_C), pa.int32()),
        found["truncated"].take(pa.array(use_C)),
        pa.array(score_C, mask=~useful_C),
    ]
    meta = json.loads(neighbours.schema.metadata[META])
    meta |= {"encoder": encoder, "images": len(pc.unique(row_U))}
    schema = CANDIDATES.with_metadata({META: json.dumps(meta)})
    return pa.Table.from_arrays(columns, schema=schema).combine_chunks()


def _names(rows_C: Rows, words: pa.Array) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(rows_C, pa.int32()), words)
