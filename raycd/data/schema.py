"""The columns of raycd's tables, each explained here and nowhere else.

A `Dataset` is three Arrow tables. `images` has one row for each distinct image, `gallery` says
which images are candidates of which category and split (an image may be in several), `triplets` are
the queries with, where it is known, their target or targets. Pseudo triplets are mined later and
have a table of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raycd.data.captions import Wording
from raycd.errors import DataError

REVERSED = "/reversed"  # after the id of a triplet that is asked with its captions in reverse
AVERAGE = "average"  # the mean over all categories in metrics; a category cannot have this name

IMAGE = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # unique in the data set
        # A path or URI that fsspec reads; null: no file was found for this id
        pa.field("path", pa.string()),
        # {"colour": "blue"}; empty: none are known
        pa.field("attributes", pa.map_(pa.string(), pa.string())),
    ]
)

GALLERY = pa.schema(
    [
        pa.field("category", pa.string(), nullable=False),  # e.g. "dress"
        pa.field("split", pa.string(), nullable=False),  # "train", "val" or "test"
        pa.field("image_id", pa.string(), nullable=False),  # in the order of the annotations
    ]
)

TRIPLET = pa.schema(
    [
        # Unique in the data set, e.g. "dress/train/0"
        pa.field("triplet_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),  # image_id
        # image_id; null where the annotations keep it secret (test splits)
        pa.field("target", pa.string()),
        # As annotated, empty strings included
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("subset", pa.list_(pa.string())),  # CIRR's group, image_ids; null elsewhere
        # image_ids that are as right as `target` (CIRCO's other ground truths); null: none
        pa.field("further_targets", pa.list_(pa.string())),
        # What it counts in the loss of stage 2; null: 1
        pa.field("weight", pa.float64()),
        # image_ids that are known to be wrong, its own hard negatives in stage 2; null: none
        pa.field("negatives", pa.list_(pa.string())),
    ]
)

PSEUDO_TRIPLET = pa.schema(
    [
        # The original triplet that it was made from
        pa.field("triplet_id", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        # Which side was replaced: "reference" or "target"
        pa.field("side", pa.string(), nullable=False),
        # The image_id that the original has on this side
        pa.field("replaced", pa.string(), nullable=False),
        # Cosine of replaced and replacement (eq. 9)
        pa.field("similarity", pa.float64(), nullable=False),
        # Rank of the replacement among all neighbours of the replaced image, from 0
        pa.field("rank", pa.int32(), nullable=False),
        # Stage 1's matching score of the pseudo triplet
        pa.field("score", pa.float64(), nullable=False),
        # Fingerprint of the encoder that measured similarity and score
        pa.field("encoder", pa.string(), nullable=False),
    ]
)


def subset_of(triplet: Mapping[str, Any]) -> list[str]:
    """Return the members of a triplet's subset but its reference; none where it has no subset."""
    return [member for member in triplet["subset"] or () if member != triplet["reference"]]


def targets_of(triplet: Mapping[str, Any]) -> list[str]:
    """Return all right answers of a row of TRIPLET, `target` first; none where they are secret."""
    target = triplet["target"]
    return [] if target is None else [target, *(triplet.get("further_targets") or ())]


def check_splits(data: str, splits: Sequence[str], known: Collection[str]) -> None:
    """Raise DataError unless `splits` of the data set called `data` are some of the `known`."""
    unknown = [split for split in splits if split not in known]
    if unknown or not splits:
        raise DataError(
            f"{data} has no such split",
            got=", ".join(unknown) or "no split",
            expected=f"some of {', '.join(known)}",
        )


@dataclass(frozen=True)
class Dataset:
    """Images, galleries and triplets of one data set, as the readers return them."""

    images: pa.Table  # IMAGE
    gallery: pa.Table  # GALLERY
    triplets: pa.Table  # TRIPLET
    wording: Wording = Wording()  # noqa: RUF009  (frozen)
    """How the captions of its triplets become texts."""

    def categories(self) -> list[str]:
        """Return the categories in the order in which the galleries name them."""
        return list(dict.fromkeys(self.gallery["category"].to_pylist()))

    def gallery_ids(self, category: str, split: str) -> list[str]:
        """Return the image ids of one gallery, in the order of the annotations."""
        of_it = (pc.field("category") == category) & (pc.field("split") == split)
        ids: list[str] = self.gallery.filter(of_it)["image_id"].to_pylist()
        return ids

    def triplets_of(self, split: str) -> pa.Table:
        """Return the triplets of one split, in the order of the annotations."""
        return self.triplets.filter(pc.field("split") == split)

    def queries(self, split: str, *, both_orders: bool = False) -> list[dict[str, Any]]:
        """Return the triplets of a split as rows, each with its "text".

        With `both_orders` all follow a second time, captions reversed, as id + REVERSED.
        """
        rows: list[dict[str, Any]] = self.triplets_of(split).to_pylist()
        if both_orders:
            rows += [
                {
                    **row,
                    "triplet_id": row["triplet_id"] + REVERSED,
                    "captions": row["captions"][::-1],
                }
                for row in rows
            ]
        return [{**row, "text": self.wording.evaluation(row["captions"])} for row in rows]

    def images_of(self, split: str) -> list[str]:
        """Return the image ids of a split's galleries, in order, with those of several repeated."""
        ids: list[str] = self.gallery.filter(pc.field("split") == split)["image_id"].to_pylist()
        return ids
