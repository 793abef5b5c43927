"""The selection split: train triplets held out by a seed, to choose checkpoints and settings on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raycd.data.schema import GALLERY, Dataset, targets_of

SELECTION = "selection"


def hold_out(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Return the data set with about `fraction` of each category's train targets held out.

    They move to the split "selection". All triplets of one target are on the same side, whatever
    their categories, so that no target is both trained on and selected on; so are all targets of
    one triplet. Where fraction > 0, at
    least one target of each category moves, except that train keeps one of each: a category of a
    single target stays in train. The gallery of the new split is the images of its triplets. The
    train gallery stays whole, but mining takes no substitutes from the new split
    (`raycd.mine.make_pools`).
    """
    if fraction <= 0:
        return dataset
    rows = dataset.triplets.to_pylist()
    held = _held(rows, fraction, seed)
    moved = [row["split"] == "train" and not held.isdisjoint(targets_of(row)) for row in rows]
    splits = [SELECTION if move else row["split"] for row, move in zip(rows, moved, strict=True)]
    column = dataset.triplets.schema.get_field_index("split")
    triplets = dataset.triplets.set_column(
        column, dataset.triplets.schema.field(column), pa.array(splits, pa.string())
    )
    members = dict.fromkeys(
        (row["category"], image_id)
        for row, move in zip(rows, moved, strict=True)
        if move
        for image_id in (row["reference"], *targets_of(row))
    )
    gallery = [{"category": c, "split": SELECTION, "image_id": i} for c, i in members]
    added = pa.Table.from_pylist(gallery, schema=GALLERY)
    return replace(dataset, gallery=pa.concat_tables([dataset.gallery, added]), triplets=triplets)


def _held(rows: Sequence[Mapping[str, Any]], fraction: float, seed: int) -> set[str]:
    """Draw the targets that move, category by category; those of one triplet are drawn as one."""
    rng = np.random.default_rng([seed, 7])
    train = [row for row in rows if row["split"] == "train"]
    groups = _groups([targets_of(row) for row in train])
    categories: dict[str, set[str]] = {}  # of each group, by its first target
    for row in train:
        categories.setdefault(groups[row["target"]], set()).add(row["category"])
    members: dict[str, list[str]] = {row["category"]: [] for row in train}
    for target, own in sorted(categories.items()):
        for category in own:
            members[category].append(target)
    kept = Counter(category for own in categories.values() for category in own)
    held: set[str] = set()
    for category, targets in members.items():
        least = len(targets) - max(1, round(fraction * len(targets)))
        for index in rng.permutation(len(targets)):
            target = targets[index]
            if kept[category] <= least:
                break
            if target not in held and all(kept[other] > 1 for other in categories[target]):
                held.add(target)
                kept.subtract(categories[target])
    return {target for target, group in groups.items() if group in held}


def _groups(triplets: Iterable[Sequence[str]]) -> dict[str, str]:
    """Return target -> the first, by name, of all that share triplets with it, directly or not."""
    parent: dict[str, str] = {}

    def first(target: str) -> str:
        while parent.setdefault(target, target) != target:
            parent[target] = parent[parent[target]]
            target = parent[target]
        return target

    for targets in triplets:
        firsts = [first(target) for target in targets]
        for one in firsts:
            parent[one] = min(firsts)
    return {target: first(target) for target in list(parent)}
