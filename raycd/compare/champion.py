"""Whether a model is better than the one in use: both have been asked the same queries.

An answers table has a row for each query of val: triplet_id, category, and the rank of its target,
from 1, null where it cannot be found. Its metadata says under which protocol and in galleries of
how many images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from raycd.compare.answers import Answers
from raycd.evaluate import Metric

ASKED = b"raycd.asked"


@dataclass(frozen=True)
class Verdict:
    """What a comparison says."""

    is_better: bool
    """The interval of the difference lies above zero."""
    reason: str
    """For a person: the difference in points with its 95% interval, or why there is none."""


def answers_table(
    triplets: pa.Table,
    ranks: Mapping[str, int | None],
    *,
    protocol: str,
    gallery: Mapping[str, int],
) -> pa.Table:
    """Return the answers of a model to `triplets`, of schema TRIPLET.

    Args:
        ranks: That of each triplet's target.
        gallery: Number of images by category.
    """
    ids = triplets["triplet_id"]
    rank = pa.array([ranks[triplet] for triplet in ids.to_pylist()], pa.int64())
    asked = json.dumps({"protocol": protocol, "gallery": dict(gallery)}, sort_keys=True)
    table = pa.table({"triplet_id": ids, "category": triplets["category"], "rank": rank})
    return table.replace_schema_metadata({ASKED: asked.encode()})


def judge(own: pa.Table, champion: pa.Table, metric: Metric) -> Verdict:
    """Compare two answers tables, paired by query; only what was asked alike is compared."""
    if own.schema.metadata[ASKED] != champion.schema.metadata[ASKED]:
        return Verdict(False, "it was measured under another protocol, or in other galleries")
    if not len(own):
        return Verdict(False, "there are no queries to compare by")
    own, champion = (table.sort_by("triplet_id") for table in (own, champion))
    if any(own[name] != champion[name] for name in ("triplet_id", "category")):
        return Verdict(False, "it was asked other queries")
    of_own, of_champion = (
        Answers.of([table["rank"].to_pylist()], table["category"].to_pylist(), None)
        for table in (own, champion)
    )
    found = of_own.minus(of_champion, metric)
    assert found is not None, "both stand for every seed"
    if found.low is None or found.high is None:
        if not found.mean:
            return Verdict(False, f"{metric} is the same for every query")
        much = f"{metric} {100 * found.mean:+.2f} points"
        return Verdict(False, f"{much}, the same for every query: no spread says how sure that is")
    low, high = 100 * found.low, 100 * found.high
    shown = f"{metric} {100 * found.mean:+.2f} points, 95% interval [{low:+.2f}, {high:+.2f}]"
    return Verdict(found.low > 0, shown)
