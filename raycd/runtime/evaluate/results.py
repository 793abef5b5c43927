"""The results of a pipeline: metrics.json and the report.

Shapes: Q queries, D feature size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F

from raycd import __version__, evaluate, progress
from raycd.compare.champion import answers_table
from raycd.config import to_yaml
from raycd.data.images import BrokenImage, load
from raycd.data.schema import targets_of
from raycd.data.selection import SELECTION
from raycd.evaluate import RerankFunction, cached_query, composed_query, text_of
from raycd.evaluate.ranking import top_images
from raycd.evaluate.rerank import cached_rerank
from raycd.features import Features
from raycd.model import fusion
from raycd.model.fusion import joint
from raycd.report.examples import choose_examples
from raycd.report.mining import thresholds_line
from raycd.report.page import (
    ComposedExample,
    Curve,
    Histogram,
    PseudoExample,
    Report,
    ShownQuery,
    ShownResult,
    Sizes,
    render,
)
from raycd.report.pictures import Picture
from raycd.runtime.evaluate.evaluation import named_metric
from raycd.runtime.record.tracking import Tracker
from raycd.runtime.stages import tasks
from raycd.runtime.stages.context import CACHES, COMPOSED, Context, needs
from raycd.runtime.stages.reading import composes

METRICS, REPORT, FINISHED = "metrics.json", "report.html", "finished.json"
SHOWN_QUERIES = 4  # of each category
SHOWN_PSEUDO = 9  # examples of each group
SHOWN_RESULTS = 5  # of each query


def metrics(context: Context, names: Sequence[str]) -> dict[str, Any]:
    """Return the content of metrics.json, from the records of the stages `names`."""
    config = context.config
    records = {name: record for name in names if (record := context.run.record(name)) is not None}
    evaluated = records["evaluate"]
    return {
        "preset": config.preset,
        "protocol": config.evaluate.protocol,
        "seed": config.seed,
        "variants": evaluated["variants"],
        "counts": {
            **evaluated["counts"],
            "missing_images": records["zero_shot"]["counts"]["missing"],
            "pseudo_triplets": records["filter"]["counts"]["after_alpha"],
        },
        "seconds": {name: record["seconds"] for name, record in records.items()},
    }


def hand_in(context: Context, metrics: dict[str, Any], tracker: Tracker) -> None:
    """Write metrics.json and report.html, log them, and register the bundle, maybe by an alias."""
    run, settings = context.run, context.config.registry
    run.write_json(METRICS, metrics)
    run.write_bytes(REPORT, report(context, metrics).encode())
    tracker.log_results(metrics)
    for name in (METRICS, REPORT):
        tracker.log_artifact(run.local(name))
    given = answers(context)
    version = tracker.register(run.local("bundle"), context.recorded("bundle", "digest"), given)
    if version and settings.alias:
        metric = named_metric(settings.metric, context.config, context.dataset)
        progress.say(tracker.give_alias(version, given, settings, metric))


def answers(context: Context) -> pa.Table:
    """Return the ranks that the fusion head gave the targets of val (`champion.answers_table`)."""
    evaluated = context.run.record("evaluate")
    assert evaluated is not None, "it comes before"
    return answers_table(
        context.dataset.triplets_of("val"),
        evaluated["ranks"].get(context.config.stage2.head, {}),
        protocol=context.config.evaluate.protocol,
        gallery=evaluated["counts"]["gallery"],
    )


def report(context: Context, metrics: dict[str, Any]) -> str:
    """Return the content of report.html, made by a task of the connected cluster."""
    return tasks.run(_report, context, metrics)


def _report(context: Context, metrics: dict[str, Any]) -> str:
    mine = context.config.mine
    filtered, mined = context.recorded("filter", "counts"), context.recorded("mine", "counts")
    warnings = [*context.recorded("mine", "warnings"), *context.recorded("filter", "warnings")]
    warnings += [
        f"{count} train images are in the val gallery of {category}, too"
        for category, count in mined["overlaps"].items()
        if count
    ]
    if not metrics["variants"]:
        warnings.insert(0, "recall was not measured: there are no val triplets")
    trained = [*(["adapt"] if context.config.adapt.epochs else []), "stage1", "stage2"]
    curves = [_curve(context, stage) for stage in trained]
    by_quantile = mine.thresholds == "quantile"
    return render(
        Report(
            run=context.config.name or context.config.preset,
            metrics=metrics,
            curves=[curve for curve in curves if curve is not None],
            **_composed(context),
            mining={**filtered, "images_held_out": mined["held_out"]},
            thresholds=thresholds_line(mine, filtered["settings"]) if by_quantile else "",
            histograms=_histograms(context),
            pseudo=_pseudo(context),
            queries=list(_queries(context)),
            missing=context.recorded("zero_shot", "missing"),
            warnings=warnings,
            sizes=_sizes(context, metrics),
            caches=_caches(context),
            config=to_yaml(context.config),
            versions={
                "raycd": __version__,
                **{name: version(name) for name in ("torch", "ray", "open_clip_torch")},
            },
        )
    )


def _sizes(context: Context, metrics: dict[str, Any]) -> dict[str, Sizes]:
    """Return what the curves' recall was measured on, where that is not val."""
    stages = [context.run.record(stage) or {} for stage in ("stage1", "stage2")]
    if not any(record.get("select_on") == SELECTION for record in stages):
        return {}
    data, val = context.dataset, metrics["counts"]
    held_out = Counter(
        row["category"] for row in data.gallery.to_pylist() if row["split"] == SELECTION
    )
    return {
        "the held-out triplets": Sizes(len(data.triplets_of(SELECTION)), list(held_out.values())),
        "val": Sizes(sum(val["queries"].values()), list(val["gallery"].values())),
    }


