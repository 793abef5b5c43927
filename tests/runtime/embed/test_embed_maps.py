"""Maps and token states on Ray Data: shards that workers write, whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from PIL import Image

from raycd.config import Config
from raycd.errors import DataError
from raycd.features import map_cache, shards
from raycd.features.map_cache import Extras, Form
from raycd.features.rows import TableRows, write_table
from raycd.features.shards import ShardPlan
from raycd.model import maps
from raycd.model.encoder import Encoder
from raycd.run import local_copy
from raycd.runtime.embed import embed_maps
from raycd.runtime.embed.embed_maps import MapShard, write_cache
from raycd.runtime.embed.embedding import SharedEncoder
from tests.runtime.embed.test_embed_shards import encoded_rows

MakeEncoder = Callable[[], Encoder]
CONFIG = Config.model_validate(
    {"embed": {"batch_size": 4}, "compute": {"embed_workers": 2, "threads": 1}}
)
TEXTS = pa.table({"key": [f"is {'very ' * (n % 5)}blue {n}" for n in range(11)]})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Return fourteen pictures."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = [str(root / f"{n}.png") for n in range(14)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return pa.table({"key": [f"image-{n}" for n in range(14)], "path": paths})


@torch.inference_mode()
def expected_maps(encoder: Encoder, pictures: pa.Table) -> torch.Tensor:
    images = [Image.open(path) for path in pictures["path"].to_pylist()]
    pixels = torch.stack([encoder.preprocess(image) for image in images])
    return maps.encode_images(encoder, pixels, ["map"], 0)[1]["map"]


def test_workers_write_the_maps_of_the_table_in_its_order(
    ray_cluster: None, new_encoder: MakeEncoder, pictures: pa.Table, tmp_path: Path
) -> None:
    uri, encoder = str(tmp_path / "maps"), new_encoder()
    form = write_cache(uri, "map", pictures, encoder, 0, CONFIG)
    assert list(shards.parts(uri)) == [0, 1, 2, 3]  # of four pictures each, by two workers
    found = map_cache.read(tmp_path / "maps")
    keys = pictures["key"].to_pylist()
    assert list(found.slots) == keys
    expected = expected_maps(encoder, pictures)
    torch.testing.assert_close(found.take(keys)["map"], expected, rtol=1e-3, atol=1e-3)
    assert map_cache.stored_bytes(uri, form) == 2 * expected.numel()
    Extras({"map": found}).write(tmp_path / "bundle", keys[::-1])
    assert list(map_cache.read(tmp_path / "bundle" / "map").slots) == keys[::-1]


def test_only_the_shards_of_maps_that_are_not_there_are_done_again(
    ray_cluster: None, new_encoder: MakeEncoder, pictures: pa.Table, tmp_path: Path
) -> None:
    uri, encoder = str(tmp_path), new_encoder()
    work = partial(write_cache, uri, "map", pictures, encoder, 0, CONFIG)
    assert encoded_rows(work) == 14
    before = map_cache.read(tmp_path).take(pictures["key"].to_pylist())["map"]
    os.unlink(shards.parts(uri)[1])  # its values are there: a worker was killed in between
    with pytest.raises(DataError, match=r"cannot be read\n.*part-00001"):
        map_cache.read(tmp_path)
    assert encoded_rows(work) == 4
    assert torch.equal(map_cache.read(tmp_path).take(pictures["key"].to_pylist())["map"], before)
    assert encoded_rows(work) == 0


def test_maps_of_another_encoder_are_done_again_and_leave_nothing(
    ray_cluster: None, new_encoder: MakeEncoder, pictures: pa.Table, tmp_path: Path
) -> None:
    uri, other = str(tmp_path), new_encoder()
    with torch.no_grad():
        for weights in other.clip.parameters():
            weights *= 1.5
    write_cache(uri, "map", pictures, other, 0, CONFIG)
    few, encoder = pictures.slice(0, 3), new_encoder()
    write_cache(uri, "map", few, encoder, 0, CONFIG)
    found = map_cache.read(tmp_path).take(few["key"].to_pylist())["map"]
    torch.testing.assert_close(found, expected_maps(encoder, few), rtol=1e-3, atol=1e-3)
    assert [path.name for path in tmp_path.glob("*.npy")] == ["map-00000.npy"]


def test_token_states_keep_as_many_rows_as_a_text_has_tokens(
    ray_cluster: None, new_encoder: MakeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_maps, "SHARD_BYTES", 3 * 2 * 16 * 16)  # three whole texts
    uri, encoder = str(tmp_path), new_encoder()
    form = write_cache(uri, "tokens", TEXTS, encoder, 0, CONFIG)
    found, texts = map_cache.read(tmp_path), TEXTS["key"].to_pylist()
    assert len(shards.parts(uri)) == 4
    assert list(found.slots) == texts
    with torch.inference_mode():
        _, expected = maps.encode_tokens(encoder, encoder.tokenize(texts))
    taken = found.take(texts)
    assert torch.equal(taken["token_mask"], expected["token_mask"][:, : taken["tokens"].shape[1]])
    states = expected["tokens"][expected["token_mask"]]
    torch.testing.assert_close(taken["tokens"][taken["token_mask"]], states, rtol=1e-3, atol=1e-3)
    assert map_cache.stored_bytes(uri, form) == 2 * states.numel()


def test_nothing_to_cache_is_an_empty_cache(
    ray_cluster: None, new_encoder: MakeEncoder, pictures: pa.Table, tmp_path: Path
) -> None:
    for need, table in (("map", pictures), ("tokens", TEXTS)):
        uri = str(tmp_path / need)
        form = write_cache(uri, need, table.slice(0, 0), new_encoder(), 0, CONFIG)
        assert map_cache.read(tmp_path / need).slots == {}
        assert map_cache.stored_bytes(uri, form) == 0


def test_an_image_that_is_gone_since_it_was_embedded_is_named(
    ray_cluster: None, new_encoder: MakeEncoder, pictures: pa.Table, tmp_path: Path
) -> None:
    paths = pictures["path"].to_pylist()
    paths[5] = str(tmp_path / "gone.png")
    table = pictures.set_column(1, "path", pa.array(paths))
    with pytest.raises(DataError, match=r"cannot be read any more\n.*image-5: missing"):
        write_cache(str(tmp_path), "map", table, new_encoder(), 0, CONFIG)


def test_a_worker_writes_maps_to_a_store(
    s3: dict[str, str],
    ray_cluster: None,
    new_encoder: MakeEncoder,
    pictures: pa.Table,
    tmp_path: Any,
) -> None:
    """It works in this process: Ray's own were started without the store's address."""
    uri, encoder = f"s3://raycd/{tmp_path.name}/maps", new_encoder()
    [shape] = maps.shapes(encoder, ["map"], 0).values()
    form = Form("map", shape, ragged=False)
    write_table(uri, [pictures], pictures.schema)
    map_cache.begin(uri, ShardPlan(2, 14, 8), form)
    shared = SharedEncoder(ray.put(encoder), "fp32", 1)
    given = (uri, "images", TableRows(uri, 8), shared, CONFIG.data, 4, 0)
    for number in range(2):
        MapShard(*given, form=form, size=0)(number, "cpu")
    found = map_cache.read(local_copy(uri, tmp_path))
    keys = pictures["key"].to_pylist()
    expected = expected_maps(encoder, pictures)
    torch.testing.assert_close(found.take(keys)["map"], expected, rtol=1e-3, atol=1e-3)
    assert json.loads((tmp_path / "shards.json").read_text())["shards"] == 2
