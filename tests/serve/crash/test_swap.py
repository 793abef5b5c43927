"""The change to another bundle, back, and to none that is bad, while clients write and search: no
request fails.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient
from ray import serve as ray_serve

from raycd import bundle
from raycd.client import Client
from raycd.config import Config
from raycd.durable import sha256
from raycd.gallery_db import GalleryDatabase
from raycd.runtime.record.tracking import Tracker
from raycd.search.query import Query
from raycd.search.searcher import Searcher
from serve.args import ServeArgs, Wanted
from serve.args.replicas import Replicas
from serve.start.running import application
from tests.serve.asking import png
from tests.serve.crash import load as clients
from tests.serve.crash.audit import Answer, audit, same
from tests.serve.crash.load import Gallery, Importer, Load, Writer
from tests.serve.crash.process import Service, wait_until
from tests.serve.crash.truth import Image

CATEGORY = "dress"  # of images that nobody writes, so that a search among them has one answer


class Swapped:
    """A service of two replicas that changes its bundle, and what it must answer with each."""

    def __init__(self, start: Callable[..., str], args: ServeArgs, image: Any) -> None:
        self.args, self.image = args, image
        self.url = start(args, "swap")
        self.expected: dict[str, Answer] = {}
        """By the prefix of an encoder's fingerprint."""

    def change(self, folder: Path) -> None:
        """As `serve deploy` does with another `user_config`; returns when both replicas have
        changed, or refused.
        """
        ray_serve.run(
            application(self.args, Wanted(bundle=str(folder))), name="swap", route_prefix="/swap"
        )

    def expect(self, folder: Path) -> str:
        """Learn what a bundle answers; returns the fingerprint that its answers bear."""
        searcher = Searcher(bundle.load(folder))
        query = Query(self.image, "is blue", top_k=10, allowed=searcher.view.allowed([CATEGORY]))
        [results] = searcher.search([query])
        fingerprint = searcher.bundle.manifest.encoder.fingerprint[:12]
        self.expected[fingerprint] = [(found.image_id, found.score) for found in results]
        return fingerprint

    def bundles(self) -> list[tuple[str, str | None]]:
        """Return the digest and the refusal of both replicas, as many answers as it takes to have
        asked both.
        """
        infos = [httpx.get(f"{self.url}/v1/info", timeout=60).json() for _ in range(12)]
        return [(info["bundle"]["digest"], info["bundle"].get("refused")) for info in infos]


def searcher_of(swapped: Swapped) -> type[clients.Client]:
    """Return a client whose every answer must be of one model and the index of its features."""

    class Asker(clients.Client):
        fields = {"text": (None, "is blue"), "category": (None, CATEGORY), "top_k": (None, "10")}  # noqa: RUF012
        files: Any = {"image": ("image.png", png(swapped.image), "image/png"), **fields}  # noqa: RUF012

        async def turn(self) -> None:
            response = await self.http.post("/v1/search", files=self.files)
            assert response.status_code == 200, response.text
            said = response.json()
            answer = [(found["image_id"], found["score"]) for found in said["results"]]
            same(answer, swapped.expected[said["model"]["fingerprint"]])
            self.load.searched += 1

    return Asker


@pytest.mark.slow
def test_no_request_fails_while_bundles_are_changed_and_refused(
    start_service: Callable[..., str],
    service_args: ServeArgs,
    tiny_bundle: Any,
    gallery: Gallery,
    other_bundle: Path,
    tmp_path: Path,
) -> None:
    database = str(tmp_path / "gallery.sqlite")
    args = service_args.model_copy(update={"gallery": database, "replicas": Replicas(min=2, max=2)})
    swapped = Swapped(start_service, args, tiny_bundle.images[3])
    first, other = swapped.expect(tiny_bundle.folder), swapped.expect(other_bundle)
    assert first != other
    digests = {
        folder: bundle.verify(folder).digest[:12] for folder in (tiny_bundle.folder, other_bundle)
    }
    load = Load(
        swapped.url, gallery, {Writer: 3, Importer: 1, searcher_of(swapped): 3}, pictures=1.0
    )
    with load.running():
        load.advance(40)
        for folder in (other_bundle, tiny_bundle.folder, other_bundle):
            swapped.change(folder)
            assert set(swapped.bundles()) == {(digests[folder], None)}
            load.advance(40)
        for bad in (
            _flipped(other_bundle, tmp_path / "flipped"),
            _of_another_size(tiny_bundle.folder, tmp_path / "size"),
            _of_no_answer(other_bundle, tmp_path / "nan"),
        ):
            swapped.change(bad)
            [(digest, refused)] = set(swapped.bundles())
            assert digest == digests[other_bundle]
            assert refused is not None
            assert "damaged" in refused
            load.advance(40)
    assert not load.unanswered
    with Client(swapped.url) as client, GalleryDatabase.open(database) as gallery_db:
        audit(client, gallery_db, load.ledger, bundle.verify(other_bundle).encoder.fingerprint)


