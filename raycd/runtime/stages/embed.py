"""The stages that bring an encoder and its features: encoder, zero_shot, embed."""

from __future__ import annotations

import hashlib
import os
import posixpath

import pyarrow as pa

from raycd import progress
from raycd.data.folder import is_local
from raycd.data.missing import ImageReport
from raycd.errors import DataError, RunError
from raycd.features.stored import Stored
from raycd.model import encoder as encoders
from raycd.model import maps
from raycd.model.encoder import Encoder
from raycd.run import Writing
from raycd.runtime import cluster
from raycd.runtime.embed import embed_shards
from raycd.runtime.stages import beginning
from raycd.runtime.stages.context import (
    IMAGES,
    TEXTS,
    Context,
    embedded_texts,
    image_table,
    texts_of,
)
from raycd.runtime.train import decoding

LISTED = "missing_images.json"
_KEYS = 1 << 16  # that are hashed at once


def encoder(context: Context, writing: Writing) -> None:
    """Load the pre-trained CLIP, and save it in the one form that the other stages read."""
    source = beginning.source(context.config)  # what may change while it is read is read again
    loaded, name = beginning.load_encoder(context.config)
    loaded.save(writing.folder / "encoder")
    beginning.keep_head(context.config, writing.folder)
    writing.record |= {"encoder": loaded.fingerprint(), "dim": loaded.dim, "model": name}
    writing.record[beginning.SOURCE] = source
    writing.record["composes"] = loaded.composes
    writing.record["gives"] = maps.given(loaded)


def zero_shot(context: Context, writing: Writing) -> None:
    """Embed every image, which finds missing and broken ones, and the evaluation texts of val."""
    cluster.check_least(context.config.compute)  # now, and not when hours have passed
    decoding.check_room(context.config)
    used = encoders.load_saved(context.run.local("encoder") / "encoder")
    images, missing = embed_all(context, writing, used, texts_of(context.own, ["val"]))
    writing.record["missing"] = missing.to_dict()
    listed = context.run.path(LISTED)
    if len(missing):
        context.run.write_chunks(LISTED, images.listing(missing))
        reasons = ", ".join(f"{count} {reason}" for reason, count in missing.counts().items())
        progress.say(f"{len(missing)} images are missing or broken: {reasons}; listed in {listed}")
    else:
        context.run.discard(LISTED)  # of an earlier state of the data set
    try:
        missing.check(len(context.own.images), context.config.data.max_missing, listed=listed)
    except DataError:
        images.forget_unreadable()  # else the same command would not read them again
        raise


def check_reached(context: Context, images: Stored, missing: ImageReport) -> None:
    """Raise RunError where this machine has images that those that embed have not found.

    They are read again then.
    """
    lost = {one for one, reason in missing.reasons.items() if reason == "missing"}
    if not lost:
        return
    columns = (context.own.images[name].to_pylist() for name in ("image_id", "path"))
    here = [
        path
        for image_id, path in zip(*columns, strict=True)
        if image_id in lost and path and is_local(path) and _is_readable(path)
    ]
    if here:
        images.forget_unreadable()
        raise RunError(
            "images that are here are not where they were to be embedded",
            got=f"{here[0]}{', ...' if len(here) > 1 else ''}",
            expected="a data.root that every machine of the cluster reaches under this path",
            do="mount it on all of them, or put it into a bucket; the same command goes on",
        )


def _is_readable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.R_OK)


def embed(context: Context, writing: Writing) -> None:
    """Embed all images and all text variants with the fine-tuned encoder (eq. 8).

    An encoder that stage 1 has left as it was has embedded the images already.
    """
    used = encoders.load_saved(context.run.local("stage1") / "encoder")
    earlier = context.run.path(context.embedded_before, IMAGES)
    images, _ = embed_all(context, writing, used, embedded_texts(context.dataset), earlier)
    writing.record["rows"] = _hash_of(images.keys())


def embed_all(
    context: Context, writing: Writing, used: Encoder, texts: list[str], earlier: str = ""
) -> tuple[Stored, ImageReport]:
    """Embed all images and `texts` with an encoder; `earlier` has maybe done these images.

    Returns the features of the images, and which have none.
    """
    paths, keys = image_table(context.own), pa.table({"key": pa.array(texts, pa.string())})
    at = {unit: posixpath.join(writing.shared, unit) for unit in (IMAGES, TEXTS)}
    images = embed_shards.embed_table(
        *(at[IMAGES], IMAGES, paths, used, context.config), earlier=earlier
    )
    embed_shards.embed_table(at[TEXTS], TEXTS, keys, used, context.config)
    missing = images.report()
    check_reached(context, images, missing)
    writing.record["counts"] = {
        "images": len(context.own.images),
        "texts": len(texts),
        "missing": len(missing),
    }
    return images, missing


def _hash_of(keys: pa.StringArray) -> str:
    """Return a hash of keys in their order, by which a table of their row numbers is known."""
    digest = hashlib.sha256()
    for start in range(0, len(keys), _KEYS):
        digest.update("\0".join([*keys[start : start + _KEYS].to_pylist(), ""]).encode())
    return digest.hexdigest()
