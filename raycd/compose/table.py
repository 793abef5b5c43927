"""The table of composed triplets: their texts, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raycd.compose.coded import Coded
from raycd.compose.pairs import Pairs
from raycd.compose.wording import Change, Phrases
from raycd.data.schema import TRIPLET

COMPOSED = pa.schema(
    [
        pa.field("triplet_id", pa.string(), nullable=False),  # "composed/" and its number
        pa.field("category", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        # What differs, as "colour: black -> red"
        pa.field("changes", pa.list_(pa.string()), nullable=False),
        # Cosine of reference and target
        pa.field("similarity", pa.float64(), nullable=False),
        # What the pair weighed in the draw
        pa.field("weight", pa.float64(), nullable=False),
        # Fingerprint of the encoder whose features were near
        pa.field("encoder", pa.string(), nullable=False),
    ]
)


def write(
    pairs: Pairs,
    coded: Coded,
    image_ids: Sequence[str],
    phrases: Phrases,
    *,
    seed: int,
    encoder: str,
) -> pa.Table:
    """Return table COMPOSED of the pairs, in their order.

    Raises ConfigError where the wording has no phrase for a change.
    """
    rng = np.random.default_rng([seed, 22])
    changes = [
        _changes(coded, reference, target)
        for reference, target in zip(
            pairs.reference_C.tolist(), pairs.target_C.tolist(), strict=True
        )
    ]
    columns = {
        "triplet_id": [f"composed/{number}" for number in range(len(changes))],
        "category": pairs.pool,
        "reference": [image_ids[row] for row in pairs.reference_C],
        "target": [image_ids[row] for row in pairs.target_C],
        "captions": [phrases.captions(rng, own) for own in changes],
        "changes": [[f"{one.name}: {one.old} -> {one.new}" for one in own] for own in changes],
        "similarity": pairs.similarity_C,
        "weight": pairs.weight_C,
        "encoder": [encoder] * len(changes),
    }
    return pa.table(columns, schema=COMPOSED)


def _changes(coded: Coded, reference: int, target: int) -> list[Change]:
    old_A, new_A = coded.code_NA[reference], coded.code_NA[target]
    return [
        Change(name, words[old], words[new])
        for name, words, old, new in zip(
            coded.names, coded.words, old_A.tolist(), new_A.tolist(), strict=True
        )
        if old >= 0 and new >= 0 and old != new
    ]


def triplets(composed: pa.Table) -> pa.Table:
    """Return table COMPOSED as train triplets of a data set, table TRIPLET."""
    columns = {
        name: composed[name]
        for name in ("triplet_id", "category", "reference", "target", "captions")
    }
    columns["split"] = pa.array(["train"] * len(composed), pa.string())
    for name in TRIPLET.names:
        columns.setdefault(name, pa.nulls(len(composed), TRIPLET.field(name).type))
    return pa.table({name: columns[name] for name in TRIPLET.names}, schema=TRIPLET)
