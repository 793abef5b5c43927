"""The stages of a catalogue without triplets: adapt to its titles, compose triplets.

adapt     CLIP fine-tuned on images and titles, and its features of all images and val's texts
compose   triplets of images that are near there and differ in little
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from raycd import compose as core
from raycd import progress, scratch
from raycd.config import Config, MineConfig
from raycd.data import titles
from raycd.mine.pools import Pool, of_triplets, rows_of
from raycd.model import encoder as encoders
from raycd.model import lora
from raycd.run import Writing, local_copy
from raycd.runtime import mining
from raycd.runtime.stages import reading
from raycd.runtime.stages.context import COMPOSED, IMAGES, Context, texts_of
from raycd.runtime.stages.embed import embed_all
from raycd.runtime.stages.fitting import fit
from raycd.runtime.train import decoding
from raycd.train.adapt import Adapt
from raycd.train.finetune import parameters, prepare
from raycd.train.task import Task

_TABLE = 1 << 30  # bytes of the neighbours' table, which is in the driver: 12 a neighbour
_FEWEST = 16  # neighbours of an image, however many images there are


def adapt(context: Context, writing: Writing) -> None:
    """Fine-tune CLIP on titles and attributes, and embed all images and val's texts with it."""
    config, settings = context.config, context.config.adapt
    tuned = encoders.load_saved(context.run.local("encoder") / "encoder")
    texts = titles.of_dataset(context.own, "train", config.data.title)
    adapters = prepare(tuned, settings, config.seed)
    writing.record["parameters"] = parameters("adapt", tuned)
    if settings.finetune != "none":
        decoding.check_room(config)  # which may have changed since the first stage
        paths = context.readable()
        source = context.run.path("encoder", "encoder")
        fit(
            *(context, writing, "adapt", _make_adapt),
            {"encoder": source, "texts": texts, "paths": paths},
            settings,
            {"encoder": tuned},
            before="encoder",
            unit="images",
        )
        lora.merge(adapters)
    tuned.save(writing.folder / "encoder")
    writing.record |= {"encoder": tuned.fingerprint(), "dim": tuned.dim}
    embed_all(context, writing, tuned, texts_of(context.own, ["val"]))
    writing.record["counts"]["pairs"] = len(texts)


def _make_adapt(inputs: Any, config: Config, device: torch.device) -> Task[Any]:
    with scratch.folder() as copies:
        loaded = encoders.load_saved(local_copy(inputs["encoder"], copies))
    elsewhere = decoding.decoder(config.adapt, config.compute)
    return Adapt(loaded.to(device), inputs["texts"], inputs["paths"], config, elsewhere)


def compose(context: Context, writing: Writing) -> None:
    """Compose triplets of train images that are near each other and differ in little."""
    config, own = context.config, context.own
    images, encoder = (
        context.stored(context.embedded_before, IMAGES),
        context.recorded(context.before_stage1, "encoder"),
    )
    phrases = core.read_phrases(config.compose.wording, config.data.root)
    ids = images.keys()
    known = dict(
        zip(own.images["image_id"].to_pylist(), own.images["attributes"].to_pylist(), strict=True)
    )
    attributes = [dict(known[image_id]) for image_id in ids.to_pylist()]
    coded = core.encode(attributes, config.compose, title=config.data.title)
    count = most_neighbours(config.compose.neighbours, len(ids))
    if count < config.compose.neighbours:
        progress.say(f"compose: {count} neighbours of each image, for {len(ids):,} images")
    settings: MineConfig = config.mine.model_copy(update={"neighbours": count, "floor": -1.0})
    near = mining.find_neighbours(images, _pools(own.gallery, ids), settings, config.compute)
    asked = of_triplets(ids, own.triplets.slice(0, 0), own.triplets).pairs_K
    pairs, counts = core.draw(coded, near, config.compose, config.seed, asked)
    table = core.write(*(pairs, coded, ids.to_pylist(), phrases), seed=config.seed, encoder=encoder)
    reading.check_composed(own, table, config, counts)
    pq.write_table(table, writing.folder / COMPOSED)
    writing.record |= {
        "counts": counts,
        "attributes": coded.names,
        "left_out": coded.left_out,
        "changes": _changes(table),
    }
    changes = writing.record["changes"]
    progress.say(
        f"compose: {counts['triplets']:,} triplets of {counts['images']:,} images, which change "
        + ", ".join(f"{name} ({count:,})" for name, count in sorted(changes.items()))
    )
    if never := [name for name in coded.names if name not in changes]:
        progress.say(
            f"warning: no triplet changes {', '.join(never)}: where these differ, more than "
            "compose.differences attributes do; name those that matter in compose.attributes"
        )


def most_neighbours(wanted: int, images: int) -> int:
    """Return how many neighbours of each image there may be in the table of all."""
    return min(wanted, max(_FEWEST, _TABLE // (12 * max(images, 1))))


def _pools(gallery: pa.Table, ids: pa.StringArray) -> list[Pool]:
    """Return the train images of each category that have features."""
    train = gallery.filter(pc.equal(gallery["split"], "train"))
    pools = []
    for category in train["category"].unique().to_pylist():
        own = train.filter(pc.equal(train["category"], category))["image_id"]
        rows = np.unique(rows_of(own, ids))
        rows = rows[rows >= 0]
        pools.append(Pool(category, rows, rows))
    return pools


def _changes(table: pa.Table) -> dict[str, int]:
    """Return how many triplets change each attribute."""
    names = pc.list_flatten(table["changes"])
    found = pc.value_counts(pc.list_element(pc.split_pattern(names, ": ", max_splits=1), 0))
    return {each["values"]: each["counts"] for each in found.to_pylist()}
