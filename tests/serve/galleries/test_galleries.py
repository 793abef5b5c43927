"""Several galleries in one service: each answers under its name, and from nothing of the others."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from raycd.client import AsyncClient, Client, ServiceError
from raycd.client.__main__ import main
from raycd.errors import ConfigError, WeightsError
from serve import app, keys
from serve.args import ServeArgs, Wanted
from serve.galleries import Galleries
from serve.shadow_process import Unobserved
from tests.serve.api.test_guard import bearer
from tests.serve.asking import png, problem

SHOES = "/v1/galleries/shoes"


@pytest.fixture(scope="module")
def client(url: str, key: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=bearer(key), timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def shoes(url: str, key: str) -> Iterator[Client]:
    with Client(url, api_key=key, gallery="shoes", timeout=60) as client:
        yield client


def digests(client: httpx.Client) -> dict[str, str]:
    """Return the bundle of each gallery."""
    return {one["name"]: one["bundle"] for one in client.get("/v1/galleries").json()["galleries"]}


def test_keys_of_galleries_that_are_not_served_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    keys.add(file, "all", "read")
    keys.add(file, "bob", "read", ["hats", "default", "shoos"])
    args = ServeArgs.model_validate({"galleries": {"hats": {"bundle": "x"}}, "api_keys": str(file)})
    app.warn_of_keys(args)
    warning = "warning: the API key bob is for galleries that are not served: shoos\n"
    assert capsys.readouterr().err == warning


def test_the_galleries_are_listed_with_the_default_one_first(client: httpx.Client) -> None:
    listed = client.get("/v1/galleries").json()["galleries"]
    assert [(one["name"], one["path"], one["live"]) for one in listed] == [
        ("default", "v1", False),
        ("absent", "v1/galleries/absent", False),
        ("shoes", "v1/galleries/shoes", True),
        ("hats", "v1/galleries/hats", False),
    ]
    assert len(set(digests(client).values())) == 4


def test_one_that_could_not_be_loaded_says_so_and_the_others_answer(client: httpx.Client) -> None:
    absent = client.get("/v1/galleries").json()["galleries"][1]
    assert absent["bundle"] is None
    assert "damaged" in absent["refused"]
    for path in ("info", "readyz"):
        response = client.get(f"/v1/galleries/absent/{path}")
        assert "'absent' is not loaded" in problem(response, 503)["detail"]
        assert int(response.headers["Retry-After"]) >= 1


def test_one_that_cannot_be_loaded_is_tried_again_once_at_a_time(
    service_args: ServeArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.galleries.AGAIN_S", 0.2)
    settings = {"galleries": {"absent": {"bundle": "/absent", "gallery": "none"}}}
    args = ServeArgs.model_validate(service_args.model_dump() | settings)
    tried, let_go = [], threading.Event()

    def folder(bundle: str) -> Path:
        tried.append(bundle)
        let_go.wait(30)
        raise WeightsError("absent")

    async def run() -> None:
        galleries = Galleries(args, name="again", observer=lambda _: Unobserved())
        await galleries.change_bundles(Wanted(bundle=args.bundle).model_dump())
        monkeypatch.setattr("serve.engine.swap.folder", folder)
        for _ in range(3):
            await asyncio.sleep(0.25)
            await asyncio.gather(galleries.check_canaries(), galleries.check_canaries())
        let_go.set()
        retrying = galleries._retrying
        assert retrying is not None
        await retrying
        await galleries.check_canaries()  # the try took longer than the time between two
        assert galleries._retrying is retrying

    asyncio.run(run())
    assert tried == ["/absent"]


@pytest.mark.parametrize("name", ["default", "shoes", "hats"])
def test_each_gallery_answers_from_its_own_bundle(
    client: httpx.Client, tiny_bundle: Any, name: str
) -> None:
    root, bundle = f"/v1/galleries/{name}", digests(client)[name]
    info = client.get(f"{root}/info").json()
    assert (info["gallery"], info["model"]["bundle"]) == (name, bundle)
    files = {"image": ("photo.png", png(tiny_bundle.images[0]), "image/png")}
    found = client.post(f"{root}/search", files=files, data={"text": "is blue"})
    assert found.headers["Raycd-Model"] == bundle
    result = found.json()["results"][0]
    assert client.get(f"/{result['thumbnail']}").headers["content-type"] == "image/jpeg"
    assert result["thumbnail"].startswith("v1/images" if name == "default" else root.strip("/"))
    body = {"searches": [{"text": "is blue"}]}
    assert client.post(f"{root}/search/batch", json=body).json()["items"][0]["status"] == 200
    vector = client.post(f"{root}/embed", json={"text": "is blue"}).json()
    assert vector["encoder"].startswith(info["model"]["fingerprint"])
    page = client.get(f"{root}/gallery", params={"limit": 1}).json()
    assert page["items"][0]["thumbnail"] == f"{result['thumbnail'].rpartition('/')[0]}/image-0"
    assert client.get(f"{root}/readyz").json()["status"] == "ready"


def test_the_paths_without_a_name_are_the_default_ones(client: httpx.Client) -> None:
    asked = {"image_id": "image-3", "text": "is blue"}
    plain, named = (
        client.post(f"{root}/search", json=asked).json()
        for root in ("/v1", "/v1/galleries/default")
    )
    assert plain["model"] == named["model"]
    assert plain["results"] == named["results"]


def test_what_is_written_into_one_gallery_is_in_no_other(
    client: httpx.Client, shoes: Client, tiny_bundle: Any
) -> None:
    written = shoes.put("new", png(tiny_bundle.images[0]), category=["shoe"])
    found = shoes.search(image_id="new", top_k=2, min_version=written.version)
    assert {result.image_id for result in found.results} == {"new", "image-0"}  # the same picture
    lines = [{"image_id": "newer", "image": png(tiny_bundle.images[1])}]
    [item] = shoes.import_images(lines)
    there = {one.image_id for one in shoes.iter_gallery(min_version=item.version)}
    assert there == {*tiny_bundle.image_ids, "new", "newer"}
    for root in ("/v1", "/v1/galleries/hats"):
        problem(client.post(f"{root}/search", json={"image_id": "new"}), 404)
        body = problem(client.put(f"{root}/gallery/new", json={}), 403)
        assert "does not change" in body["detail"]
    for image_id in ("new", "newer"):
        assert shoes.delete(image_id) is not None
    problem(client.delete(f"{SHOES}/gallery/new"), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "search"),
        ("GET", "info"),
        ("GET", "images/image-0"),
        ("PUT", "gallery/a"),
        ("POST", "gallery:import"),
        ("GET", "readyz"),
    ],
)
def test_an_unknown_gallery_is_a_problem(client: httpx.Client, method: str, path: str) -> None:
    body = problem(client.request(method, f"/v1/galleries/hat/{path}"), 404)
    assert body["detail"] == "the service has no gallery 'hat': see /v1/galleries"


def test_an_import_of_a_named_gallery_may_be_longer_than_a_body(client: httpx.Client) -> None:
    lines = b"".join(b'{"image_id": "%d"}\n' % number + b" " * 60_000 for number in range(40))
    assert len(lines) > 2_000_000  # max_body_bytes
    headers = {"content-type": "application/x-ndjson"}
    response = client.post(f"{SHOES}/gallery:import", content=lines, headers=headers)
    assert {json.loads(line)["status"] for line in response.text.splitlines()} == {422}
    problem(client.post(f"{SHOES}/search", content=b" " * 2_000_001), 413)


def test_other_methods_are_refused_with_those_that_there_are(client: httpx.Client) -> None:
    response = client.post(f"{SHOES}/gallery/a")
    problem(response, 405)
    assert response.headers["allow"] == "DELETE, PUT"
    assert client.head(f"{SHOES}/info").status_code == 200


def test_encoders_of_the_same_files_are_in_memory_once(started: list[Any], url: str) -> None:
    [galleries] = started
    default, shoes, hats = (replica.engine.bundle.encoder for replica in galleries)
    assert default is shoes
    assert default is not hats


def test_a_gallery_whose_model_hangs_keeps_no_other_waiting(
    started: list[Any], client: httpx.Client
) -> None:
    [galleries] = started
    let_go = threading.Event()
    galleries["shoes"]._model.submit(let_go.wait)
    try:
        with ThreadPoolExecutor(1) as threads:
            asked = {"text": "is late"}
            late = threads.submit(client.post, f"{SHOES}/search", json=asked)
            assert client.post("/v1/search", json={"text": "is on time"}).status_code == 200
            assert not late.done()
            let_go.set()
            assert late.result().status_code == 200
    finally:
        let_go.set()


def test_pictures_that_come_late_and_uploads_keep_no_search_waiting(
    started: list[Any], client: httpx.Client, tiny_bundle: Any
) -> None:
    [galleries] = started
    let_go, shoes = threading.Event(), galleries["shoes"]
    for pool in (galleries["default"]._pictures, shoes._uploads):
        for _ in range(pool._max_workers):
            pool.submit(let_go.wait)
    sent = {"image": ("photo.png", png(tiny_bundle.images[0]), "image/png")}
    try:
        with ThreadPoolExecutor(2) as threads:
            late = threads.submit(client.get, f"/v1/images/{tiny_bundle.image_ids[0]}")
            put = threads.submit(client.put, f"{SHOES}/gallery/uploaded", files=sent)
            while not shoes.writes.busy:
                time.sleep(0.01)
            for root in ("/v1", SHOES):
                assert client.post(f"{root}/search", files=sent).status_code == 200
            assert not late.done()
            assert not put.done()
            let_go.set()
            assert late.result().status_code == 200
            assert put.result().status_code == 201
        assert client.delete(f"{SHOES}/gallery/uploaded").status_code == 200
    finally:
        let_go.set()


def test_galleries_that_share_an_encoder_answer_at_the_same_time(
    client: httpx.Client, tiny_bundle: Any
) -> None:
    def embedded(number: int) -> list[float]:
        root = ("/v1", SHOES)[number % 2]
        files = {"image": ("photo.png", png(tiny_bundle.images[number % 12]), "image/png")}
        data = {"text": f"is number {number}"}
        vector: list[float] = client.post(f"{root}/embed", files=files, data=data).json()["query"]
        return vector

    numbers = range(40)
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(embedded, numbers))
    alone = [embedded(number) for number in numbers]
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_openapi_lists_every_route_of_a_gallery_once(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    named = {
        path.removeprefix("/v1/galleries/{gallery}")
        for path in schema["paths"]
        if path.startswith("/v1/galleries/{gallery}/")
    }
    plain = {
        path.removeprefix("/v1")
        for path in schema["paths"]
        if path.startswith("/v1/") and not path.startswith("/v1/galleries")
    }
    assert named == plain | {"/readyz"}
    ids = [
        operation["operationId"] for path in schema["paths"].values() for operation in path.values()
    ]
    assert len(set(ids)) == len(ids)
    [parameter] = schema["paths"]["/v1/galleries/{gallery}/info"]["get"]["parameters"]
    assert (parameter["name"], parameter["in"]) == ("gallery", "path")


def test_the_asynchronous_client_asks_its_gallery(url: str, key: str, client: httpx.Client) -> None:
    async def asked() -> tuple[str, str, list[str]]:
        async with AsyncClient(url, api_key=key, gallery="hats") as hats:
            found = await hats.search(text="is blue")
            assert (await hats.ready()).status == "ready"
            names = [one.name for one in await hats.galleries()]
            return (await hats.info()).gallery, found.model.bundle, names

    names = ["default", "absent", "shoes", "hats"]
    assert asyncio.run(asked()) == ("hats", digests(client)["hats"], names)


def test_the_command_asks_the_gallery_of_its_option(
    url: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {"RAYCD_API_KEY": key, "RAYCD_URL": url}
    assert main(["galleries"], environment) == 0
    assert [line.split()[::2][:2] for line in capsys.readouterr().out.splitlines()] == [
        ["gallery", "live"],
        ["default", "no"],
        ["absent", "no"],
        ["shoes", "yes"],
        ["hats", "no"],
    ]
    assert main(["--gallery", "hats", "info", "--json"], environment) == 0
    assert json.loads(capsys.readouterr().out)["gallery"] == "hats"
    assert main(["info", "--gallery", "hat"], environment) == 2
    assert "has no gallery 'hat'" in capsys.readouterr().err
    assert main(["info", "--gallery", "../x"], environment) == 2
    assert "the name of the gallery is impossible" in capsys.readouterr().err


def test_a_client_refuses_a_name_that_no_gallery_has_and_tells_an_unknown_one(
    url: str, key: str
) -> None:
    with pytest.raises(ConfigError, match="name of the gallery is impossible"):
        Client(url, gallery="Shoes/..")
    with (
        Client(url, api_key=key, gallery="hat") as client,
        pytest.raises(ServiceError, match="no gallery 'hat'") as caught,
    ):
        client.search(text="is blue")
    assert caught.value.status == 404
