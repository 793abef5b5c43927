"""Triplets of several right targets, some of whose images may be missing."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycd.data.schema import TRIPLET, targets_of


def readable(triplets: pa.Table, images: Container[str]) -> pa.Table:
    """Return the triplets (schema TRIPLET) that can be used with `images`, in their order.

    Their reference and at least one target are among them. Targets that are not are left out, and
    the first that is becomes `target`.
    """
    kept: list[dict[str, Any]] = []
    for row in triplets.to_pylist():
        targets = [target for target in targets_of(row) if target in images]
        if targets and row["reference"] in images:
            kept.append({**row, "target": targets[0], "further_targets": targets[1:] or None})
    return pa.Table.from_pylist(kept, schema=TRIPLET)


def images_of(triplets: pa.Table) -> list[str]:
    """Return the references and all targets of triplets (schema TRIPLET), repeated ones too."""
    rows = triplets.to_pylist()
    return [image_id for row in rows for image_id in (row["reference"], *targets_of(row))]


def padded(
    triplets: Sequence[Mapping[str, Any]], numbers: Mapping[str, int]
) -> NDArray[np.int64] | None:
    """Return the numbers (N, T) of all targets of N triplets, for `model.loss`.

    A triplet of several targets has all of them, one of a single target none; the rest is -1. None
    where no triplet has several.
    """
    several = [targets_of(row) if row.get("further_targets") else [] for row in triplets]
    width = max(map(len, several), default=0)
    if width == 0:
        return None
    right_NT = np.full((len(several), width), -1, np.int64)
    for own_T, names in zip(right_NT, several, strict=True):
        own_T[: len(names)] = [numbers.get(name, -1) for name in names]
    return right_NT
