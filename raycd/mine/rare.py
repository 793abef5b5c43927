"""Candidates of rare texts: pseudo triplets add most where the data set says something seldom.

This is ours, not the paper's, and off by default.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from raycd.mine.filter import meta_of
from raycd.mine.neighbours import META


def of_rare_texts(candidates: pa.Table, triplets: pa.Table, at_most: int) -> pa.Table:
    """Return the candidates whose text stands in at most so many of `triplets`; 0: all of them.

    Texts are the captions of a triplet together, without regard to case and spaces.

    Args:
        candidates: Table CANDIDATES; its metadata counts what is left.
        triplets: Table TRIPLET that the candidates were made from.
    Raises:
        DataError: The metadata is lost.
    """
    if at_most == 0:
        return candidates
    texts = [_plain(captions) for captions in triplets["captions"].to_pylist()]
    counts = Counter(texts)
    rare = [counts[text] <= at_most for text in texts]
    asked = triplets.filter(pa.array(rare, pa.bool_()))
    ids = asked["triplet_id"].combine_chunks()
    left = candidates.filter(pc.is_in(candidates["triplet_id"].cast(pa.string()), value_set=ids))
    meta = meta_of(candidates) | _counts(left, asked)
    return left.replace_schema_metadata({META: json.dumps(meta)})


def _counts(candidates: pa.Table, triplets: pa.Table) -> dict[str, int]:
    """Return `images` and `known_pairs` of the metadata, for some of the triplets."""
    by_category = any(candidates["pool"].unique().to_pylist())
    images = {
        (row["category"] if by_category else "", row[side])
        for row in triplets.to_pylist()
        if row["target"] is not None
        for side in ("reference", "target")
    }
    ends = (candidates[side].cast(pa.string()) for side in ("reference", "target"))
    known = pc.and_(candidates["score"].is_null(), pc.not_equal(*ends))
    return {"images": len(images), "known_pairs": pc.sum(known).as_py() or 0}


def _plain(captions: Sequence[str]) -> str:
    return " ".join(" ".join(captions).lower().split())
