"""Candidates that may become pseudo triplets at all, before any threshold.

Both restrictions are ours, not the paper's, and off by default. A text describes what the target
has and the reference lacks, so it seldom fits another target, while most other references leave it
true; and pseudo triplets add most where the data set says something seldom.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from raycd.config import MineConfig


def eligible(candidates: pa.Table, triplets: pa.Table, mine: MineConfig) -> pa.Table:
    """Return the candidates of the side `mine.replace` and of texts as rare as `mine.rare_texts`.

    Texts are the captions of a triplet together, without regard to case and spaces.

    Args:
        candidates: Table CANDIDATES; its metadata is kept.
        triplets: Table TRIPLET that the candidates were made from.
    """
    if mine.replace != "both":
        candidates = candidates.filter(pc.equal(_text(candidates["side"]), mine.replace))
    if mine.rare_texts:
        texts = [_plain(captions) for captions in triplets["captions"].to_pylist()]
        counts = Counter(texts)
        rare = pa.array([counts[text] <= mine.rare_texts for text in texts], pa.bool_())
        ids = triplets["triplet_id"].filter(rare).combine_chunks()
        candidates = candidates.filter(pc.is_in(_text(candidates["triplet_id"]), value_set=ids))
    return candidates


def _text(names: pa.ChunkedArray) -> pa.ChunkedArray:
    return names.cast(pa.string())


def _plain(captions: Sequence[str]) -> str:
    return " ".join(" ".join(captions).lower().split())
