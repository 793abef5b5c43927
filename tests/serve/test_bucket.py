"""The service where bundle and pictures are in a bucket."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from PIL import Image
from s3fs import S3FileSystem

from raycd import bundle
from tests.serve.conftest import running_replica


def test_a_bundle_and_its_pictures_are_served_from_a_bucket(
    s3: dict[str, str],
    ray_cluster: None,
    tiny_bundle: Any,
    service_args: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path_of_test, store = f"raycd/{tmp_path.name}", S3FileSystem(use_listings_cache=False)
    loaded, table = bundle.load(tiny_bundle.folder), bundle.read_gallery(tiny_bundle.folder)
    names = {
        path: f"{path_of_test}/pictures/{Path(path).name}" for path in table["path"].to_pylist()
    }
    for path, name in names.items():
        store.put_file(path, name)
    column = table.schema.get_field_index("path")
    far = pa.array([f"s3://{name}" for name in names.values()], table.schema.field(column).type)
    parts = loaded.encoder, loaded.head, loaded.head_config
    gallery = table.set_column(column, table.schema.field(column), far)
    bundle.write(tmp_path / "bundle", *parts, gallery, loaded.config, {})
    store.put(f"{tmp_path}/bundle/", f"{path_of_test}/bundle/", recursive=True)

    args = service_args.model_copy(update={"bundle": f"s3://{path_of_test}/bundle"})
    with running_replica(args, "bucket") as url, httpx.Client(base_url=url, timeout=60) as client:
        asked = {"image_id": "image-3", "text": "is blue", "top_k": 3}
        answer = client.post("/v1/search", json=asked)
        assert answer.status_code == 200, answer.text
        for result in answer.json()["results"]:
            shown = client.get(f"/{result['thumbnail']}")
            assert shown.status_code == 200, shown.text
            assert Image.open(io.BytesIO(shown.content)).size == (40, 48)
        store.rm_file(f"{path_of_test}/pictures/image-0.png")
        gone = client.get("/v1/images/image-0?size=original")
        assert gone.status_code == 404, gone.text
