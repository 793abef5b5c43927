import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image
from ray.serve.schema import ServeDeploySchema

from raycd.data import images
from raycd.errors import RunError
from raycd.model import bundle
from raycd.search import Query, Searcher
from serve.app import _check_room
from serve.schemas import ServeArgs

ROOT = Path(__file__).parents[2]


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def ask(client: httpx.Client, image: bytes | None, **fields: Any) -> httpx.Response:
    files = {} if image is None else {"image": ("photo.png", image, "image/png")}
    return client.post("/v1/search", files={**files, **{name: (None, str(value)) for name, value in fields.items()}})


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = dict(response.json())
    assert (body["type"], body["status"]) == ("about:blank", status)
    assert body["title"]
    assert "Traceback" not in response.text
    return body


def test_a_query_gets_its_results_and_the_model_that_found_them(client: httpx.Client, tiny_bundle: Any) -> None:
    image = tiny_bundle.images[3]
    response = ask(client, png(image), text="is blue with long sleeves", top_k=4)
    assert response.status_code == 200, response.text
    body = response.json()
    searcher = Searcher(bundle.load(tiny_bundle.folder))
    decoded = images.decode(png(image), max_pixels=10**6, min_side=1)
    [expected] = searcher.search([Query(decoded, "is blue with long sleeves", top_k=4)])
    assert [(found["image_id"], found["category"]) for found in body["results"]] == [
        (result.image_id, result.category) for result in expected
    ]
    assert [found["score"] for found in body["results"]] == pytest.approx([r.score for r in expected], abs=1e-5)
    assert body["text_truncated"] is False
    fingerprint = body["model"].pop("fingerprint")
    assert searcher.bundle.manifest.encoder.fingerprint.startswith(fingerprint)
    assert len(fingerprint) == 12
    assert body["model"] == {
        "preset": "demo",
        "encoder": "raycd-demo",
        "head": "clip_cd",
        "index": {"kind": "flat", "size": 12},
        "protocol": "original",
        "metrics": {"average": {"recall@10": 0.5}},
    }


def test_top_k_defaults_to_the_bundles_setting_and_long_texts_are_cut(client: httpx.Client, tiny_bundle: Any) -> None:
    body = ask(client, png(tiny_bundle.images[0]), text="is blue " * 60).json()
    assert len(body["results"]) == 10
    assert body["text_truncated"] is True


def test_concurrent_queries_are_answered_as_one_by_one(client: httpx.Client, tiny_bundle: Any) -> None:
    queries = [(png(tiny_bundle.images[i % 12]), f"is number {i}", 1 + i % 5) for i in range(40)]

    def results(query: tuple[bytes, str, int]) -> list[dict[str, Any]]:
        response = ask(client, query[0], text=query[1], top_k=query[2])
        assert response.status_code == 200, response.text
        return list(response.json()["results"])

    alone = [results(query) for query in queries]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(results, queries))
    for query, first, second in zip(queries, alone, together, strict=True):
        assert len(first) == len(second) == query[2]
        assert [found["score"] for found in first] == pytest.approx([found["score"] for found in second], abs=1e-5)


def test_one_bad_query_does_not_harm_those_beside_it(client: httpx.Client, tiny_bundle: Any) -> None:
    good = png(tiny_bundle.images[0])
    bodies = [good if i % 2 else b"not an image" for i in range(16)]
    with ThreadPoolExecutor(16) as threads:
        statuses = [r.status_code for r in threads.map(lambda body: ask(client, body, text="is blue"), bodies)]
    assert statuses == [422, 200] * 8


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: b"", "empty"),
        (lambda data: b"hello", "not_an_image"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: png(Image.new("RGB", (1, 1))), "too_small"),
        (lambda data: png(Image.new("L", (8000, 7000))), "too_large"),
    ],
)
def test_a_broken_image_is_refused_with_its_reason(
    client: httpx.Client, tiny_bundle: Any, spoil: Any, reason: str
) -> None:
    body = problem(ask(client, spoil(png(tiny_bundle.images[0])), text="is blue"), 422)
    assert body["reason"] == reason


@pytest.mark.parametrize("top_k", [0, -1, 201, "many", "1.5"])
def test_top_k_out_of_range_is_refused(client: httpx.Client, tiny_bundle: Any, top_k: Any) -> None:
    body = problem(ask(client, png(tiny_bundle.images[0]), text="is blue", top_k=top_k), 422)
    assert [error["field"] for error in body["errors"]] == ["top_k"]


