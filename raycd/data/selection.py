"""The selection split: train triplets set aside by a seed, to choose checkpoints and settings on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raycd.data.schema import GALLERY, Dataset

SELECTION = "selection"


def carve(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """The same data set with about `fraction` of each category's train targets moved to the split "selection".

    All triplets of one target stand on the same side, so that no target is both trained on and selected on; at least
    one target of each category moves where fraction > 0. The gallery of the new split is the images of its triplets.
    The train gallery stays whole.
    """
    if fraction <= 0:
        return dataset
    rng = np.random.default_rng([seed, 7])
    rows = dataset.triplets.to_pylist()
    held: set[tuple[str, str]] = set()
    train = [row for row in rows if row["split"] == "train"]
    for category in dict.fromkeys(row["category"] for row in train):
        targets = sorted({row["target"] for row in train if row["category"] == category})
        count = max(1, round(fraction * len(targets)))
        held.update((category, targets[i]) for i in rng.permutation(len(targets))[:count])
    moved = [row["split"] == "train" and (row["category"], row["target"]) in held for row in rows]
    splits = [SELECTION if move else row["split"] for row, move in zip(rows, moved, strict=True)]
    place = dataset.triplets.schema.get_field_index("split")
    triplets = dataset.triplets.set_column(place, dataset.triplets.schema.field(place), pa.array(splits, pa.string()))
    members = dict.fromkeys(
        (row["category"], image_id)
        for row, move in zip(rows, moved, strict=True)
        if move
        for image_id in (row["reference"], row["target"])
    )
    gallery = [{"category": c, "split": SELECTION, "image_id": i} for c, i in members]
    added = pa.Table.from_pylist(gallery, schema=GALLERY)
    return Dataset(dataset.images, pa.concat_tables([dataset.gallery, added]), triplets)
