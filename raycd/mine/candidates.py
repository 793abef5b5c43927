"""Candidates: every triplet with one image replaced by a neighbour, and stage 1's matching score.

No threshold of eq. 9 is applied yet, so `filter_candidates` can try any of them on this table. Two
sorts of replacement never become pseudo triplets: one that makes reference and target the same
image asks for no change, and one that gives the reference and target of a triplet of the data set
is that triplet under another text. They stay in the table without a score, because they still count
among the s_max substitutes of an image.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycd.errors import DataError
from raycd.mine.neighbours import META
from raycd.mine.pools import Rows, TripletRows, pairs_of
from raycd.mine.search import DECIMALS

SIDES = ("reference", "target")
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


class Score(Protocol):
    """What measures candidates: `matching_scores`, or its form on Ray Data."""

    def __call__(
        self,
        image_ND: NDArray[np.float32],
        text_TD: NDArray[np.float32],
        reference_C: Rows,
        target_C: Rows,
        triplet_C: Rows,
        /,
    ) -> NDArray[np.float64]: ...


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
        chunk = slice(start, start + _CHUNK)
        query = image_ND[reference_C[chunk]].astype(np.float64)
        query += text_TD[triplet_C[chunk]]
        target = image_ND[target_C[chunk]].astype(np.float64)
        square = np.einsum("nd,nd->n", query, query) * np.einsum("nd,nd->n", target, target)
        score_C[chunk] = np.einsum("nd,nd->n", query, target) / np.sqrt(
            np.where(square > 0, square, np.inf)
        )
    rounded: NDArray[np.float64] = np.round(score_C, DECIMALS)
    return rounded


def make_candidates(
    triplets: TripletRows,
    neighbours: pa.Table,
    image_ND: NDArray[np.float32],
    text_TD: NDArray[np.float32],
    *,
    encoder: str,
    score: Score = matching_scores,
) -> pa.Table:
    """Return table CANDIDATES: by triplet, then side, then rank.

    Args:
        triplets: The original triplets, T rows.
        neighbours: Table NEIGHBOURS for their images.
        image_ND, text_TD: Features of the images and of each triplet's text, not normalised.
        encoder: Fingerprint of the encoder that made both.
        score: Measures the pairs.
    Returns:
        The table. Its metadata holds the encoder, S, the floor, the number of replaceable images,
        and how many candidates have the pair of a triplet of the data set.
    """
    pairs = _replace(triplets, neighbours)
    different = pairs.reference_C != pairs.target_C
    known = different & np.isin(pairs_of(pairs.reference_C, pairs.target_C), triplets.pairs)
    useful = different & ~known
    chosen = (pairs.reference_C[useful], pairs.target_C[useful], pairs.triplet_C[useful])
    score_C = np.zeros(len(useful))
    score_C[useful] = score(image_ND, text_TD, *chosen)

    image_ids, names = triplets.image_ids, pa.array(pairs.pool_names, pa.string())
    category = triplets.categories.dictionary_encode()
    category_T = category.indices.to_numpy()
    codes = {
        "triplet_id": (pairs.triplet_C, triplets.triplet_ids),
        "category": (category_T[pairs.triplet_C], category.dictionary),
        "pool": (pairs.pool_C, names),
        "side": (pairs.side_C, pa.array(SIDES, pa.string())),
        "replaced": (pairs.replaced_C, image_ids),
        "substitute": (pairs.substitute_C, image_ids),
        "reference": (pairs.reference_C, image_ids),
        "target": (pairs.target_C, image_ids),
    }
    columns = {
        name: pa.DictionaryArray.from_arrays(pa.array(code, pa.int32()), words)
        for name, (code, words) in codes.items()
    }
    columns["similarity"] = pa.array(pairs.similarity_C)
    columns["rank"] = pa.array(pairs.rank_C, pa.int32())
    columns["truncated"] = pa.array(pairs.truncated_C)
    columns["score"] = pa.array(score_C, mask=~useful)
    meta = json.loads(neighbours.schema.metadata[META])
    meta |= {"encoder": encoder, "images": pairs.images, "known_pairs": int(known.sum())}
    return pa.Table.from_pydict(columns, schema=CANDIDATES).replace_schema_metadata(
        {META: json.dumps(meta)}
    )


@dataclass(frozen=True)
class _Pairs:
    """C replacements as indices into triplets, pool names or features."""

    pool_names: list[str]
    images: int  # distinct (pool, image) that the triplets name
    triplet_C: Rows
    side_C: Rows
    pool_C: Rows
    replaced_C: Rows
    substitute_C: Rows
    reference_C: Rows
    target_C: Rows
    similarity_C: NDArray[np.float64]
    rank_C: Rows
    truncated_C: NDArray[np.bool_]


def _replace(triplets: TripletRows, neighbours: pa.Table) -> _Pairs:
    """Join both sides of the known triplets (U uses of an image) with the neighbours (Q rows)."""
    known = np.flatnonzero(triplets.known_T).astype(np.int32)
    triplet_U = np.repeat(known, 2)
    side_U = np.tile(np.array([0, 1], np.int32), len(known))
    image_U = np.stack([triplets.reference_T[known], triplets.target_T[known]], axis=1).ravel()

    found = neighbours.combine_chunks()
    pool_Q = found["pool"].to_pylist()
    names = list(dict.fromkeys(pool_Q))
    code = {name: number for number, name in enumerate(names)}
    if names == [""]:
        pool_U = np.zeros(len(image_U), np.int64)
    else:
        pool_T = np.array(
            [code.get(category, -1) for category in triplets.categories.to_pylist()], np.int64
        )
        pool_U = pool_T[triplet_U]
    # Pool and image packed into one int64, so that both are looked up by one sorted search
    use_U = _indices(
        np.array([code[name] for name in pool_Q], np.int64) << 32 | found["image"].to_numpy(),
        pool_U << 32 | image_U,
    )

    lists = found["neighbours"].combine_chunks()
    offsets = lists.offsets.to_numpy()
    count_U = np.diff(offsets)[use_U]
    rank_C = np.arange(count_U.sum()) - np.repeat(np.cumsum(count_U) - count_U, count_U)
    entry_C = rank_C + np.repeat(offsets[use_U], count_U)

    def spread(of_use: NDArray[np.signedinteger]) -> Rows:
        return np.repeat(of_use, count_U).astype(np.int32, copy=False)

    triplet_C, side_C = spread(triplet_U), spread(side_U)
    substitute_C = lists.values.to_numpy()[entry_C]
    return _Pairs(
        pool_names=names,
        images=len(np.unique(use_U)),
        triplet_C=triplet_C,
        side_C=side_C,
        pool_C=spread(pool_U),
        replaced_C=spread(image_U),
        substitute_C=substitute_C,
        reference_C=np.where(side_C == 0, substitute_C, triplets.reference_T[triplet_C]),
        target_C=np.where(side_C == 1, substitute_C, triplets.target_T[triplet_C]),
        similarity_C=found["similarities"].combine_chunks().values.to_numpy()[entry_C],
        rank_C=rank_C.astype(np.int32),
        truncated_C=np.repeat(found["truncated"].to_numpy()[use_U], count_U),
    )


def _indices(keys_Q: NDArray[np.int64], wanted_U: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the index of each wanted key among the keys. Raises DataError where one is absent."""
    order = np.argsort(keys_Q)
    rank = np.searchsorted(keys_Q, wanted_U, sorter=order)
    if len(wanted_U) and (rank.max() >= len(keys_Q) or (keys_Q[order[rank]] != wanted_U).any()):
        raise DataError(
            "the neighbours lack images of the triplets",
            do="search the neighbours of these triplets' images again",
        )
    found: NDArray[np.int64] = order[rank] if len(wanted_U) else rank
    return found