@pytest.mark.slow
def test_replicas_follow_an_alias_and_later_ones_serve_what_the_others_do(
    tiny_bundle: Any, other_bundle: Path, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = _flipped(other_bundle, tmp_path / "flipped")
    champion = Champion(tmp_path / "runs", [tiny_bundle.folder, other_bundle, bad])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", champion.uri)
    monkeypatch.setenv("HOME", str(tmp_path))  # what is fetched is kept there
    digest = bundle.verify(other_bundle).digest[:12]
    champion.be(1)
    arguments = (
        "--bundle",
        "models:/raycd@champion",
        "--gallery",
        str(tmp_path / "gallery.sqlite"),
    )
    with Service(*arguments, log=log) as service, Client(service.url) as client:
        first = client.put("new", png(tiny_bundle.images[0]))
        champion.be(2)
        assert f"digest {digest}" in service.look_again()
        champion.be(3)
        said = service.look_again()
        assert f"digest {digest}" in said
        assert "refused: it is damaged" in said
        service.kill_replicas()
        wait_until(service.is_whole, "new replicas")
        for _ in range(8):
            serving = client.info().bundle
            assert serving is not None
            assert (serving.digest, serving.refused) == (digest, None)
        found = client.search(image_id="new", top_k=2, min_version=first.version).results
        assert {result.image_id for result in found} == {"image-0", "new"}  # the same picture
        champion.be(1)
        assert f"digest {bundle.verify(tiny_bundle.folder).digest[:12]}" in service.look_again()
    text = log.read_text()
    assert "Traceback" not in text
    assert str(tmp_path) not in text


class Champion:
    """An alias in a registry of some bundles, the first of which is version 1."""

    def __init__(self, runs: Path, folders: list[Path]) -> None:
        with Tracker.open(Config(preset="demo"), runs) as tracker:
            for folder in folders:
                tracker.register(folder)
        self.uri = f"sqlite:///{runs / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def be(self, version: int) -> None:
        """Let the alias name that version."""
        self._client.set_registered_model_alias("raycd", "champion", str(version))


def _flipped(folder: Path, target: Path) -> Path:
    """Return a copy with one bit changed."""
    shutil.copytree(folder, target)
    weights = target / "encoder" / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return target


def _of_another_size(folder: Path, target: Path) -> Path:
    """Return a copy whose head, true to its hash, is of another feature size."""
    shutil.copytree(folder, target)
    head = target / "head" / "head.json"
    settings = json.loads(head.read_text())
    head.write_text(json.dumps(settings | {"dim": settings["dim"] + 1}))
    return _sealed(target, head)


def _of_no_answer(folder: Path, target: Path) -> Path:
    """Return a copy whose head, true to its hash, gives no numbers."""
    shutil.copytree(folder, target)
    weights = target / "head" / "head.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file(
        {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}, weights
    )
    return _sealed(target, weights)


def _sealed(folder: Path, changed: Path) -> Path:
    """Let the bundle's manifest say what a changed file is now."""
    path = folder / "manifest.json"
    manifest = bundle.Manifest.model_validate_json(path.read_text())
    name = changed.relative_to(folder).as_posix()
    manifest = manifest.model_copy(update={"files": manifest.files | {name: sha256(changed)}})
    path.write_text(manifest.model_copy(update={"digest": manifest.own_digest()}).model_dump_json())
    return folder


@pytest.mark.slow
def test_an_encoder_that_cannot_encode_every_image_is_refused(
    start_service: Callable[..., str],
    service_args: ServeArgs,
    tiny_bundle: Any,
    gallery: Gallery,
    other_bundle: Path,
    tmp_path: Path,
) -> None:
    args = service_args.model_copy(update={"gallery": str(tmp_path / "gallery.sqlite")})
    swapped = Swapped(start_service, args, tiny_bundle.images[3])
    body = Image("feature-alone", pictured=False).body(gallery.encoder, gallery.dim)
    assert (
        httpx.put(f"{swapped.url}/v1/gallery/feature-alone", json=body, timeout=60).status_code
        == 201
    )
    swapped.change(other_bundle)
    wait_until(lambda: all(refused for _, refused in swapped.bundles()), "the refusal")
    assert all(
        "has not encoded the whole gallery" in str(refused) for _, refused in swapped.bundles()
    )
    found = httpx.post(
        f"{swapped.url}/v1/search", json={"image_id": "feature-alone", "top_k": 1}, timeout=60
    ).json()
    assert [result["image_id"] for result in found["results"]] == ["feature-alone"]
    assert httpx.delete(f"{swapped.url}/v1/gallery/feature-alone", timeout=60).status_code == 200
    swapped.change(tiny_bundle.folder)
    assert set(swapped.bundles()) == {(bundle.verify(tiny_bundle.folder).digest[:12], None)}
