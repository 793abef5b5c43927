"""The stages that cache what a head needs beside pooled features: once each, for all such heads.

maps          the last map of every image                     (need `map`)
middle_maps   a middle map of every image                     (need `middle`)
tokens        token states of every text                      (need `tokens`)

Each is skipped where the chosen head does not need it. Its record states the images or texts and
the bytes.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from raycd.config import Config
from raycd.errors import DataError
from raycd.features import READABLE, map_cache
from raycd.model import encoder as encoders
from raycd.model import maps
from raycd.model.encoder import Encoder
from raycd.run import Writing
from raycd.runtime import embed_maps
from raycd.runtime.stages import IMAGES, Context, embedded_texts


def cache_map(context: Context, writing: Writing) -> None:
    """Cache the last map of every readable image."""
    _images(context, writing, "map")


def cache_middle(context: Context, writing: Writing) -> None:
    """Cache the middle map of every readable image."""
    _images(context, writing, "middle")


def cache_tokens(context: Context, writing: Writing) -> None:
    """Cache the token states of all texts that stage 2 and the evaluation use."""
    texts = embedded_texts(context.dataset)
    _write(context, writing, "tokens", texts)


def _images(context: Context, writing: Writing, need: str) -> None:
    missing = dict(context.stored("embed", IMAGES).unreadable())
    paths = {key: path for key, path in context.paths().items() if key not in missing}
    _write(context, writing, need, paths)


def _write(
    context: Context, writing: Writing, need: str, given: dict[str, str | None] | list[str]
) -> None:
    encoder = encoders.load_saved(context.run.local("stage1") / "encoder")
    size = context.config.embed.map_size
    written = write_cache(writing.folder, need, given, encoder, size, context.config)
    unit = "images" if isinstance(given, dict) else "texts"
    writing.record |= {
        "shape": written.shape,
        "counts": {unit: len(given), "bytes": written.bytes},
    }


def write_cache(
    folder: Path,
    need: str,
    given: dict[str, str | None] | list[str],
    encoder: Encoder,
    size: int,
    config: Config,
) -> map_cache.Writer:
    """Write the cache of one need of images, given as id -> path, or of texts, on Ray.

    Larger maps are pooled to the side `size`; 0 leaves them. Raises DataError for an image that
    cannot be read.
    """
    [shape] = maps.shapes(encoder, [need], size).values()
    row_bytes = 2 * prod(shape)
    ragged = not isinstance(given, dict)
    writer = map_cache.Writer(folder, need, shape, ragged=ragged)
    parts = (
        embed_maps.image_maps(given, encoder, need, size, row_bytes, config)
        if isinstance(given, dict)
        else embed_maps.token_states(given, encoder, row_bytes, config)
    )
    for part in parts:
        for row in part.to_pylist():
            if row["status"] != READABLE:
                raise DataError(
                    "an image that was embedded cannot be read any more",
                    got=f"{row['key']}: {row['status']}",
                    do="put it back, and run the same command again",
                )
            value = np.frombuffer(row["value"], np.float16)
            writer.add(
                row["key"], value.reshape(-1, *shape[1:]) if ragged else value.reshape(shape)
            )
    writer.close()
    return writer
