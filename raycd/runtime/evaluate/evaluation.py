"""The stage evaluate, and what jobs/evaluate.py asks beyond it: single queries, other protocols.

A **variant** is a way to make queries: the pre-trained or the fine-tuned sum, or the fusion head.
The queries of a run are asked by a task, which reads the features of val alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from raycd.config import Config, Protocol
from raycd.data.demo.garments import CATEGORIES
from raycd.data.schema import Dataset
from raycd.evaluate import (
    AVERAGE,
    Evaluation,
    Metric,
    QueryFunction,
    RerankFunction,
    cached_query,
    composed_query,
    evaluate,
)
from raycd.evaluate.rerank import cached_rerank
from raycd.features import Features
from raycd.features.map_cache import NOTHING, Extras
from raycd.model import fusion, precision
from raycd.model.fusion import joint
from raycd.progress import say
from raycd.run import Writing
from raycd.runtime.stages import tasks
from raycd.runtime.stages.context import ADAPTED, FINE_TUNED, ZERO_SHOT, Context, own_device

PROTOCOLS: tuple[Protocol, ...] = ("original", "original-masked", "val")


class Variant(NamedTuple):
    """A way to make queries, the images that they search, and what re-ranks these."""

    name: str
    images: Features
    query: QueryFunction
    rerank: RerankFunction | None = None


class AskedQueries(NamedTuple):
    """All queries of val, asked of a variant under a protocol."""

    protocol: Protocol
    variant: str
    found: Evaluation


def variants(context: Context) -> list[Variant]:
    """Return the pre-trained sum, the fine-tuned sum and the fusion head of a run."""
    config = context.config
    head, head_config = fusion.load(context.run.local("stage2") / "head")
    total = fusion.create(fusion.HeadConfig("sum", head_config.dim))
    first, tuned = (context.val_features(stage) for stage in ("zero_shot", "embed"))
    is_adapted = config.adapt.epochs and context.run.record("adapt") is not None
    adapted = [context.val_features("adapt")] if is_adapted else []
    extras = context.extras(head.needs)
    composed = context.composed() if head_config.name == joint.NAME else None
    return [
        variant(ZERO_SHOT, total, *first, config),
        *(variant(ADAPTED, total, *own, config) for own in adapted),
        variant(FINE_TUNED, total, *tuned, config),
        variant(head_config.name, head, *tuned, config, extras, composed),
    ]


def variant(
    name: str,
    head: fusion.Head,
    images: Features,
    texts: Features,
    config: Config,
    extras: Extras = NOTHING,
    composed: Features | None = None,
) -> Variant:
    """Return the variant of a head; `composed` are queries that the encoder itself made (joint)."""
    device = own_device(config)
    precision.use("fp32", torch.device(device))
    query = cached_query(head.to(device).eval(), images, texts, device, extras)
    if composed is not None:
        query = composed_query(composed, device)
    rerank = cached_rerank(head, images, texts, config.evaluate.rerank_depth, device)
    return Variant(name, images, query, rerank)


def ask(
    dataset: Dataset,
    variant: Variant,
    config: Config,
    *,
    protocol: Protocol | None = None,
    top: int = 0,
) -> Evaluation:
    """Measure a variant on val, as `config.evaluate` says, or under another protocol."""
    settings = config.evaluate
    return evaluate(
        dataset,
        "val",
        variant.images,
        variant.query,
        protocol=protocol or settings.protocol,
        ks=settings.ks,
        batch_size=settings.batch_size,
        device=own_device(config),
        both_orders=settings.captions == "both_orders",
        map_ks=settings.map_ks,
        top=top,
        rerank=variant.rerank,
    )


def named_metric(name: str, config: Config, dataset: Dataset | None) -> Metric:
    """Return a metric of val; `dataset` is None where the demo data is still to be drawn.

    Raises ConfigError where there is none of that name.
    """
    categories = list(CATEGORIES)
    if dataset is not None:  # of a category without triplets there is nothing to measure
        categories = list(dict.fromkeys(dataset.triplets_of("val")["category"].to_pylist()))
    return Metric.parse(name, categories, config.evaluate.ks)


def ask_run(context: Context, protocols: Sequence[Protocol], top: int = 0) -> list[AskedQueries]:
    """Measure each variant of a run under each protocol, in a task of the connected cluster.

    `top` is the number of best images to return of each query.
    """
    return tasks.run(_ask_run, context, protocols, top, gpu=True)


def _ask_run(context: Context, protocols: Sequence[Protocol], top: int) -> list[AskedQueries]:
    found = variants(context)
    return [
        AskedQueries(p, v.name, ask(context.dataset, v, context.config, protocol=p, top=top))
        for p in protocols
        for v in found
    ]


def evaluate_variants(context: Context, writing: Writing) -> None:
    """Measure recall on val: of the pre-trained sum, the fine-tuned sum and the fusion head."""
    if not len(context.dataset.triplets_of("val")):
        writing.record |= _unmeasured(context)
        return
    recalls, ranks = {}, {}
    for _, name, found in ask_run(context, [context.config.evaluate.protocol]):
        recalls[name], ranks[name] = found.recalls, found.ranks
    writing.record |= {
        "variants": recalls,
        "counts": {
            "gallery": found.gallery,
            "queries": found.queries,
            "missing_queries": {name: len(ids) for name, ids in found.missing_queries.items()},
            "missing_gallery": {name: len(ids) for name, ids in found.missing_gallery.items()},
        },
        "missing": {"queries": found.missing_queries, "gallery": found.missing_gallery},
        "ranks": ranks,
    }


def _unmeasured(context: Context) -> dict[str, Any]:
    """Return the record of a data set without val triplets, as a catalogue may be; say so."""
    say("evaluate: there are no val triplets, so nothing is measured")
    gallery = Counter(
        row["category"] for row in context.dataset.gallery.to_pylist() if row["split"] == "val"
    )
    counts = {"gallery": dict(gallery), "queries": {}, "missing_queries": {}, "missing_gallery": {}}
    return {
        "variants": {},
        "counts": counts,
        "missing": {"queries": {}, "gallery": {}},
        "ranks": {},
    }


def metrics(asked: Sequence[AskedQueries]) -> dict[str, Any]:
    """Return what `report.table` shows: of several protocols, the averages side by side."""
    variants: dict[str, dict[str, Any]] = {}
    several = len({one.protocol for one in asked}) > 1
    for protocol, variant, found in asked:
        if several:
            variants.setdefault(variant, {})[protocol] = found.recalls[AVERAGE]
        else:
            variants[variant] = found.recalls
    # Verdicts compare with galleries of chance, which is another one under each protocol
    return {"variants": variants, **({} if several else {"counts": {"gallery": found.gallery}})}
