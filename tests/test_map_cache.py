from pathlib import Path

import numpy as np
import pytest
import torch

from raycd import map_cache
from raycd.errors import DataError
from raycd.map_cache import TOKEN_MASK, Writer

SHAPE = (3, 2, 2)


def values(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float16)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Write seven maps of 24 bytes into shards of two."""
    writer = Writer(tmp_path / "maps", "map", SHAPE, shard_bytes=48)
    for number, value in enumerate(values(7)):
        writer.add(f"image-{number}", value)
    writer.close()
    assert writer.bytes == 7 * 24
    return tmp_path / "maps"


def test_maps_are_read_by_key_in_the_order_asked_for(cache: Path) -> None:
    found = map_cache.read(cache)
    keys = ["image-6", "image-0", "image-3", "image-0"]
    taken = found.take(keys)
    assert list(taken) == ["map"]
    assert taken["map"].dtype == torch.float32
    np.testing.assert_array_equal(taken["map"], values(7)[[6, 0, 3, 0]].astype(np.float32))
    assert "image-6" in found
    assert "image-7" not in found


def test_a_shard_is_a_float16_file_that_is_mapped_and_not_read(cache: Path) -> None:
    shards = sorted(path.name for path in cache.glob("*.npy"))
    assert shards == [f"map-{number:05d}.npy" for number in range(4)]
    assert np.load(cache / shards[0]).shape == (2, *SHAPE)
    for shard in map_cache.read(cache).shards:
        assert isinstance(shard, np.memmap)
        assert shard.dtype == np.float16


def test_an_open_cache_outlives_its_files(cache: Path) -> None:
    found = map_cache.read(cache)
    for path in cache.iterdir():
        path.unlink()
    assert found.take(["image-5"])["map"].shape == (1, *SHAPE)


def test_tokens_are_kept_without_padding_and_padded_to_the_longest_of_a_batch(
    tmp_path: Path,
) -> None:
    rows = np.arange(24, dtype=np.float16).reshape(8, 3)
    writer = Writer(tmp_path, "tokens", (16, 3), ragged=True, shard_bytes=24)
    for key, value in {"one": rows[:1], "five": rows[1:6], "two": rows[6:]}.items():
        writer.add(key, value)
    writer.close()
    assert writer.bytes == 8 * 3 * 2
    found = map_cache.read(tmp_path)
    taken = found.take(["two", "one"])
    assert taken["tokens"].tolist() == [rows[6:].tolist(), [rows[0].tolist(), [0, 0, 0]]]
    assert taken[TOKEN_MASK].tolist() == [[True, True], [True, False]]
    assert found.take(["five"])["tokens"].shape == (1, 5, 3)


def test_an_empty_cache_has_no_keys(tmp_path: Path) -> None:
    Writer(tmp_path, "map", SHAPE).close()
    found = map_cache.read(tmp_path)
    assert found.places == {}
    assert found.take([])["map"].shape == (0, *SHAPE)


def test_a_value_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        Writer(tmp_path, "map", SHAPE).add("image", np.zeros((3, 2, 1), np.float16))


@pytest.mark.parametrize("damage", ["no folder", "no shard", "cut shard", "no index"])
def test_a_cache_that_is_not_whole_is_one_clear_error(cache: Path, damage: str) -> None:
    if damage == "no shard":
        (cache / "map-00003.npy").unlink()
    elif damage == "cut shard":
        (cache / "map-00001.npy").write_bytes((cache / "map-00001.npy").read_bytes()[:-8])
    elif damage == "no index":
        (cache / map_cache.KEYS).unlink()
    folder = cache.parent / "absent" if damage == "no folder" else cache
    with pytest.raises(DataError, match=r"cached maps in .* cannot be read"):
        map_cache.read(folder)