def _caches(context: Context) -> list[str]:
    """Return what was cached for the head: "map of 256 x 2 x 2 for 5,000 images, 9.8 MiB"."""
    lines = []
    for need in sorted(needs(context.config) & CACHES.keys()):
        counts = dict(context.recorded(CACHES[need], "counts"))
        size, shape = counts.pop("bytes"), context.recorded(CACHES[need], "shape")
        for unit, count in counts.items():
            sides = " x ".join(map(str, shape))
            lines.append(f"{need} of {sides} for {count:,} {unit}, {size / 2**20:,.1f} MiB")
    return lines


def _curve(context: Context, stage: str) -> Curve | None:
    record = context.run.record(stage) or {}
    if not record.get("history"):
        return None
    measure = _compared_by(record.get("select_by") or ["recall@10"])
    epochs = [
        {**entry, **({measure: entry["selection"]} if entry["selection"] is not None else {})}
        for entry in record["history"]
    ]
    return Curve(stage, record["select_on"], epochs, record["best_epoch"])


def _compared_by(measures: Sequence[str]) -> str:
    """Return the name of a curve: "recall@10", or "recall@10+50" of a mean."""
    ranks = [name.removeprefix("recall@").replace("recall_subset@", "s") for name in measures]
    return f"recall@{'+'.join(ranks)}"


def _histograms(context: Context) -> list[Histogram]:
    # As cosines, also where the thresholds were given as quantiles.
    limits = context.recorded("filter", "counts")["settings"]
    file = context.run.local("mine") / "candidates.parquet"
    table = pq.read_table(file, columns=["similarity", "score"])
    if len(table) == 0:
        return []
    similarity, score = table["similarity"].to_numpy(), table["score"].drop_null().to_numpy()
    band = {name: limits[name] for name in ("eps_low", "eps_high")}
    return [
        Histogram("Similarity of an image and its substitute", similarity, band),
        Histogram("Matching score of a candidate", score, {"alpha": limits["alpha"]}),
    ]


def _composed(context: Context) -> dict[str, Any]:
    """Return what the page says of composed triplets, with examples drawn by the run's seed."""
    if not composes(context.config, context.own):
        return {}
    table = pq.read_table(context.run.local("compose") / COMPOSED)
    order = np.random.default_rng([context.config.seed, 23]).permutation(len(table))
    picture, written = _picture_loader(context), context.dataset.wording.evaluation
    rows = table.take(np.sort(order[:SHOWN_PSEUDO])).to_pylist()
    return {
        "composing": context.recorded("compose", "counts"),
        "changes": context.recorded("compose", "changes"),
        "composed": [
            ComposedExample(
                text=written(row["captions"]),
                reference=picture(row["reference"]),
                target=picture(row["target"]),
                changes=row["changes"],
                similarity=row["similarity"],
            )
            for row in rows
        ],
    }


