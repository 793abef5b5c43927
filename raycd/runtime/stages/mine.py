"""The stages mine and filter of the pipeline: candidate pseudo triplets, and which are kept."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycd import mine, progress
from raycd.data import targets
from raycd.data.schema import Dataset
from raycd.data.selection import SELECTION
from raycd.report.mining import low_recall, searched_line, summary, thresholds_line, warnings
from raycd.run import Writing
from raycd.runtime import mining
from raycd.runtime.stages import tasks
from raycd.runtime.stages.context import IMAGES, TEXTS, Context


def mine_candidates(context: Context, writing: Writing) -> None:
    """Find neighbours of the train images, and score every candidate pseudo triplet (3.2.3)."""
    settings, compute = context.config.mine, context.config.compute
    images, texts = context.stored("embed", IMAGES), context.stored("embed", TEXTS).features()
    ids, train = images.keys(), context.dataset.triplets_of("train")
    train = targets.readable(train, _known(ids, train))
    rows = mine.of_triplets(ids, train, context.dataset.triplets)
    pools = mine.make_pools(settings.pool, context.dataset.gallery, rows)
    search = partial(mining.find_neighbours, images, compute=compute)
    found = search(pools, settings)
    searched = mine.searched(found, pools, images.dim, settings, search, seed=context.config.seed)
    if settings.index != "flat" or searched["shards"] > len(pools):
        progress.say(f"mine: {searched_line(searched)}")
    for warning in low_recall(searched):
        progress.say(f"warning: {warning}")
    asked = map(context.dataset.wording.evaluation, train["captions"].to_pylist())
    score = partial(mining.matching_scores, images, texts.take(asked).numpy(), compute=compute)
    encoder = context.recorded("stage1", "encoder")
    table = mine.make_candidates(rows, found, score, encoder=encoder)
    pq.write_table(found, writing.folder / "neighbours.parquet")
    pq.write_table(table, writing.folder / "candidates.parquet")
    writing.record["counts"] = {
        "images": len(found),
        "held_out": len(set(context.dataset.images_of(SELECTION))),
        "candidates": len(table),
        "overlaps": _overlaps(context.dataset),
    }
    writing.record |= {"index": searched, "warnings": low_recall(searched)}


def filter_pseudo(context: Context, writing: Writing) -> None:
    """Keep the candidates that the thresholds allow."""
    settings = context.config.mine
    counts = tasks.run(_filter, context, writing.shared)
    found = warnings(counts, settings)
    writing.record |= {"counts": counts, "warnings": found}
    if settings.thresholds == "quantile":
        progress.say(thresholds_line(settings, writing.record["counts"]["settings"]))
    for line in [*summary(counts), *(f"warning: {line}" for line in found)]:
        progress.say(line)


def _filter(context: Context, uri: str) -> mine.Counts:
    """Write the candidates that are kept into a folder or URI, as a task."""
    settings = context.config.mine
    table = pq.read_table(context.run.local("mine") / "candidates.parquet")
    thresholds = mine.resolve(table, settings)
    train = context.dataset.triplets_of("train")
    searched = _known(context.stored("embed", IMAGES).keys(), train)
    table = mine.eligible(table, train, settings, searched)
    kept, counts = mine.filter_candidates(table, **thresholds)
    with tasks.written_to(uri) as folder:
        pq.write_table(kept, folder / "pseudo_triplets.parquet")
    return counts


def _known(ids: pa.StringArray, triplets: pa.Table) -> set[str]:
    """Return the images of triplets that are among `ids`."""
    named = pa.array(targets.images_of(triplets), pa.string())
    return set(named.filter(pc.is_in(named, value_set=ids)).to_pylist())


def _overlaps(dataset: Dataset) -> dict[str, int]:
    """Return how many train images are in each category's val gallery, too."""
    rows = dataset.gallery.to_pylist()
    train = {row["image_id"] for row in rows if row["split"] == "train"}
    val = {(row["category"], row["image_id"]) for row in rows if row["split"] == "val"}
    counts = Counter(category for category, image_id in val if image_id in train)
    return {name: counts[name] for name in dataset.categories()}
