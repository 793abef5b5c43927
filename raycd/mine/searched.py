"""How the neighbours were searched, as a stage records it: shards, memory, recall; a line to print,
and a warning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from raycd.config import MineConfig
from raycd.mine.shards import Shard, row_bytes

ENOUGH = 0.95  # recall below which the pseudo triplets are no longer those of exact search


class Searched(TypedDict):
    """What a search of neighbours took, and how many it found."""

    kind: str  # mine.index: "flat", "hnsw" or "ivf"
    shards: int  # of all pools together
    worker_mib: float  # memory of the largest shard in a worker, MiB, rounded up to a tenth
    recall: float  # share of the exact neighbours that were found; 1 for flat, which is exact
    sample: int  # query images whose neighbours were compared with exact search; 0 for flat


def searched(
    shards: Sequence[Shard], dim: int, mine: MineConfig, *, recall: float = 1.0, sample: int = 0
) -> Searched:
    """The record of a search among features of size `dim`; `recall` was measured on `sample` query
    images.
    """
    largest = max((len(shard.rows_P) for shard in shards), default=0)
    tenths = math.ceil(10 * largest * row_bytes(dim, mine) / (1 << 20))
    return {
        "kind": mine.index,
        "shards": sum(shard.found for shard in shards),
        "worker_mib": tenths / 10,
        "recall": round(recall, 4),
        "sample": sample,
    }


def line(found: Searched) -> str:
    """One line, e.g. "hnsw, 3 shards of at most 512 MiB, recall 0.987 of the exact neighbours of
    1,000 images".
    """
    parts = "1 shard of" if found["shards"] == 1 else f"{found['shards']:,} shards of at most"
    said = f"{found['kind']}, {parts} {found['worker_mib']:,g} MiB, "
    if found["kind"] == "flat":
        return said + "exact"
    return (
        said + f"recall {found['recall']:.3f} of the exact neighbours of {found['sample']:,} images"
    )


def low_recall(found: Searched) -> list[str]:
    """A warning with its remedy, where the search missed too many neighbours."""
    if found["recall"] >= ENOUGH:
        return []
    effort = {"hnsw": "mine.hnsw_ef", "ivf": "mine.ivf_probes"}[found["kind"]]
    return [
        f"{found['kind']} found {found['recall']:.1%} of the exact neighbours of {found['sample']:,} images, less than "
        f"{ENOUGH:.0%}: raise {effort} and mine again"
    ]