def _pseudo(context: Context) -> list[PseudoExample]:
    """Return good, borderline and just refused examples, drawn by the run's seed."""
    config, table = context.config, pq.read_table(context.run.local("mine") / "candidates.parquet")
    train = context.dataset.triplets_of("train")
    rows = choose_examples(
        table, train, config.mine, count=SHOWN_PSEUDO, seed=config.seed
    ).to_pylist()
    captions = {row["triplet_id"]: row["captions"] for row in train.to_pylist()}
    picture, written = _picture_loader(context), context.dataset.wording.evaluation
    return [
        PseudoExample(
            text=written(captions[row["triplet_id"]]),
            reference=picture(row["reference"]),
            target=picture(row["target"]),
            replaced=picture(row["replaced"]),
            side=row["side"],
            similarity=row["similarity"],
            score=row["score"],
            group=row["group"],
            near=row["near"],
            distance=row["distance"],
        )
        for row in rows
    ]


@torch.inference_mode()
def _queries(context: Context) -> Iterator[ShownQuery]:
    """Yield some val queries of each category, drawn by the seed, and what the head finds."""
    images, texts = context.val_features("embed")
    head, head_config = fusion.load(context.run.local("stage2") / "head")
    extras = context.extras(head.needs)
    query, picture = cached_query(head, images, texts, extras=extras), _picture_loader(context)
    if head_config.name == joint.NAME:
        query = composed_query(context.composed())
    settings = context.config.evaluate
    rerank = cached_rerank(head, images, texts, settings.rerank_depth)
    ranks = context.recorded("evaluate", "ranks").get(head_config.name, {})
    rng = np.random.default_rng([context.config.seed, 12])
    val = context.dataset.queries("val")
    for category in dict.fromkeys(row["category"] for row in val):
        own = [
            row
            for row in val
            if row["category"] == category and ranks[row["triplet_id"]] is not None
        ]
        chosen = [own[i] for i in sorted(rng.permutation(len(own))[:SHOWN_QUERIES])]
        if chosen:
            ids = list(images.among(context.dataset.gallery_ids(category, "val")))
            yield from _rows(
                chosen, ids, images, query(chosen), rerank, ranks, picture, settings.protocol
            )


def _rows(
    triplets: Sequence[dict[str, Any]],
    ids: Sequence[str],
    images: Features,
    query_QD: torch.Tensor,
    rerank: RerankFunction | None,
    ranks: dict[str, int],
    picture: Callable[[str], Picture],
    protocol: str,
) -> Iterator[ShownQuery]:
    masked = None
    if protocol in evaluate.MASKED:
        row_of = {image_id: row for row, image_id in enumerate(ids)}
        masked = torch.tensor([row_of.get(triplet["reference"], -1) for triplet in triplets])
    gallery_GD = F.normalize(images.take(ids), dim=-1)
    rescore = rerank(triplets, gallery_GD) if rerank else None
    scores_QK, rows_QK = top_images(query_QD, gallery_GD, SHOWN_RESULTS, masked, rescore=rescore)
    for triplet, scores, rows in zip(triplets, scores_QK.tolist(), rows_QK.tolist(), strict=True):
        results = [
            ShownResult(picture(ids[row]), ids[row], score, ids[row] in targets_of(triplet))
            for score, row in zip(scores, rows, strict=True)
        ]
        yield ShownQuery(
            reference=picture(triplet["reference"]),
            text=text_of(triplet),
            results=results,
            rank=ranks[triplet["triplet_id"]],
            category=triplet["category"],
            target=picture(triplet["target"]),
        )


def _picture_loader(context: Context) -> Callable[[str], Picture]:
    """Return a function of an image id that loads its picture; None where it cannot be read."""
    paths, data = context.paths(), context.config.data

    def picture(image_id: str) -> Picture:
        try:
            return load(paths[image_id], max_pixels=data.max_pixels, min_side=data.min_side)
        except BrokenImage:
            return None

    return picture
