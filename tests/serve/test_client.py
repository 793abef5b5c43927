"""raycd.client against the real service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycd.client import Client, ServiceError
from raycd.client.__main__ import main
from tests.serve.asking import png


@pytest.fixture(scope="module")
def raycd_client(service_url: str) -> Iterator[Client]:
    with Client(service_url, timeout=60) as client:
        yield client


def test_every_method_has_its_answer(raycd_client: Client, tiny_bundle: Any) -> None:
    said = raycd_client.info()
    assert (said.index.size, said.limits.batch) == (12, 4)
    assert raycd_client.ready().status == "ready"
    assert [item.image_id for item in raycd_client.iter_gallery()] == tiny_bundle.image_ids
    dresses = raycd_client.gallery(category=["dress"]).items
    assert {item.category for item in dresses} == {"dress"}
    assert raycd_client.image(tiny_bundle.image_ids[0]).startswith(b"\xff\xd8")


def test_an_image_by_file_inside_a_batch_and_by_name_finds_the_same(
    raycd_client: Client, tiny_bundle: Any
) -> None:
    image = png(tiny_bundle.images[3])
    by_file = raycd_client.search(
        image=image,
        text="is blue",
        top_k=4,
        category=["dress"],
        attributes={},
        exact=True,
        text_weight=2,
    )
    batch = raycd_client.search_batch(
        [
            {
                "image": image,
                "text": "is blue",
                "top_k": 4,
                "category": ["dress"],
                "text_weight": 2,
            },
            {"image": b"no image", "text": "is blue"},
        ]
    )
    assert [item.status for item in batch.items] == [200, 422]
    assert batch.items[0].response is not None
    assert [result.image_id for result in batch.items[0].response.results] == [
        result.image_id for result in by_file.results
    ]
    assert batch.items[1].problem is not None
    assert batch.items[1].problem.reason == "not_an_image"
    assert (
        raycd_client.search(image_id=tiny_bundle.image_ids[3], top_k=1).results[0].image_id
        == "image-3"
    )


def test_what_the_service_refuses_is_an_error_with_its_problem(raycd_client: Client) -> None:
    with pytest.raises(ServiceError, match="max_top_k") as caught:
        raycd_client.search(text="is blue", top_k=10_000)
    assert (caught.value.status, caught.value.problem and caught.value.problem.limit) == (
        422,
        "max_top_k",
    )
    with pytest.raises(ServiceError) as caught:
        raycd_client.search(image=b"x" * 3_000_000)
    assert (caught.value.status, caught.value.problem and caught.value.problem.limit) == (
        413,
        "max_body_bytes",
    )


def test_the_command_answers_a_file_longer_than_a_batch(
    service_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": f"is number {number}", "top_k": 1}) for number in range(9)]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines[:5], "no json", *lines[5:]]))
    assert main(["batch", str(tmp_path / "in.jsonl"), "--url", service_url], {}) == 2
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["status"] for each in said] == [200] * 5 + [400] + [200] * 4
    assert main(["search", "--text", "is blue", "--url", service_url], {}) == 0
    assert "1 to 10 of 12 images" in capsys.readouterr().out
