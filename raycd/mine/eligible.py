"""Candidates that may become pseudo triplets at all, before any threshold.

Both restrictions are ours, not the paper's, and off by default. A text describes what the target
has and the reference lacks, so it seldom fits another target, while most other references leave it
true; and pseudo triplets add most where the data set says something seldom.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from raycd.config import MineConfig
from raycd.mine.candidates import SIDES
from raycd.mine.filter import meta_of
from raycd.mine.neighbours import META


def eligible(candidates: pa.Table, triplets: pa.Table, mine: MineConfig) -> pa.Table:
    """Return the candidates of the side `mine.replace` and of texts as rare as `mine.rare_texts`.

    Texts are the captions of a triplet together, without regard to case and spaces.

    Args:
        candidates: Table CANDIDATES; its metadata counts what is left.
        triplets: Table TRIPLET that the candidates were made from.
    Raises:
        DataError: The metadata is lost.
    """
    if mine.replace == "both" and not mine.rare_texts:
        return candidates
    sides = SIDES if mine.replace == "both" else (mine.replace,)
    if mine.rare_texts:
        texts = [_plain(captions) for captions in triplets["captions"].to_pylist()]
        counts = Counter(texts)
        rare = [counts[text] <= mine.rare_texts for text in texts]
        triplets = triplets.filter(pa.array(rare, pa.bool_()))
    left = candidates.filter(
        pc.and_(
            pc.is_in(_text(candidates["side"]), value_set=pa.array(sides)),
            pc.is_in(
                _text(candidates["triplet_id"]), value_set=triplets["triplet_id"].combine_chunks()
            ),
        )
    )
    meta = meta_of(candidates) | _counts(left, triplets, sides)
    return left.replace_schema_metadata({META: json.dumps(meta)})


def _counts(candidates: pa.Table, triplets: pa.Table, sides: Sequence[str]) -> dict[str, int]:
    """Return `images` and `known_pairs` of the metadata, for some triplets and sides."""
    by_category = any(candidates["pool"].unique().to_pylist())
    images = {
        (row["category"] if by_category else "", row[side])
        for row in triplets.to_pylist()
        if row["target"] is not None
        for side in sides
    }
    ends = (_text(candidates[side]) for side in SIDES)
    known = pc.and_(candidates["score"].is_null(), pc.not_equal(*ends))
    return {"images": len(images), "known_pairs": pc.sum(known).as_py() or 0}


def _text(names: pa.ChunkedArray) -> pa.ChunkedArray:
    return names.cast(pa.string())


def _plain(captions: Sequence[str]) -> str:
    return " ".join(" ".join(captions).lower().split())
