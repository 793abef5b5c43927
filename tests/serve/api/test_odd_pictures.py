"""Odd pictures over HTTP: PUT, import and search read or refuse each as training does, and what is
kept is shown.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image

from serve.live.pictures import SIDE
from tests.hostile.corpus import corpus
from tests.hostile.odd import Odd

CORPUS = corpus()


@pytest.fixture(scope="module")
def odd_client(
    start_replica: Callable[..., str], service_args: Any, tmp_path_factory: Any
) -> Iterator[httpx.Client]:
    """Start a live service that takes every format, as it does by default."""
    from serve.args import ServeArgs

    database = tmp_path_factory.mktemp("odd") / "gallery.sqlite"
    changes = {"gallery": str(database), "formats": ServeArgs().formats}
    url = start_replica(service_args.model_copy(update=changes), "odd")
    with httpx.Client(base_url=url, timeout=120) as client:
        yield client


def failures(check: Callable[[Odd], str]) -> dict[str, str]:
    """Return what is wrong, by the file's name."""
    with ThreadPoolExecutor(4) as threads:
        return {
            odd.name: wrong
            for odd, wrong in zip(CORPUS, threads.map(check, CORPUS), strict=True)
            if wrong
        }


def refused(odd: Odd, answer: dict[str, Any], status: int) -> str:
    """Return what is wrong with a refusal."""
    if (status, answer.get("reason")) != (422, odd.outcome):
        return f"{status} {answer}, expected 422 and {odd.outcome}"
    return ""


def test_a_put_takes_or_refuses_each_and_what_it_took_is_shown(odd_client: httpx.Client) -> None:
    def check(odd: Odd) -> str:
        put = odd_client.put(
            f"/v1/gallery/put-{odd.name}", files={"image": (odd.name, odd.data, "image/png")}
        )
        if odd.outcome != "ok":
            return refused(odd, put.json(), put.status_code)
        if put.status_code != 201:
            return put.text
        path, at = f"/v1/images/put-{odd.name}", {"min_version": put.json()["version"]}
        original = odd_client.get(path, params={**at, "size": "original"})
        if (original.status_code, original.content) != (200, odd.data):
            return f"original: {original.status_code} {original.headers}"
        return shown(odd, odd_client.get(path, params=at))

    assert failures(check) == {}


def shown(odd: Odd, answer: httpx.Response) -> str:
    """Return what is wrong with a thumbnail."""
    if answer.status_code != 200:
        return f"thumbnail: {answer.status_code} {answer.text}"
    image = Image.open(BytesIO(answer.content))
    if max(image.size) > SIDE or min(image.size) < 1 or "comment" in image.info:
        return f"thumbnail: {image.size} {image.info}"
    if image.size != odd.size or odd.name == "png-noise":
        return ""  # made smaller, so that its points are elsewhere; or none like its neighbours
    blurred = Odd(
        odd.name, b"", at=odd.at, near=odd.near + 40
    )  # JPEG blurs the edge between the halves
    return blurred.wrong(image)


def test_an_import_takes_or_refuses_each(odd_client: httpx.Client) -> None:
    lines = [
        {"image_id": f"import-{odd.name}", "image_base64": base64.b64encode(odd.data).decode()}
        for odd in CORPUS
    ]
    headers = {"content-type": "application/x-ndjson"}
    answer = odd_client.post(
        "/v1/gallery:import", content="\n".join(map(json.dumps, lines)), headers=headers
    )
    items = [json.loads(line) for line in answer.text.splitlines()]
    wrong = {}
    for odd, item in zip(CORPUS, items, strict=True):
        if (
            odd.outcome == "empty"
        ):  # no text of base64 at all: refused before anybody looks at a picture
            [error] = item["problem"]["errors"]
            wrong[odd.name] = (
                "" if (item["status"], error["field"]) == (422, "image_base64") else str(item)
            )
        elif odd.outcome != "ok":
            wrong[odd.name] = refused(odd, item.get("problem", {}), item["status"])
        elif item["status"] != 201:
            wrong[odd.name] = str(item)
    assert {name: what for name, what in wrong.items() if what} == {}


def test_a_search_reads_or_refuses_each(odd_client: httpx.Client) -> None:
    def check(odd: Odd) -> str:
        answer = odd_client.post(
            "/v1/search", files={"image": (odd.name, odd.data, "image/png"), "top_k": (None, "1")}
        )
        if odd.outcome != "ok":
            return refused(odd, answer.json(), answer.status_code)
        return "" if answer.status_code == 200 and answer.json()["results"] else answer.text

    assert failures(check) == {}
