"""The table of single queries: what each was, the rank of its best target, and what it found."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from raycd.data.schema import Dataset, targets_of
from raycd.evaluate import Evaluation

TOP = 50  # images that are kept of each query

PER_QUERY = pa.schema(
    [
        pa.field("protocol", pa.string(), nullable=False),
        # "fine_tuned", the head's name, ..., or the URL of a service
        pa.field("variant", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        # With REVERSED at its end where its captions are asked in reverse
        pa.field("triplet_id", pa.string(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("targets", pa.list_(pa.string()), nullable=False),
        # Of the best target, from 1; null where it was not found
        pa.field("rank", pa.int64()),
        # Likewise in the triplet's subset (CIRR, GeneCIS); null where it has none, too
        pa.field("subset_rank", pa.int64()),
        # The best images, at most TOP; empty where the query could not be asked
        pa.field("top", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),  # cosines of `top`
    ]
)


def table(
    dataset: Dataset,
    split: str,
    answers: Iterable[tuple[str, str, Evaluation]],
    *,
    both_orders: bool = False,
) -> pa.Table:
    """Return table PER_QUERY of (protocol, variant, what `evaluate` found with `top`)."""
    queries = dataset.queries(split, both_orders=both_orders)
    rows = []
    for protocol, variant, found in answers:
        for query in queries:
            best = found.top.get(query["triplet_id"], [])
            rows.append(
                {
                    **{name: query[name] for name in ("category", "triplet_id", "reference")},
                    "protocol": protocol,
                    "variant": variant,
                    "text": query["text"],
                    "targets": targets_of(query),
                    "rank": found.ranks[query["triplet_id"]],
                    "subset_rank": found.subset_ranks.get(query["triplet_id"]),
                    "top": [image_id for image_id, _ in best],
                    "scores": [score for _, score in best],
                }
            )
    return pa.Table.from_pylist(rows, schema=PER_QUERY)
