"""What the tables of raycd hold: each column is explained here and nowhere else.

A `Dataset` is three Arrow tables. `images` has one row per distinct image, `gallery` says which
images are candidates of which category and split (an image may stand in several), `triplets` are
the queries with, where it is known, their target. Pseudo triplets are mined later and have a table
of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

AVERAGE = "average"  # where metrics have the mean over all categories: no category's name

IMAGE = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # unique in the data set
        pa.field(
            "path", pa.string()
        ),  # a path or URI that fsspec reads; null: no file was found for this id
        pa.field(
            "attributes", pa.map_(pa.string(), pa.string())
        ),  # {"colour": "blue"}; empty: none are known
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
        pa.field(
            "triplet_id", pa.string(), nullable=False
        ),  # unique in the data set, e.g. "dress/train/0"
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),  # image_id
        pa.field(
            "target", pa.string()
        ),  # image_id; null where the annotations keep it secret (test splits)
        pa.field(
            "captions", pa.list_(pa.string()), nullable=False
        ),  # as annotated, empty strings included
        pa.field("subset", pa.list_(pa.string())),  # CIRR's group, image_ids; null elsewhere
    ]
)

PSEUDO_TRIPLET = pa.schema(
    [
        pa.field(
            "triplet_id", pa.string(), nullable=False
        ),  # the original triplet that it was made from
        pa.field("category", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field(
            "side", pa.string(), nullable=False
        ),  # which side was replaced: "reference" or "target"
        pa.field("replaced", pa.string(), nullable=False),  # the image_id that stood there before
        pa.field(
            "similarity", pa.float64(), nullable=False
        ),  # cosine of replaced and replacement (eq. 9)
        pa.field(
            "rank", pa.int32(), nullable=False
        ),  # place of the replacement among all neighbours, from 0
        pa.field(
            "score", pa.float64(), nullable=False
        ),  # stage 1's matching score of the pseudo triplet
        pa.field(
            "encoder", pa.string(), nullable=False
        ),  # fingerprint of the encoder that measured both
    ]
)


@dataclass(frozen=True)
class Dataset:
    """Images, galleries and triplets of one data set, as the readers give them."""

    images: pa.Table  # IMAGE
    gallery: pa.Table  # GALLERY
    triplets: pa.Table  # TRIPLET

    def categories(self) -> list[str]:
        """The categories in the order in which the galleries name them."""
        return list(dict.fromkeys(self.gallery["category"].to_pylist()))

    def gallery_ids(self, category: str, split: str) -> list[str]:
        """Image ids of one gallery, in the order of the annotations."""
        mask = [
            c == category and s == split
            for c, s in zip(
                self.gallery["category"].to_pylist(), self.gallery["split"].to_pylist(), strict=True
            )
        ]
        return list(self.gallery.filter(pa.array(mask))["image_id"].to_pylist())

    def triplets_of(self, split: str) -> pa.Table:
        """The triplets of one split, in the order of the annotations."""
        return self.triplets.filter(
            pa.array([s == split for s in self.triplets["split"].to_pylist()], pa.bool_())
        )

    def images_of(self, split: str) -> list[str]:
        """Return the image ids of a split's galleries, in order; an image of several galleries
        comes several times.
        """
        mask = pa.array([s == split for s in self.gallery["split"].to_pylist()], pa.bool_())
        return list(self.gallery.filter(mask)["image_id"].to_pylist())
