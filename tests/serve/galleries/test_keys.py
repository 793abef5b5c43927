"""Keys of some galleries: what they open, what they do not tell, and how their file has them."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from raycd.errors import ConfigError
from serve import keys
from serve.security import keyring
from serve.security.asgi import split_gallery
from serve.security.guard import needed_scope
from tests.serve.api.test_guard import bearer
from tests.serve.api.test_keyed_service import within
from tests.serve.asking import problem


@pytest.fixture(scope="module")
def shopkeeper(url: str, key_file: Path) -> httpx.Client:
    """A client whose key may write, and into shoes alone."""
    headers = bearer(keys.add(key_file, "shopkeeper", "write", ["shoes"]))
    client = httpx.Client(base_url=url, headers=headers, timeout=60)
    assert within(30, lambda: client.get("/v1/galleries").status_code == 200)
    return client


def test_a_key_of_one_gallery_opens_that_and_no_other(shopkeeper: httpx.Client) -> None:
    assert shopkeeper.get("/v1/galleries/shoes/info").json()["gallery"] == "shoes"
    assert shopkeeper.post("/v1/galleries/shoes/search", json={"text": "a"}).status_code == 200
    body = problem(shopkeeper.delete("/v1/galleries/shoes/gallery/absent"), 404)
    assert "absent" in body["detail"]
    for path in ("/v1/info", "/v1/galleries/default/info", "/v1/galleries/hats/info"):
        response = shopkeeper.get(path)
        assert "is for other galleries than" in problem(response, 403)["detail"], path
        assert response.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope"'
    problem(shopkeeper.get("/v1/images/image-0"), 403)
    problem(shopkeeper.post("/v1/search", json={"text": "a"}), 403)
    assert shopkeeper.get("/readyz").status_code == 200  # anybody's


def test_it_is_told_of_no_other(shopkeeper: httpx.Client) -> None:
    listed = shopkeeper.get("/v1/galleries").json()["galleries"]
    assert [one["name"] for one in listed] == ["shoes"]
    there, nowhere = (
        problem(shopkeeper.get(f"/v1/galleries/{name}/info"), 403)["detail"]
        for name in ("hats", "nowhere")
    )
    assert there.replace("hats", "nowhere") == nowhere


def test_a_key_of_several_galleries_may_only_read_them(url: str, key_file: Path) -> None:
    headers = bearer(keys.add(key_file, "reader", "read", ["shoes", "default"]))
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        assert within(30, lambda: client.get("/v1/info").status_code == 200)
        assert client.get("/v1/galleries/shoes/info").status_code == 200
        problem(client.get("/v1/galleries/hats/info"), 403)
        refused = problem(client.delete("/v1/galleries/shoes/gallery/a"), 403)
        assert "scope read" in refused["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/galleries/shoes/../hats/info",
        "/v1/galleries/shoes/%2e%2e/hats/info",
        "/v1/galleries/shoes%2F..%2Fhats/info",
        "/v1/galleries/%68ats/info",
        "/v1/galleries/hats%2Finfo",
        "/v1/galleries/shoes/galleries/hats/info",
        "/v1/galleries//info",
        "/v1/galleries/../info",
        "//v1/info",
    ],
)
def test_no_spelling_of_a_path_leads_past_the_key(shopkeeper: httpx.Client, path: str) -> None:
    address = shopkeeper.base_url.copy_with(raw_path=path.encode())
    assert shopkeeper.get(address).status_code in (403, 404)


def test_without_a_key_nothing_of_a_gallery_is_told(url: str) -> None:
    for path in ("", "/shoes/info", "/shoes/readyz", "/nowhere/info", "/shoes/docs"):
        problem(httpx.get(f"{url}/v1/galleries{path}"), 401)


@pytest.mark.parametrize(
    ("path", "gallery", "same"),
    [
        ("/v1/search", "default", "/v1/search"),
        ("/v1/galleries", "default", "/v1/galleries"),
        ("/v1/galleries/shoes/search/batch", "shoes", "/v1/search/batch"),
        ("/v1/galleries/shoes", "shoes", "/v1/"),
        ("/v1/galleries//search", "", "/v1/search"),
        ("/v1/galleries/a/galleries/b/info", "a", "/v1/galleries/b/info"),
        ("/v1/galleriesx/shoes", "default", "/v1/galleriesx/shoes"),
    ],
)
def test_a_path_is_of_one_gallery(path: str, gallery: str, same: str) -> None:
    assert split_gallery(path) == (gallery, same)


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "search", "read"),
        ("POST", "embed/batch", "read"),
        ("POST", "events", "read"),
        ("GET", "readyz", "read"),
        ("GET", "docs", "read"),
        ("PUT", "gallery/a", "write"),
        ("POST", "gallery:import", "write"),
        ("POST", "searches", "write"),
    ],
)
def test_a_named_gallery_needs_the_scope_of_the_default_one(
    method: str, path: str, scope: str
) -> None:
    assert needed_scope(method, f"/v1/galleries/shoes/{path}") == scope


def test_the_command_writes_and_lists_the_galleries_of_a_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    add = ["add", "--file", str(file), "--scope", "read", "--name"]
    assert keys.main([*add, "bob", "--galleries", "shoes", "hats"]) == 0
    assert keys.main([*add, "ann"]) == 0
    capsys.readouterr()
    assert keys.main(["list", "--file", str(file)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [[name, *galleries] for name, _, _, *galleries in lines] == [
        ["bob", "shoes", "hats"],
        ["ann"],
    ]
    bob, ann = json.loads(file.read_text())["keys"]
    assert bob["galleries"] == ["shoes", "hats"]
    assert "galleries" not in ann  # as an older version reads and writes it
    assert keys.main([*add, "eve", "--galleries", "Shoes"]) == 2
    assert "no gallery can have this name" in capsys.readouterr().err
    assert len(keyring.read(file)) == 2


@pytest.mark.parametrize("galleries", [[], ["a/b"], "shoes", ["shoes\n"]])
def test_a_malformed_list_of_galleries_is_told(tmp_path: Path, galleries: object) -> None:
    file = tmp_path / "keys.json"
    keys.add(file, "ann", "read")
    document = json.loads(file.read_text())
    document["keys"][0]["galleries"] = galleries
    file.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"malformed[\s\S]*keys\.0\.galleries"):
        keyring.read(file)
