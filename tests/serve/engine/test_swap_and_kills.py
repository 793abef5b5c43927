"""A gallery in Milvus through `kill -9` of the service, and a change to another encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from raycd import bundle
from raycd.api import SearchRequest
from raycd.data.images import load
from raycd.gallery.records import Delete, Put
from raycd.gallery_db import GalleryDatabase
from serve.args import ServeArgs, Wanted
from serve.engine.queries import QueryImage
from serve.live.engine_follower import EngineFollower
from serve.replica import Replica
from serve.shadow_process import Unobserved
from tests.milvus import Milvus
from tests.serve.asking import png
from tests.serve.crash.process import Service, wait_until


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[Milvus]:
    with Milvus(tmp_path / "data") as server:
        yield server


def encode(folder: Path, database: str) -> None:
    """Encode the gallery with a bundle's encoder, as jobs/index.py does."""
    loaded = bundle.load(folder, gallery=False)
    fingerprint = loaded.manifest.encoder.fingerprint
    with GalleryDatabase.open(database) as gallery_db, torch.inference_mode():
        rows = gallery_db.unencoded(fingerprint)
        pixels = torch.stack([loaded.encoder.preprocess(load(row.path)) for row in rows])
        features = loaded.encoder.encode_images(pixels).numpy()
        given = [
            (row.image_id, row.version, feature_D)
            for row, feature_D in zip(rows, features, strict=True)
        ]
        assert gallery_db.add_features(fingerprint, given) == len(rows)


@pytest.mark.slow
def test_another_encoder_has_its_own_collection_before_it_answers(
    tiny_bundle: Any, other_bundle: Path, service_args: ServeArgs, milvus: Milvus, tmp_path: Path
) -> None:
    database = str(tmp_path / "gallery.sqlite")
    picture = str(tiny_bundle.folder.parent / "image-0.png")
    changed = {"gallery": database, "gallery_engine": milvus.url, "lag_s": 0.2}
    replica = Replica(service_args.model_copy(update=changed), name="swap", observer=Unobserved())

    async def first() -> tuple[str, str, int]:
        """Return the nearest image, the encoder and the number of images."""
        engine = replica.engine
        asked, sent = SearchRequest(top_k=1), [QueryImage(image_id="image-7")]
        answer = await replica.answer(engine, await replica.prepare(engine, asked, sent))
        return answer.results[0].image_id, engine.fingerprint, len(engine.view)

    async def run() -> None:
        await replica.change_bundle(Wanted(bundle=str(tiny_bundle.folder)).model_dump())
        follower = replica.engine.follower
        assert isinstance(follower, EngineFollower)
        assert replica.engine.bundle.index.size == 0, "no index is held"
        await asyncio.to_thread(follower.wait_until_current)
        old = await first()
        await asyncio.to_thread(encode, other_bundle, database)
        feature_D = np.ones(replica.engine.bundle.encoder.dim, np.float32)
        late = Put("late", feature_D, path=picture)  # after the job
        with GalleryDatabase.open(database) as gallery_db:
            gallery_db.write([late], old[1])
        await replica.change_bundle(Wanted(bundle=str(other_bundle)).model_dump())
        assert replica.refused is None
        new = await first()  # at once: its collection was made before
        assert (old[0], new[0]) == ("image-7", "image-7")
        assert (old[2], new[2]) == (12, 13)
        assert old[1] != new[1]
        with GalleryDatabase.open(database) as gallery_db:
            gallery_db.write([Delete("image-0")], new[1])
        await replica.change_bundle(Wanted(bundle=str(tiny_bundle.folder)).model_dump())
        assert await first() == (*old[:2], 12)  # also what has changed meanwhile
        replica.engine.close()

    asyncio.run(run())


@pytest.mark.slow
def test_what_was_acknowledged_is_found_after_kills_of_replicas_and_service(
    tiny_bundle: Any, milvus: Milvus, tmp_path: Path
) -> None:
    url, log = str(tmp_path / "gallery.sqlite"), tmp_path / "log"
    options = ("--bundle", str(tiny_bundle.folder), "--gallery", url)
    with Service(*options, "--gallery-engine", milvus.url, log=log) as service:
        acknowledged: dict[str, int] = {}

        def put(name: str) -> None:
            picture = ("x.png", png(tiny_bundle.images[len(acknowledged) % 12]), "image/png")
            sent: Any = {"image": picture}
            found = httpx.put(f"{service.url}/v1/gallery/{name}", files=sent, timeout=60)
            if found.status_code == 201:
                acknowledged[name] = found.json()["version"]

        for number in range(5):
            put(f"before-{number}")
        service.kill_replicas(1)
        wait_until(service.is_whole, "the replica to be replaced")
        for number in range(5):
            put(f"between-{number}")
        service.kill()
        service.start()
        for number in range(3):
            put(f"after-{number}")
        assert len(acknowledged) >= 10
        newest = max(acknowledged.values())

        def searched() -> httpx.Response:
            body = {"text": "is blue", "among": list(acknowledged), "top_k": 50}
            url = f"{service.url}/v1/search?min_version={newest}"
            return httpx.post(url, json=body, timeout=60)

        wait_until(lambda: searched().status_code == 200, "another one to push")
        found = searched()
        assert {one["image_id"] for one in found.json()["results"]} == set(acknowledged)
        assert found.json()["index"]["kind"] == "milvus"
