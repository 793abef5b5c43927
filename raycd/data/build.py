"""The builder of a `Dataset`: it collects what a reader finds and refuses what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from raycd.data.attributes import Attributes
from raycd.data.schema import AVERAGE, GALLERY, IMAGE, TRIPLET, Dataset
from raycd.errors import DataError

SHOWN = 10  # galleries that a message names


class TripletRow(NamedTuple):
    """One row of schema.TRIPLET, with the fields in the same order."""

    triplet_id: str
    category: str
    split: str
    reference: str
    target: str | None
    captions: list[str]
    subset: list[str] | None = None
    further_targets: list[str] | None = None
    weight: float | None = None
    negatives: list[str] | None = None


class DatasetBuilder:
    """A data set under construction: galleries first, then the triplets that search them.

    Args:
        remedy: What to do where a triplet does not fit a gallery.
    """

    def __init__(
        self, remedy: str = "use captions and image lists of the same release, or correct the entry"
    ) -> None:
        self._remedy = remedy
        self._galleries: dict[tuple[str, str], dict[str, None]] = {}  # ordered sets of image ids
        self._sources: dict[tuple[str, str], str] = {}
        self._triplets: dict[str, TripletRow] = {}

    def add_gallery(
        self, category: str, split: str, image_ids: Iterable[str], *, source: str
    ) -> None:
        """Set the gallery of a category and split; `source` names its file.

        Raises DataError where an id occurs twice, or the category has the name of the mean over all
        categories.
        """
        if category == AVERAGE:
            raise DataError(
                f"{source} has a category {category!r}",
                expected="another name: metrics have the mean over all categories under this one",
                do="rename the category",
            )
        gallery: dict[str, None] = {}
        for image_id in image_ids:
            if image_id in gallery:
                raise DataError(
                    f"{source} names an image twice", got=image_id, expected="each image id once"
                )
            gallery[image_id] = None
        self._galleries[category, split] = gallery
        self._sources[category, split] = source

    def add_triplet(self, row: TripletRow, *, where: str) -> None:
        """Add one triplet; `where` names its file and row.

        Raises DataError where its gallery lacks one of its images or its id is taken.
        """
        key = (row.category, row.split)
        if key not in self._galleries:
            raise DataError(
                f"{where} belongs to a gallery that has no images",
                got=f"category {row.category}, split {row.split}",
                expected=self._shown_galleries(),
                do=self._remedy,
            )
        gallery = self._galleries[key]
        lists = (row.subset, row.further_targets, row.negatives)
        others = [image_id for own in lists for image_id in own or ()]
        for image_id in (row.reference, row.target, *others):
            if image_id is not None and image_id not in gallery:
                raise DataError(
                    f"{where} names an image outside its split",
                    got=image_id,
                    expected=f"an image of {self._sources[key]} "
                    f"(category {row.category}, split {row.split})",
                    do=self._remedy,
                )
        if row.triplet_id in self._triplets:
            raise DataError(
                f"{where} repeats a triplet's id", got=row.triplet_id, expected="an id of its own"
            )
        self._triplets[row.triplet_id] = row

    def _shown_galleries(self) -> str:
        names = [f"{category}/{split}" for category, split in self._galleries]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return f"one of {', '.join(names[:SHOWN])}{more}"

    def build(
        self, paths: Mapping[str, str], attributes: Mapping[str, Attributes] | None = None
    ) -> Dataset:
        """Return the tables. `paths` maps image ids to files; an id that it lacks gets a null path.

        `attributes` of images that are in no gallery are ignored.
        """
        known = attributes or {}
        images = dict.fromkeys(
            image_id for gallery in self._galleries.values() for image_id in gallery
        )
        return Dataset(
            images=_table(
                IMAGE, [(key, paths.get(key), list(known.get(key, {}).items())) for key in images]
            ),
            gallery=_table(
                GALLERY,
                [
                    (*key, image_id)
                    for key, gallery in self._galleries.items()
                    for image_id in gallery
                ],
            ),
            triplets=_table(TRIPLET, list(self._triplets.values())),
        )


def _table(schema: pa.Schema, rows: Sequence[tuple[object, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )
