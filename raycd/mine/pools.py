"""Rows of the feature matrix instead of ids: those of the triplets and their substitutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycd.data.schema import targets_of
from raycd.data.selection import SELECTION
from raycd.errors import DataError

Rows = NDArray[np.int32]
SIDES = ("reference", "target")
Pairs = NDArray[np.int64]  # reference << 32 | target, each by row


@dataclass(frozen=True)
class TripletRows:
    """T triplets whose images are rows of the features.

    A secret target is -1; such triplets are not replaced.
    """

    image_ids: pa.StringArray  # (N,), in the order of the features
    triplet_ids: pa.StringArray  # (T,)
    categories: pa.StringArray  # (T,)
    reference_T: Rows
    target_T: Rows
    pairs_K: Pairs = field(default_factory=lambda: np.empty(0, np.int64))
    """Pairs of the data set's triplets, none of which a replacement may repeat."""

    @property
    def known_T(self) -> NDArray[np.bool_]:
        """Return which triplets have a target."""
        return self.target_T >= 0


@dataclass(frozen=True)
class Pool:
    """Images that may substitute for `queries_Q`: all train images (name ""), or a category's.

    Queries that are not among them are held out: they have substitutes and are not substitutes.
    """

    name: str
    rows_P: Rows  # ascending, each once
    queries_Q: Rows  # ascending, each once


def pairs_of(reference_K: Rows, target_K: Rows) -> Pairs:
    """Return references and targets as pairs."""
    pairs: Pairs = reference_K.astype(np.int64) << 32 | target_K
    return pairs


def of_triplets(
    image_ids: Sequence[str] | pa.Array, triplets: pa.Table, others: pa.Table | None = None
) -> TripletRows:
    """Return triplets (schema TRIPLET) by row of the features, T rows in the order of the table.

    Args:
        image_ids: The id of each row of the features, each once.
        triplets: Triplets to replace images of, in the order of the text features.
        others: Further triplets of the data set, whose pairs no replacement may repeat either.
    Raises:
        DataError: A triplet names an image that has no features, or an id occurs twice.
    """
    ids = pa.array(image_ids, pa.string())
    if len(pc.unique(ids)) != len(ids):
        raise DataError("an image id occurs twice among the features", do="embed each image once")
    named = pa.array([name for side in SIDES for name in triplets[side].to_pylist()], pa.string())
    rows = rows_of(named, ids)
    names = named.filter(pa.array(rows < 0)).drop_null().unique().to_pylist()
    if names:
        raise DataError(
            f"{len(names)} images of the triplets have no features",
            got=", ".join(names[:3]) + (", ..." if len(names) > 3 else ""),
            expected="every image of a triplet among the features",
            do="leave out triplets of missing images before mining, or embed again",
        )
    data = [row for table in (triplets, others) if table is not None for row in table.to_pylist()]
    pairs = [(row["reference"], target) for row in data for target in targets_of(row)]
    one_K, other_K = (rows_of(pa.array([p[n] for p in pairs], pa.string()), ids) for n in (0, 1))
    return TripletRows(
        image_ids=ids,
        triplet_ids=triplets["triplet_id"].combine_chunks(),
        categories=triplets["category"].combine_chunks(),
        reference_T=rows[: len(triplets)],
        target_T=rows[len(triplets) :],
        pairs_K=pairs_of(one_K, other_K)[(one_K >= 0) & (other_K >= 0)],
    )


def rows_of(names: pa.Array | pa.ChunkedArray, ids: pa.Array) -> Rows:
    """Return the row of each image id; -1 where it has no features."""
    found = pc.index_in(names, value_set=ids).fill_null(-1)
    return np.asarray(found.to_numpy(), dtype=np.int32)


def make_pools(
    kind: str, gallery: pa.Table, triplets: TripletRows, *, split: str = "train"
) -> list[Pool]:
    """Return the pools of `mine.pool`: one named "" for "all", or one for each category.

    A pool holds the images of the split's galleries (schema GALLERY) that have features, and those
    of the triplets themselves, but no image of the selection split's galleries: whatever is chosen
    on that split would otherwise have been trained on. An image of several galleries is in several
    pools.
    """
    held, gallery = (gallery.filter(pc.equal(gallery["split"], s)) for s in (SELECTION, split))
    held_H, row_G = (rows_of(g["image_id"], triplets.image_ids) for g in (held, gallery))
    category_G, category_T = (
        np.asarray(names.to_pylist(), dtype=object)
        for names in (gallery["category"], triplets.categories)
    )
    every, known_T, pools = kind == "all", triplets.known_T, []
    for name in [""] if every else dict.fromkeys(category_T[known_T]):
        here_G = row_G[every | (category_G == name)]
        here_T = known_T & (every | (category_T == name))
        queries_Q = np.union1d(triplets.reference_T[here_T], triplets.target_T[here_T])
        rows_P = np.setdiff1d(np.union1d(here_G, queries_Q), np.append(held_H, -1))
        pools.append(Pool(name, rows_P.astype(np.int32), queries_Q))
    return pools
