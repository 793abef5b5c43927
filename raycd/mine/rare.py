"""Candidates of rare texts: pseudo triplets add most where the data set says something seldom.

This is ours, not the paper's, and off by default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc


def of_rare_texts(candidates: pa.Table, triplets: pa.Table, at_most: int) -> pa.Table:
    """Return the candidates whose text stands in at most so many of `triplets`; 0: all of them.

    Texts are the captions of a triplet together, without regard to case and spaces.

    Args:
        candidates: Table CANDIDATES; its metadata is kept.
        triplets: Table TRIPLET that the candidates were made from.
    """
    if at_most == 0:
        return candidates
    texts = [_plain(captions) for captions in triplets["captions"].to_pylist()]
    counts = Counter(texts)
    rare = [counts[text] <= at_most for text in texts]
    ids = triplets["triplet_id"].filter(pa.array(rare, pa.bool_())).combine_chunks()
    return candidates.filter(pc.is_in(candidates["triplet_id"].cast(pa.string()), value_set=ids))


def _plain(captions: Sequence[str]) -> str:
    return " ".join(" ".join(captions).lower().split())