def test_missing_fields_and_empty_texts_are_refused(client: httpx.Client, tiny_bundle: Any) -> None:
    image = png(tiny_bundle.images[0])
    assert [e["field"] for e in problem(ask(client, None, text="is blue"), 422)["errors"]] == ["image"]
    assert [e["field"] for e in problem(ask(client, image), 422)["errors"]] == ["text"]
    assert [e["field"] for e in problem(client.post("/v1/search", json={"text": "x"}), 422)["errors"]] == [
        "image",
        "text",
    ]
    assert [e["field"] for e in problem(ask(client, image, text=""), 422)["errors"]] == ["text"]
    assert "empty" in problem(ask(client, image, text="  \n"), 422)["detail"]
    assert [e["field"] for e in problem(ask(client, image, text="a" * 1001), 422)["errors"]] == ["text"]
    body = problem(client.post("/v1/search", data={"image": "not a file", "text": "is blue"}), 422)
    assert [error["field"] for error in body["errors"]] == ["image"]


def test_a_form_that_is_no_form_is_refused(client: httpx.Client) -> None:
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data", "text/plain"):
        response = client.post("/v1/search", content=b"--y\r\nnonsense", headers={"content-type": kind})
        problem(response, response.status_code)
        assert response.status_code in (400, 422)


def test_large_requests_are_refused_whatever_they_declare(client: httpx.Client) -> None:
    problem(ask(client, b"x" * 2_000_001, text="is blue"), 413)

    def chunks() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(3):
            yield b"x" * 1_000_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    problem(client.post("/v1/search", content=chunks(), headers=headers), 413)


def test_other_paths_and_methods_are_problems_too(client: httpx.Client) -> None:
    problem(client.get("/v2/search"), 404)
    problem(client.get("/v1/search"), 405)


def test_health_and_the_interfaces_description(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    operation = client.get("/openapi.json").json()["paths"]["/v1/search"]["post"]
    assert set(operation["responses"]) >= {"200", "413", "422", "503"}


def test_config_yaml_is_valid_and_stays_on_loopback() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "serve" / "config.yaml").read_text()))
    assert config.http_options.host == "127.0.0.1"
    [application] = config.applications
    assert application.import_path == "serve.app:build"
    ServeArgs.model_validate(application.args)


def command(*arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "serve" / "app.py"), *arguments],
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def message(*arguments: str) -> str:
    """What the command says about a mistake."""
    process = command(*arguments)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert out == ""
    assert "Traceback" not in error
    return error


def test_an_absent_bundle_is_told_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    error = message("--bundle", str(tmp_path / "nothing"))
    assert "no bundle" in error
    assert "run make demo first" in error
    assert time.monotonic() - began < 20


def test_a_port_in_use_is_told(tiny_bundle: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in message("--bundle", str(tiny_bundle.folder), "--port", str(port))


def test_a_spoiled_bundle_and_impossible_options_are_told(tiny_bundle: Any, tmp_path: Path, free_port: int) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    port = str(free_port)
    assert "another format" in message("--bundle", str(tmp_path), "--port", "1" + port[1:])
    assert "expected a number from 1 to 65535" in message("--port", "70000")
    assert "--replicas is impossible" in message("--bundle", str(tiny_bundle.folder), "--replicas", "0")


def test_more_replicas_than_the_machine_carries_are_refused() -> None:
    _check_room(ServeArgs(replicas=2, gpus=0.5), {"CPU": 2.0, "GPU": 1.0})
    with pytest.raises(RunError, match="too few CPUs"):
        _check_room(ServeArgs(replicas=3), {"CPU": 2.0})
    with pytest.raises(RunError, match="too few GPUs"):
        _check_room(ServeArgs(gpus=1), {"CPU": 2.0})


def test_the_command_serves_until_it_is_terminated(tiny_bundle: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = command("--bundle", str(tiny_bundle.folder), "--port", str(port))
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in ready, process.stderr and process.stderr.read()
        assert "/v1/search" in process.stdout.readline()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert ask(client, png(tiny_bundle.images[0]), text="is blue").status_code == 200
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 143, error
        assert "Traceback" not in error
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
