"""A data set with triplets from feedback beside its own, and its tables as files (data.format
manifest).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raycd.data.captions import spelling
from raycd.data.schema import AVERAGE, GALLERY, IMAGE, TRIPLET, Dataset, targets_of
from raycd.feedback.triplets import Learned

TRIPLETS_FILE, GALLERY_FILE = "triplets.parquet", "gallery.parquet"
_PREFIX = "feedback/"  # of the ids of triplets from feedback
_DIGITS = 16  # of such an id
MOST_TARGETS = 32  # of a query: each row that is trained on has as many places as the widest


@dataclass(frozen=True)
class Known:
    """An image of the live gallery."""

    categories: Sequence[str]
    path: str | None
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class Placed:
    """Triplets from feedback as rows of TRIPLET, and why others are none."""

    train: list[dict[str, Any]]
    held_back: list[dict[str, Any]]
    left_out: Counter[str]


def place(
    learned: Iterable[Learned],
    images: Mapping[str, Known],
    val: pa.Table,
    *,
    held_back: float,
) -> Placed:
    """Return the triplets whose images are still there, each in a category of both.

    What else was liked for the same query is a further target: trained on by itself, and no
    negative. A query that is held back is one triplet with all of its targets.

    Args:
        val: Triplets (TRIPLET) that are evaluated on: a pair of reference and target that stands
            there is left out.
        held_back: Share of the queries (reference and text) that is not trained on; always the same
            ones.
    """
    asked = {(row["reference"], one) for row in val.to_pylist() for one in targets_of(row)}
    placed = Placed([], [], Counter())
    for one in learned:
        reference, target = images.get(one.reference), images.get(one.target)
        if reference is None or target is None:
            placed.left_out["images that are gone"] += 1
            continue
        if not (reference.path and target.path):
            placed.left_out["images without a file"] += 1
            continue
        shared = (own for own in target.categories if own in reference.categories)
        category = next((own for own in shared if own != AVERAGE), None)
        if category is None:
            placed.left_out["no category in common"] += 1
            continue
        if (one.reference, one.target) in asked:
            placed.left_out["asked in val"] += 1
            continue
        is_held = _share(one) < held_back
        others = ((name, images.get(name)) for name in one.negatives)
        negatives = [
            name for name, own in others if own and own.path and category in own.categories
        ]
        row = {
            "triplet_id": _id(category, one.reference, spelling(one.text), one.target),
            "category": category,
            "split": "val" if is_held else "train",
            "reference": one.reference,
            "target": one.target,
            "captions": [one.text],
            "weight": None if is_held else one.weight,
            "negatives": None if is_held else negatives or None,
        }
        (placed.held_back if is_held else placed.train).append(row)
    every = len(placed.train)
    placed.train[:] = [row for own in _queries(placed.train) for row in _together(_heaviest(own))]
    if len(placed.train) < every:
        placed.left_out["further targets of one query"] = every - len(placed.train)
    placed.held_back[:] = [_together(own)[0] for own in _queries(placed.held_back)]
    return placed


def _queries(rows: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the rows of each query, in the order of their first ones."""
    queries: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        queries.setdefault(_query(row), []).append(row)
    return list(queries.values())


def _query(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["category"], row["reference"], spelling(row["captions"][0])


def _heaviest(own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(own, key=lambda row: -row["weight"])[:MOST_TARGETS]


def _together(own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the rows of one query each other's targets."""
    for row in own:
        row["further_targets"] = [r["target"] for r in own if r is not row] or None
    return own


def with_feedback(
    base: Dataset,
    rows: Sequence[Mapping[str, Any]],
    images: Mapping[str, Known],
    held_back: Sequence[Mapping[str, Any]] = (),
) -> Dataset:
    """Return a data set with triplets from feedback, whose images are in their galleries.

    Where `base` has the same triplets from an earlier time, the new ones count; queries that are
    held back now are not trained on, whatever their targets were then.
    """
    again = {(*_query(row), target) for row in rows for target in targets_of(row)}
    held = {_query(row) for row in held_back}
    kept = [
        not row["triplet_id"].startswith(_PREFIX)
        or (_query(row) not in held and (*_query(row), row["target"]) not in again)
        for row in base.triplets.to_pylist()
    ]
    base = replace(base, triplets=base.triplets.filter(pa.array(kept, pa.bool_())))
    used = dict.fromkeys(
        (row["category"], row["split"], image_id)
        for row in rows
        for image_id in (row["reference"], row["target"], *(row["negatives"] or ()))
    )
    members = {tuple(row.values()) for row in base.gallery.to_pylist()}
    gallery = [dict(zip(GALLERY.names, key, strict=True)) for key in used if key not in members]
    return _joined(base, gallery, rows, images)


def held_back(rows: Sequence[Mapping[str, Any]], images: Mapping[str, Known]) -> Dataset:
    """Return triplets from feedback as the val split of a data set that searches all images.

    Images without a file are left out: nothing could embed them.
    """
    empty = Dataset(*(schema.empty_table() for schema in (IMAGE, GALLERY, TRIPLET)))
    gallery = [
        {"category": category, "split": "val", "image_id": image_id}
        for image_id, known in images.items()
        for category in known.categories
        if known.path and category != AVERAGE
    ]
    return _joined(empty, gallery, rows, images)


def write(dataset: Dataset, folder: Path) -> None:
    """Write the tables of a data set as a manifest into a folder that is there.

    An image without a file gets the name of one that is not there. The column `subset` (CIRR) has
    no place in a manifest.
    """
    known = {row["image_id"]: row for row in dataset.images.to_pylist()}
    gallery = [
        {
            **row,
            "path": known[row["image_id"]]["path"] or f"missing/{row['image_id']}",
            "attributes": known[row["image_id"]]["attributes"],
        }
        for row in dataset.gallery.to_pylist()
    ]
    schema = pa.schema([*GALLERY, pa.field("path", pa.string()), IMAGE.field("attributes")])
    pq.write_table(pa.Table.from_pylist(gallery, schema=schema), folder / GALLERY_FILE)
    targets = pa.array([targets_of(row) for row in dataset.triplets.to_pylist()], _NAMES)
    triplets = dataset.triplets.drop(["subset", "further_targets", "target"])
    pq.write_table(triplets.append_column("targets", targets), folder / TRIPLETS_FILE)


_NAMES = pa.list_(pa.string())


def _joined(
    base: Dataset,
    gallery: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    images: Mapping[str, Known],
) -> Dataset:
    there = set(base.images["image_id"].to_pylist())
    named = dict.fromkeys(row["image_id"] for row in gallery)
    added = [
        {
            "image_id": one,
            "path": images[one].path,
            "attributes": list(images[one].attributes.items()),
        }
        for one in named
        if one not in there
    ]
    return replace(
        base,
        images=_extended(base.images, added),
        gallery=_extended(base.gallery, gallery),
        triplets=_extended(base.triplets, rows),
    )


def _extended(table: pa.Table, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return pa.concat_tables([table, pa.Table.from_pylist(list(rows), schema=table.schema)])


def _id(*parts: str) -> str:
    return _PREFIX + _hash(*parts)[:_DIGITS]


def _share(one: Learned) -> float:
    return int(_hash(one.reference, spelling(one.text))[:8], 16) / 2**32


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
