"""The stages that cache what a head needs beside pooled features: once each, for all such heads.

maps          the last map of every image                     (need `map`)
middle_maps   a middle map of every image                     (need `middle`)
tokens        token states of every text                      (need `tokens`)

Each is skipped where the chosen head does not need it. Its record states the images or texts and
the bytes.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from raycd.features import map_cache
from raycd.model import encoder as encoders
from raycd.run import Writing
from raycd.runtime.embed import embed_maps
from raycd.runtime.stages.context import IMAGES, Context, embedded_texts, image_table


def cache_map(context: Context, writing: Writing) -> None:
    """Cache the last map of every readable image."""
    _images(context, writing, "map")


def cache_middle(context: Context, writing: Writing) -> None:
    """Cache the middle map of every readable image."""
    _images(context, writing, "middle")


def cache_tokens(context: Context, writing: Writing) -> None:
    """Cache the token states of all texts that stage 2 and the evaluation use."""
    texts = pa.array(embedded_texts(context.dataset), pa.string())
    _write(context, writing, "tokens", pa.table({"key": texts}))


def _images(context: Context, writing: Writing, need: str) -> None:
    missing = [key for key, _ in context.stored("embed", IMAGES).unreadable()]
    table = image_table(context.dataset)
    lost = pc.is_in(table["key"], value_set=pa.array(missing, pa.string()))
    _write(context, writing, need, table.filter(pc.invert(lost)))


def _write(context: Context, writing: Writing, need: str, table: pa.Table) -> None:
    encoder = encoders.load_saved(context.run.local("stage1") / "encoder")
    size = context.config.embed.map_size
    form = embed_maps.write_cache(writing.shared, need, table, encoder, size, context.config)
    unit = "texts" if form.ragged else "images"
    writing.record |= {
        "shape": form.shape,
        "counts": {unit: len(table), "bytes": map_cache.stored_bytes(writing.shared, form)},
    }
