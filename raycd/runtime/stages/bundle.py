"""The last stage: encoder, head, gallery and index become what is served.

A task writes the bundle: it copies the gallery's features from their shards into a file that is
mapped into memory, and builds the index from there in blocks. The driver holds no feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from raycd import bundle
from raycd.bundle import Manifest
from raycd.config import Config
from raycd.data.captions import example_texts
from raycd.data.schema import Dataset
from raycd.features.map_cache import NOTHING, Extras
from raycd.features.stored import Stored
from raycd.index.half import room
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.run import Writing
from raycd.runtime import cluster
from raycd.runtime.stages import tasks
from raycd.runtime.stages.context import IMAGES, Context


class BundledModel(NamedTuple):
    """What makes features of images, and queries of features."""

    encoder: Encoder
    head: fusion.Head
    head_config: fusion.HeadConfig


class GalleryRows(NamedTuple):
    """The images of a gallery, in its order; those without a feature are left out."""

    ids: Sequence[str]
    categories: Sequence[Sequence[str]]
    paths: Sequence[str | None]
    attributes: Sequence[dict[str, str]]


def bundle_up(context: Context, writing: Writing) -> None:
    """Put encoder, head, gallery and index together for serving. The gallery is val's."""
    tuned = encoders.load_saved(context.run.local("stage1") / "encoder")
    manifest = tasks.run(_bundle, context, writing.shared, tuned)
    writing.record |= {
        "counts": {"gallery": manifest.index.size},
        "digest": manifest.digest,
        "index": manifest.index.model_dump(),
    }


def _bundle(context: Context, uri: str, tuned: Encoder) -> Manifest:
    """Write the bundle into a folder or URI, as a task."""
    config = context.config
    head, head_config = fusion.load(context.run.local("stage2") / "head", dim=tuned.dim)
    measured = context.recorded("evaluate", "variants").get(head_config.name, {})
    return write(
        uri,
        BundledModel(tuned, head, head_config),
        context.stored("embed", IMAGES),
        _gallery(context.dataset),
        config,
        {"protocol": config.evaluate.protocol, **measured.get("average", {})},
        texts=example_texts(
            context.dataset.triplets_of("train")["captions"].to_pylist(), config.seed
        ),
        extras=context.extras(head.needs),
        run=context.run.root,
    )


def _gallery(dataset: Dataset) -> GalleryRows:
    """Return the images of val's galleries, each with all of its categories."""
    categories: dict[str, list[str]] = {}
    for row in dataset.gallery.to_pylist():
        if row["split"] == "val":
            categories.setdefault(row["image_id"], []).append(row["category"])
    known = {row["image_id"]: row for row in dataset.images.to_pylist()}
    return GalleryRows(
        list(categories),
        list(categories.values()),
        [known[key]["path"] for key in categories],
        [dict(known[key]["attributes"]) for key in categories],
    )


def write(
    uri: str,
    model: BundledModel,
    images: Stored,
    rows: GalleryRows,
    config: Config,
    metrics: dict[str, Any],
    *,
    texts: Sequence[str] = (),
    extras: Extras = NOTHING,
    run: str = "",
) -> Manifest:
    """Write a bundle into a folder or URI, in this process, with the rows that have a feature.

    Args:
        metrics, texts, extras: As `bundle.write` takes them.
        run: Folder of the run, for `bundle.gallery_table`.
    """
    found = images.features(rows.ids, room=room)
    known = set(found.keys.to_pylist())
    kept = [row for row, key in enumerate(rows.ids) if key in known]
    gallery = bundle.gallery_table(
        [rows.ids[row] for row in kept],
        [rows.categories[row] for row in kept],
        [rows.paths[row] for row in kept],
        found.values.numpy(),
        model.encoder.fingerprint(),
        attributes=[rows.attributes[row] for row in kept],
        run=run,
    )
    with tasks.written_to(uri) as folder:
        return bundle.write(
            folder,
            *model,
            gallery,
            config,
            metrics,
            example_texts=texts,
            extras=extras,
            threads=cluster.threads(config.compute),
        )
