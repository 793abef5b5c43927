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
    others_K: Pairs = field(default_factory=lambda: np.empty(0, np.int64))
    """Pairs of further targets, and of further triplets of the data set."""

    @property
    def pairs(self) -> Pairs:
        """Return the pairs of the data set's triplets, none of which a replacement may repeat."""
        return np.concatenate(
            [pairs_of(self.reference_T, self.target_T)[self.known_T], self.others_K]
        )

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
    return TripletRows(
        image_ids=ids,
        triplet_ids=_whole(triplets["triplet_id"]),
        categories=_whole(triplets["category"]),
        reference_T=_rows(ids, triplets["reference"]),
        target_T=_rows(ids, triplets["target"]),
        others_K=np.concatenate([_pairs(ids, t) for t in (triplets, others) if t is not None]),
    )


def make_pools(
    kind: str, gallery: pa.Table, triplets: TripletRows, *, split: str = "train"
) -> list[Pool]:
    """Return the pools of `mine.pool`: one named "" for "all", or one for each category.

    A pool holds the images of the split's galleries (schema GALLERY) that have features, and those
    of the triplets themselves, but no image of the selection split's galleries: whatever is chosen
    on that split would otherwise have been trained on. An image of several galleries is in several
    pools.
    """
    held = gallery.filter(pc.equal(gallery["split"], SELECTION))["image_id"]
    held_H = pc.index_in(held, value_set=triplets.image_ids).drop_null().to_numpy()
    gallery = gallery.filter(pc.equal(gallery["split"], split))
    row_G = (
        pc.index_in(gallery["image_id"], value_set=triplets.image_ids)
        .fill_null(-1)
        .to_numpy()
        .astype(np.int32)
    )
    category_G = np.asarray(gallery["category"].to_pylist(), dtype=object)
    category_T = np.asarray(triplets.categories.to_pylist(), dtype=object)
    known_T = triplets.known_T

    def pool(name: str, here_G: NDArray[np.bool_], here_T: NDArray[np.bool_]) -> Pool:
        queries_Q = np.unique(
            np.concatenate([triplets.reference_T[here_T], triplets.target_T[here_T]])
        )
        members = np.setdiff1d(np.union1d(row_G[here_G & (row_G >= 0)], queries_Q), held_H)
        return Pool(name, members.astype(np.int32), queries_Q.astype(np.int32))

    if kind == "all":
        return [pool("", np.ones(len(row_G), np.bool_), known_T)]
    names = list(dict.fromkeys(category_T[known_T]))
    return [pool(name, category_G == name, known_T & (category_T == name)) for name in names]


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.array(column.to_pylist(), pa.string())


def _pairs(ids: pa.Array, triplets: pa.Table) -> Pairs:
    """Return the pairs of a reference and each of its targets, as far as both have features."""
    pairs = [
        (row["reference"], target) for row in triplets.to_pylist() for target in targets_of(row)
    ]
    references, targets = zip(*pairs, strict=True) if pairs else ((), ())
    reference, target = (
        pc.index_in(pa.array(side, pa.string()), value_set=ids) for side in (references, targets)
    )
    both = pc.and_(reference.is_valid(), target.is_valid())
    return pairs_of(*(column.filter(both).to_numpy() for column in (reference, target)))


def _rows(ids: pa.Array, column: pa.ChunkedArray) -> Rows:
    """Return the row of each image id; -1 where the column is null."""
    rows = pc.index_in(column, value_set=ids)
    lost = pc.and_(pc.is_null(rows), pc.is_valid(column))
    if pc.any(lost).as_py():
        names = pc.unique(column.filter(lost)).to_pylist()
        raise DataError(
            f"{len(names)} images of the triplets have no features",
            got=", ".join(names[:3]) + (", ..." if len(names) > 3 else ""),
            expected="every image of a triplet among the features",
            do="leave out triplets of missing images before mining, or embed again",
        )
    return np.asarray(rows.fill_null(-1).to_numpy(), dtype=np.int32)
