from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raycd.config import Config
from raycd.model.embed import EmbedImages
from raycd.model.encoder import Encoder
from raycd.runtime.embed import embedding

MakeEncoder = Callable[[], Encoder]
CONFIG = Config.model_validate(
    {"embed": {"batch_size": 4}, "compute": {"embed_workers": 2, "threads": 1}}
)


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str | None]:
    """Return thirty images, of which every seventh is broken and one was never found."""
    rng = np.random.default_rng(0)
    found: dict[str, str | None] = {}
    for n in range(30):
        found[f"image-{n}"] = str(tmp_path / f"{n}.png")
        Image.fromarray(rng.integers(0, 256, (40, 33 + n, 3), dtype=np.uint8)).save(
            tmp_path / f"{n}.png"
        )
        if n % 7 == 0:
            (tmp_path / f"{n}.png").write_bytes(b"not an image")
    return {**found, "lost": None}


def vectors(table: pa.Table) -> np.ndarray:
    return np.array(table["feature"].to_pylist(), np.float32)


def test_image_features_equal_the_cores_in_their_order(
    ray_cluster: None, new_encoder: MakeEncoder, paths: dict[str, str | None]
) -> None:
    table = embedding.embed_images(paths, new_encoder(), CONFIG)
    batch = {"key": list(paths), "path": list(paths.values())}
    expected = EmbedImages(new_encoder(), CONFIG.data)(batch)
    assert table["key"].to_pylist() == list(paths)
    assert table["status"].to_pylist() == list(expected["status"])
    assert table["status"].to_pylist().count("not_an_image") == 5
    assert table["status"].to_pylist()[-1] == "missing"
    np.testing.assert_allclose(vectors(table), expected["feature"], atol=1e-5)
    assert vectors(table).any(axis=1).sum() == 25


def test_nothing_to_embed_is_an_empty_table(ray_cluster: None, new_encoder: MakeEncoder) -> None:
    table = embedding.embed_images({}, new_encoder(), CONFIG)
    assert table.num_rows == 0
    assert table.schema.names == ["key", "status", "feature"]
    assert table.schema.field("feature").type == pa.list_(pa.float32(), 16)
