"""A share of the users gets the second model's answers, by bundles' galleries and a live one."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from raycd import bundle
from raycd.client import Client
from raycd.errors import ConfigError
from raycd.gallery_db import GalleryDatabase
from serve import app
from serve.args import ServeArgs, Wanted
from serve.engine.engine import Engine
from serve.replica import Replica
from serve.second.model import is_second
from serve.shadow_process import Unobserved
from tests.serve.asking import png
from tests.serve.second.conftest import Start, results

SHARE = 0.5


@pytest.fixture(scope="module")
def digests(tiny_bundle: Any, other_bundle: Path) -> tuple[str, str]:
    """Return the digests of the first bundle and the second."""
    return bundle.verify(tiny_bundle.folder).digest, bundle.verify(other_bundle).digest


@pytest.fixture(scope="module")
def users(digests: tuple[str, str]) -> tuple[str, str]:
    """Return a user of the first model and one of the second."""
    names = [f"user-{number}" for number in range(64)]
    return (
        next(name for name in names if not is_second(name, SHARE, digests[1])),
        next(name for name in names if is_second(name, SHARE, digests[1])),
    )


@pytest.fixture(scope="module")
def split(start: Start, other_bundle: Path) -> httpx.Client:
    return start("split", second={"bundle": str(other_bundle), "users": SHARE})


def asked(client: httpx.Client, user: str, **fields: Any) -> httpx.Response:
    """Ask as a user."""
    response = client.post("/v1/search", json=fields, headers={"Raycd-User": user})
    assert response.status_code == 200, response.text
    return response


def test_each_user_gets_one_model_and_every_answer_names_it(
    split: httpx.Client,
    first: httpx.Client,
    other: httpx.Client,
    users: tuple[str, str],
    digests: tuple[str, str],
) -> None:
    fields = {"image_id": "image-3", "text": "is blue", "top_k": 5}
    answers = []
    for user, alone, digest in zip(users, (first, other), digests, strict=True):
        expected = alone.post("/v1/search", json=fields).json()
        for _ in range(3):
            response = asked(split, user, **fields)
            assert response.headers["raycd-model"] == digest[:12]
            assert response.json()["model"]["bundle"] == digest[:12]
            assert results(response.json()) == results(expected)
        answers.append(results(expected))
    assert answers[0] != answers[1]
    body = {"searches": [fields, {"text": "is red"}]}
    batch = split.post("/v1/search/batch", json=body, headers={"Raycd-User": users[1]})
    assert batch.headers["raycd-model"] == digests[1][:12]
    models = [item["response"]["model"]["bundle"] for item in batch.json()["items"]]
    assert models == [digests[1][:12]] * 2
    told = split.get("/v1/info").json()
    assert told["bundle"]["digest"] == digests[0][:12]
    assert told["second"] == {
        "bundle": digests[1][:12],
        "shadow": 0.0,
        "users": SHARE,
        "refused": None,
    }


def test_a_user_who_is_named_gets_its_models_vectors_and_others_those_that_the_gallery_takes(
    split: httpx.Client, users: tuple[str, str], digests: tuple[str, str]
) -> None:
    body = {"image_id": "image-3", "text": "is blue"}
    address = str(split.base_url)
    with Client(address, timeout=60) as client:
        alone = client.embed(image_id="image-3", text="is blue")
        named = [client.embed(image_id="image-3", text="is blue", user=user) for user in users]
        [one] = client.embed_batch(
            [{"image_id": "image-3", "text": "is blue"}], user=users[1]
        ).items
        earlier = client.search(text="is red", image_id="image-2", session=True, user=users[1])
        later = client.embed(reference=earlier, text="is blue", user=users[1])
    assert named[0].query == alone.query
    assert named[1].encoder == later.encoder != alone.encoder
    assert one.embedding is not None
    assert one.embedding.query == pytest.approx(named[1].query)
    for path, sent in (("/v1/embed", body), ("/v1/embed/batch", {"queries": [body]})):
        for headers, digest in (({}, digests[0]), ({"Raycd-User": users[1]}, digests[1])):
            answer = split.post(path, json=sent, headers=headers)
            assert answer.headers["raycd-model"] == digest[:12]


def test_searches_of_both_that_come_at_once_get_their_own_models_answers(
    split: httpx.Client, first: httpx.Client, other: httpx.Client, users: tuple[str, str]
) -> None:
    texts = [f"is number {number}" for number in range(12)]
    with ThreadPoolExecutor(12) as threads:
        found = threads.map(
            lambda user, text: asked(split, user, text=text).json(), itertools.cycle(users), texts
        )
    for text, alone, answer in zip(texts, itertools.cycle((first, other)), found, strict=False):
        assert results(answer) == results(alone.post("/v1/search", json={"text": text}).json())


def test_an_image_of_the_seconds_own_gallery_alone_has_its_picture_and_is_a_reference(
    start: Start,
    tiny_bundle: Any,
    other_bundle: Path,
    users: tuple[str, str],
    tmp_path: Path,
) -> None:
    loaded = bundle.load(tiny_bundle.folder)
    fewer = bundle.read_gallery(tiny_bundle.folder).slice(0, 11)
    bundle.write(
        tmp_path / "bundle",
        loaded.encoder,
        loaded.head,
        loaded.head_config,
        fewer,
        loaded.config,
        {},
    )
    second = {"bundle": str(other_bundle), "users": SHARE}
    client = start("fewer", bundle=str(tmp_path / "bundle"), second=second)
    last = tiny_bundle.image_ids[-1]
    assert client.get(f"/v1/images/{last}").headers["content-type"] == "image/jpeg"
    assert client.get("/v1/images/nothing").status_code == 404
    assert asked(client, users[1], image_id=last, text="is blue").json()["index"]["size"] == 12
    assert asked(client, users[0], text="is blue").json()["index"]["size"] == 11


def test_an_image_that_is_added_is_found_by_both_models(
    start: Start,
    tiny_bundle: Any,
    other_bundle: Path,
    users: tuple[str, str],
    tmp_path: Path,
) -> None:
    file = tmp_path / "gallery.sqlite"
    second = {"bundle": str(other_bundle), "users": SHARE}
    client = start("live split", gallery=str(file), lag_s=0.2, second=second)
    picture = {"image": ("x.png", png(tiny_bundle.images[5].rotate(90)), "image/png")}
    version = client.put("/v1/gallery/new", files=picture).json()["version"]
    for user in users:
        seen = client.post(
            "/v1/search",
            params={"min_version": version},
            json={"image_id": "new", "among": ["new"]},
            headers={"Raycd-User": user},
        ).json()
        [(name, score)] = results(seen)
        assert (name, score) == ("new", 1.0)  # a feature of its own encoder, or it were none
    with GalleryDatabase.open(str(file)) as gallery_db:
        for folder in (tiny_bundle.folder, other_bundle):
            fingerprint = bundle.load(folder).manifest.encoder.fingerprint
            assert gallery_db.unencoded(fingerprint, limit=2) == []
    gone = client.delete("/v1/gallery/new").json()["version"]
    for user in users:
        left = client.post(
            "/v1/search",
            params={"min_version": gone},
            json={"text": "is blue", "top_k": 50},
            headers={"Raycd-User": user},
        ).json()
        assert "new" not in dict(results(left))


def test_a_second_model_that_would_lose_an_image_of_the_first_is_refused(
    start: Start, other_bundle: Path, users: tuple[str, str], tmp_path: Path
) -> None:
    live = {"gallery": str(tmp_path / "gallery.sqlite"), "lag_s": 0.2}
    with Client(str(start("lacking", **live).base_url), timeout=60) as client:
        made = client.embed(image_id="image-1")
        client.put("a feature alone", feature=made.image, encoder=made.encoder)
    both = start("lacking", **live, second={"bundle": str(other_bundle), "users": SHARE})
    said = both.get("/v1/info").json()
    assert "has not encoded the whole gallery" in said["second"]["refused"]
    found = asked(both, users[1], image_id="a feature alone", top_k=1)
    assert found.headers["raycd-model"] == said["bundle"]["digest"]


def test_what_each_model_lacks_is_looked_for_beside_the_event_loop(
    service_args: ServeArgs,
    bundle_with_head: Callable[[str], Path],
    other_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[threading.Thread] = []

    def without(engine: Engine) -> int:  # of a search engine's gallery, a scan of the database
        asked.append(threading.current_thread())
        return 0

    monkeypatch.setattr(Engine, "without", property(without))
    second = {"second": {"bundle": str(other_bundle), "users": SHARE}}
    args = ServeArgs.model_validate(service_args.model_dump() | second)

    async def run() -> None:
        replica = Replica(args, name="without", observer=Unobserved())
        for folder in (args.bundle, str(bundle_with_head("sum"))):
            await replica.change_bundle(Wanted(bundle=folder).model_dump())
            assert replica.refused is None
        assert replica.second is not None
        assert replica.second.refused is None

    asyncio.run(run())
    assert len(asked) == 4
    assert threading.current_thread() not in asked


def test_a_second_model_has_one_use_and_a_bundle(
    tiny_bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for said, second in (
        ("without second.bundle", {"users": 0.1}),
        ("answers nobody", {"bundle": "b"}),
        ("expected one", {"bundle": "b", "users": 0.1, "shadow": 0.1}),
        ("less than or equal to 1", {"bundle": "b", "users": 10}),
    ):
        with pytest.raises(ValidationError, match=said):
            ServeArgs.model_validate({"second": second})
    with pytest.raises(ValidationError, match="for one model"):
        ServeArgs.model_validate(
            {"gallery_engine": "milvus://host:19530", "second": {"bundle": "b", "users": 0.1}}
        )
    with pytest.raises(ConfigError, match="answers nobody"):
        app._read(["--second.bundle", "b"])
    own, nothing = str(tiny_bundle.folder), str(tmp_path / "nothing")
    given = app._read(["--bundle", own, "--second.bundle", nothing, "--second.users", "0.1"]).config
    assert app._arguments(given, tiny_bundle.folder).second.bundle == nothing
    said = capsys.readouterr().err
    assert (
        f"warning: the bundle of the second model cannot be loaded: there is no bundle at {nothing}"
        in said
    )
    assert "another folder with --second.bundle" in said
    given = app._read(["--bundle", own, "--second.bundle", own, "--second.shadow", "0.1"]).config
    assert app._arguments(given, tiny_bundle.folder).second.bundle == own
