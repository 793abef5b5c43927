"""Maps and token states on Ray Data: as `raycd.runtime.embedding`, one block of them at a time.

Nothing but the blocks that are under way is in the object store, and nothing but a shard in the
memory of the process that writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from raycd.config import Config
from raycd.model.embed import Batch
from raycd.model.embed_maps import EmbedMaps, EmbedTokens, EncodeMaps
from raycd.model.encoder import Encoder
from raycd.runtime import cluster, datasets
from raycd.runtime.embedding import BLOCK, SharedEncoder, actors, decoders

BLOCK_BYTES = 64 * 2**20  # of a task's values

_Step = Callable[[Encoder], Callable[[Batch], Batch]]


def image_maps(
    paths: Mapping[str, str | None],
    encoder: Encoder,
    need: str,
    size: int,
    row_bytes: int,
    config: Config,
) -> Iterator[pa.Table]:
    """Yield rows (key, status, value) of images, given as id -> path, in any order.

    Args:
        need: `map` or `middle`.
        size: The side that larger maps are pooled to; 0 leaves them.
        row_bytes: Size of one value.
    """
    table = pa.table(
        {
            "key": pa.array(list(paths), pa.string()),
            "path": pa.array(list(paths.values()), pa.string()),
        }
    )
    cpu = partial(EmbedMaps, data=config.data, need=need, size=size)
    gpu = partial(EncodeMaps, need=need, size=size)
    return _rows(f"embed {need}", "images", table, (cpu, gpu), encoder, row_bytes, config)


def token_states(
    texts: Sequence[str], encoder: Encoder, row_bytes: int, config: Config
) -> Iterator[pa.Table]:
    """Yield rows (key, status, value) of distinct texts, in any order."""
    table = pa.table({"key": pa.array(list(texts), pa.string())})
    steps = (EmbedTokens, EmbedTokens)
    return _rows("embed tokens", "texts", table, steps, encoder, row_bytes, config)


def _rows(
    stage: str,
    unit: str,
    table: pa.Table,
    steps: tuple[_Step, _Step],
    encoder: Encoder,
    row_bytes: int,
    config: Config,
) -> Iterator[pa.Table]:
    """Yield what the first step makes of the table on CPUs, or the second one on GPUs."""
    workers = cluster.fitting(
        config.compute.embed_workers, cluster.worker_resources(config.compute)
    )
    most = max(1, BLOCK_BYTES // row_bytes)
    size = min(most, max(config.embed.batch_size, min(BLOCK, len(table) // (4 * workers))))
    blocks = datasets.blocks_of(table, size)
    shared = SharedEncoder(
        ray.put(encoder), config.embed.precision, cluster.threads(config.compute, workers)
    )
    how: list[tuple[Any, dict[str, Any]]]
    on_cpus, on_gpus = steps
    if cluster.uses_gpu(config.compute):
        run = actors(shared, workers, config)
        how = [(_OnGpu, run | {"fn_constructor_args": (shared, on_gpus)})]
        if "path" in table.column_names:
            how.insert(0, decoders(encoder, workers, config))
    else:
        tasks = {
            "fn_kwargs": {"step": on_cpus, "shared": shared, "size": config.embed.batch_size},
            "compute": ray.data.TaskPoolStrategy(size=min(workers, len(blocks))),
            "num_cpus": config.compute.cpus_per_worker,
        }
        how = [(_on_cpu, tasks)]
    yield from datasets.mapped(stage, unit, blocks, *how)


def _on_cpu(block: Batch, step: _Step, shared: SharedEncoder, size: int) -> pa.Table:
    """Encode a block in batches of `size`, as a task."""
    encode = step(shared.get("cpu"))
    return pa.concat_tables(
        [
            _table(encode({name: column[first : first + size] for name, column in block.items()}))
            for first in range(0, len(block["key"]), size)
        ]
    )


class _OnGpu:
    """An actor on a GPU."""

    def __init__(self, shared: SharedEncoder, step: _Step) -> None:
        self.step = step(shared.get("cuda"))

    def __call__(self, batch: Batch) -> pa.Table:
        return _table(self.step(batch))


def _table(batch: Batch) -> pa.Table:
    return pa.table(
        {
            "key": pa.array(list(batch["key"]), pa.string()),
            "status": pa.array(list(batch["status"]), pa.string()),
            "value": pa.array(list(batch["value"]), pa.large_binary()),
        }
    )
