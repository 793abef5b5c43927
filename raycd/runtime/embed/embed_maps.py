"""Maps and token states on Ray Data, in shards that the workers write, as those of features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import partial
from math import prod

import numpy as np
import pyarrow as pa

from raycd.config import Config
from raycd.errors import DataError
from raycd.features import READABLE, map_cache
from raycd.features.map_cache import Form
from raycd.features.rows import Batch
from raycd.model import maps
from raycd.model.embed import Batch as Encoded
from raycd.model.embed_maps import EmbedTokens, EncodeMaps
from raycd.model.encoder import Encoder
from raycd.runtime import precision
from raycd.runtime.embed import embed_shards
from raycd.runtime.embed.embed_shards import ShardWork

SHARD_BYTES = 64 * 2**20  # a worker holds a shard, and that twice while it writes it


def write_cache(
    uri: str, need: str, table: pa.Table, encoder: Encoder, size: int, config: Config
) -> Form:
    """Write the cache of a need into the folder or URI `uri`, where the same cache goes on.

    Larger maps are pooled to the side `size`; 0 leaves them. Raises DataError for an image that
    cannot be read.

    Args:
        table: Images (key, path), of `map` or `middle`, or distinct texts (key), of `tokens`.
    """
    config = precision.settled(config)
    [shape] = maps.shapes(encoder, [need], size).values()
    unit = "images" if "path" in table.column_names else "texts"
    form = Form(need, shape, unit == "texts")
    of = {
        "encoder": encoder.fingerprint(),
        "precision": config.embed.precision,
        "need": need,
        "shape": shape,
    }
    most, begin = max(1, SHARD_BYTES // (2 * prod(shape))), partial(map_cache.begin, form=form)
    rows, plan = embed_shards.planned(uri, table, of, config, most=most, begin=begin)
    shard = partial(MapShard, uri, unit, rows, form=form, size=size)
    embed_shards.complete(f"embed {need}", shard, uri, unit, plan, encoder, config)
    return form


@dataclass(frozen=True)
class MapShard(ShardWork):
    """The work on a shard of maps or token states."""

    _: KW_ONLY
    form: Form
    size: int

    def encoding(self, encoder: Encoder) -> Callable[[Batch], Encoded]:
        """Return what encodes a batch; images are decoded before."""
        if self.form.ragged:
            return EmbedTokens(encoder)
        return EncodeMaps(encoder, self.form.name, self.size)

    def write(self, number: int, encoded: Iterator[Encoded], encoder: Encoder) -> int:
        """Write the batches of a shard; return the number of its rows."""
        rows = [row for batch in encoded for row in zip(*map(batch.get, _COLUMNS), strict=True)]
        for key, status, _ in rows:
            if status != READABLE:
                raise DataError(
                    "an image that was embedded cannot be read any more",
                    got=f"{key}: {status}",
                    do="put it back, and run the same command again",
                )
        shape = (-1, *self.form.shape[1:]) if self.form.ragged else self.form.shape
        values = [np.frombuffer(value, np.float16).reshape(shape) for _, _, value in rows]
        map_cache.write_shard(self.uri, number, self.form, [key for key, *_ in rows], values)
        return len(rows)


_COLUMNS = ("key", "status", "value")
