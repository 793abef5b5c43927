"""A service with a gallery of its own, whose file may be spoiled, and whose bundle knows of no
categories.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from raycd import bundle
from raycd.errors import GalleryError
from raycd.gallery_db import GalleryDatabase
from serve.api.health import FRESH_S
from serve.args import ServeArgs
from serve.live.store import GalleryStore
from tests.serve.asking import png, problem


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("file") / "gallery.sqlite"


@pytest.fixture(scope="module")
def plain(tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a bundle of data without categories: all its images are in `all`."""
    loaded, table = bundle.load(tiny_bundle.folder), bundle.read_gallery(tiny_bundle.folder)
    categories = pa.array([["all"]] * len(table), table.schema.field("categories").type)
    table = table.set_column(1, table.schema.field("categories"), categories)
    folder = tmp_path_factory.mktemp("plain") / "bundle"
    bundle.write(folder, loaded.encoder, loaded.head, loaded.head_config, table, loaded.config, {})
    return folder


@pytest.fixture(scope="module")
def own(
    start_replica: Callable[..., str], service_args: ServeArgs, file: Path, plain: Path
) -> Iterator[httpx.Client]:
    url = start_replica(
        service_args.model_copy(update={"gallery": str(file), "bundle": str(plain)}), "own"
    )
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def put(client: httpx.Client, image_id: str, image: Any) -> httpx.Response:
    return client.put(
        f"v1/gallery/{image_id}", files={"image": ("photo.png", png(image), "image/png")}
    )


def test_a_gallery_that_cannot_be_opened_leaves_no_file_open(
    service_args: ServeArgs, tmp_path: Path
) -> None:
    file = tmp_path / "gallery.sqlite"
    args = service_args.model_copy(update={"gallery": str(file)})
    with GalleryDatabase.open(str(file), create=True):
        pass
    opened = GalleryStore.open(args, "ours")
    assert opened is not None
    opened.gallery_db.close()
    file.rename(tmp_path / "away")
    with GalleryDatabase.open(str(file), create=True):
        pass
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(GalleryError):
            GalleryStore.open(args, "ours")
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_is_acknowledged_while_the_file_is_away_and_all_is_there_afterwards(
    own: httpx.Client, file: Path, tiny_bundle: Any
) -> None:
    image = tiny_bundle.images[0]
    version = put(own, "kept", image).json()["version"]
    own.get("v1/gallery", params={"min_version": version})  # the replica has seen it
    moved = file.with_name("moved")
    file.rename(moved)
    for answer in (put(own, "lost", image), own.delete("v1/gallery/kept")):
        assert "removed, replaced" in problem(answer, 503)["detail"]
        assert answer.headers["retry-after"]
    line = json.dumps({"image_id": "lost", "image_base64": base64.b64encode(png(image)).decode()})
    imported = own.post(
        "v1/gallery:import", content=line, headers={"content-type": "application/x-ndjson"}
    )
    assert imported.json()["status"] == 503
    assert "removed, replaced" in problem(own.get("readyz"), 503)["detail"]
    assert own.get("healthz").status_code == 200
    assert own.post("v1/search", json={"image_id": "kept", "text": "is blue"}).status_code == 200
    assert not file.exists()
    moved.rename(file)
    time.sleep(FRESH_S)
    assert own.get("readyz").status_code == 200
    assert put(own, "back", image).json()["version"] == version + 1
    page = own.get(
        "v1/gallery", params={"min_version": version + 1, "newest": "true", "limit": 2}
    ).json()
    assert [item["image_id"] for item in page["items"]] == ["back", "kept"]
    assert own.get("v1/images/kept").status_code == 200, (
        "its picture was not removed by the delete that failed"
    )


def test_a_copy_in_its_place_is_not_taken_for_it(
    own: httpx.Client, file: Path, tiny_bundle: Any
) -> None:
    image = tiny_bundle.images[0]
    assert put(own, "before", image).status_code == 201
    other = file.with_name("other")
    shutil.copyfile(file, other)
    original = file.with_name("original")
    file.rename(original)
    other.rename(file)
    problem(put(own, "lost", image), 503)
    time.sleep(FRESH_S)  # until then /readyz repeats itself; the follower has looked, too
    problem(own.get("readyz"), 503)
    original.rename(file)
    assert put(own, "after", image).status_code == 201
    time.sleep(FRESH_S)
    assert own.get("readyz").status_code == 200


def test_an_image_without_a_category_is_found_with_those_of_a_bundle_that_has_none(
    own: httpx.Client, tiny_bundle: Any
) -> None:
    before = own.get("v1/gallery", params={"category": "all"}).json()["total"]
    version = put(own, "plain", tiny_bundle.images[0]).json()["version"]
    cap = {"image_id": "cap", "image_base64": base64.b64encode(png(tiny_bundle.images[1])).decode()}
    lines = "\n".join(map(json.dumps, (cap, cap | {"image_id": "hat", "category": ["hat"]})))
    answer = own.post(
        "v1/gallery:import", content=lines, headers={"content-type": "application/x-ndjson"}
    )
    version = json.loads(answer.text.splitlines()[-1])["version"]
    page = own.get(
        "v1/gallery", params={"category": "all", "min_version": version, "newest": "true"}
    ).json()
    assert page["total"] == before + 2
    assert {item["image_id"]: item["category"] for item in page["items"][:2]} == {
        "cap": "all",
        "plain": "all",
    }
