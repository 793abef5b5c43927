import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from raycd.errors import DataError
from raycd.features import map_cache
from raycd.features.map_cache import TOKEN_MASK, CacheWriter, Extras

SHAPE = (3, 2, 2)


def values(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float16)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Write seven maps of 24 bytes into shards of two."""
    writer = CacheWriter(tmp_path / "maps", "map", SHAPE, shard_bytes=48)
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_maps_are_copied_to_a_card_without_waiting_for_it(cache: Path) -> None:
    found = map_cache.read(cache)
    torch.cuda.set_sync_debug_mode("error")
    try:
        taken = found.take(["image-6", "image-0"], "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(taken["map"].cpu(), found.take(["image-6", "image-0"])["map"])


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


def test_an_open_cache_is_not_sent_to_another_process(cache: Path) -> None:
    with pytest.raises(TypeError, match="send its path or URI"):
        pickle.dumps(Extras({"map": map_cache.read(cache)}))


def test_extras_are_told_apart_by_image_and_text(cache: Path, tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "tokens", "tokens", (16, 3), ragged=True)
    writer.add("is blue", np.ones((4, 3), np.float16))
    writer.close()
    extras = Extras({"map": map_cache.read(cache), "tokens": map_cache.read(tmp_path / "tokens")})
    assert extras.shapes() == {"map": [*SHAPE], "tokens": [16, 3]}
    assert list(extras.of_images(["image-1"])) == ["map"]
    assert extras.of_images(["image-1"], only=frozenset()) == {}
    assert sorted(extras.of_texts(["is blue"])) == ["token_mask", "tokens"]
    extras.write(tmp_path / "bundle", ["image-4", "image-1"])
    copy = map_cache.read(tmp_path / "bundle" / "map")
    assert list(copy.slots) == ["image-4", "image-1"]
    assert torch.equal(copy.take(["image-1"])["map"], extras.of_images(["image-1"])["map"])
    assert not (tmp_path / "bundle" / "tokens").exists()


def test_tokens_are_kept_without_padding_and_padded_to_the_longest_of_a_batch(
    tmp_path: Path,
) -> None:
    rows = np.arange(24, dtype=np.float16).reshape(8, 3)
    writer = CacheWriter(tmp_path, "tokens", (16, 3), ragged=True, shard_bytes=24)
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
    CacheWriter(tmp_path, "map", SHAPE).close()
    found = map_cache.read(tmp_path)
    assert found.slots == {}
    assert found.take([])["map"].shape == (0, *SHAPE)


def test_a_value_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        CacheWriter(tmp_path, "map", SHAPE).add("image", np.zeros((3, 2, 1), np.float16))


DAMAGES = ["no folder", "no shard", "cut shard", "short shard", "other kind", "deep", "no index"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_cache_that_is_not_whole_is_one_clear_error(cache: Path, damage: str) -> None:
    if damage == "no shard":
        (cache / "map-00003.npy").unlink()
    elif damage == "cut shard":
        (cache / "map-00001.npy").write_bytes((cache / "map-00001.npy").read_bytes()[:-8])
    elif damage == "short shard":
        np.save(cache / "map-00001.npy", np.zeros((1, *SHAPE), np.float16))
    elif damage == "other kind":
        np.save(cache / "map-00001.npy", np.zeros((2, *SHAPE), np.float32))
    elif damage == "deep":
        (cache / map_cache.SHAPE).write_text("[" * 100_000)
    elif damage == "no index":
        (cache / map_cache.KEYS).unlink()
    folder = cache.parent / "absent" if damage == "no folder" else cache
    with pytest.raises(DataError, match=r"cached maps in .* cannot be read"):
        map_cache.read(folder)
