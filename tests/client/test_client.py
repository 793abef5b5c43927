"""The client's requests, and what it makes of the answers."""

import asyncio
import base64
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from raycd.api import Info, SearchRequest
from raycd.client import Client, ServiceError, table
from raycd.client.__main__ import main
from raycd.errors import ConfigError, DataError
from serve.api import search_body
from serve.args import ServeArgs
from tests.client.scripted import Asked, Reply, Service, found, info, item, problem


def as_the_service_reads(asked: Asked) -> tuple[SearchRequest, bytes | None]:
    """Return the request as the service's own parser reads it."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": asked.body, "more_body": False}

    headers = [(name.encode(), value.encode()) for name, value in asked.headers.items()]
    request = Request({"type": "http", "method": asked.method, "headers": headers}, receive)
    search, images = asyncio.run(search_body.read(SearchRequest, request, ServeArgs()))
    return search, images[0].file if images else None


def test_a_search_returns_the_typed_answer(client: Client, service: Service) -> None:
    service.answers(Reply(body=found("a", "b", warnings=("cut",))))
    answer = client.search(text="is blue")
    assert [result.image_id for result in answer.results] == ["a", "b"]
    assert answer.results[0].explanation.text is None
    assert (answer.total, answer.index.kind, answer.warnings) == (3, "flat", ["cut"])


def test_a_search_without_a_file_is_json_of_what_was_given_only(
    client: Client, service: Service
) -> None:
    service.answers(Reply(body=found()))
    client.search(image_id="DV1", text=" is blue ", top_k=5)
    [asked] = service.asked
    assert (asked.method, asked.path) == ("POST", "/v1/search")
    assert asked.json() == {"image_id": "DV1", "text": "is blue", "top_k": 5}


def test_the_service_reads_every_field_beside_a_file(
    client: Client, service: Service, tmp_path: Path
) -> None:
    service.answers(Reply(body=found()))
    path = tmp_path / "private name.jpg"
    path.write_bytes(b"\xff\xd8 \r\n--x")
    client.search(
        image=path,
        text="ist grün",
        negative_text="red",
        image_weight=0.5,
        text_weight=2,
        top_k=None,
        offset=3,
        category=["dress", "shirt"],
        attributes={"colour": ["blue", "navy"]},
        exclude_reference=True,
        exact=False,
    )
    [asked] = service.asked
    assert b"private name" not in asked.body
    request, image = as_the_service_reads(asked)
    assert image == b"\xff\xd8 \r\n--x"
    assert request == SearchRequest(
        text="ist grün",
        negative_text="red",
        image_weight=0.5,
        text_weight=2,
        offset=3,
        category=["dress", "shirt"],
        attributes={"colour": ["blue", "navy"]},
        exclude_reference=True,
    )


def test_an_image_may_be_given_as_bytes(client: Client, service: Service) -> None:
    service.answers(Reply(body=found()))
    client.search(image=b"pixels")
    assert as_the_service_reads(service.asked[0]) == (SearchRequest(), b"pixels")


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"image": "/nowhere/x.jpg", "text": "is blue"}, "cannot read the image '/nowhere/x.jpg'"),
        ({"image": "a\0b"}, "cannot read the image"),
        ({"image": b"x", "image_id": "DV1"}, "image and image_id"),
        ({"image_url": "https://a/b", "image_id": "DV1"}, "given in 2 ways"),
        ({"text": "x", "top_k": 0}, "top_k: Input should be greater than or equal to 1"),
        ({"text": "x", "text_weight": float("nan")}, "text_weight: "),
        ({"text": "x", "category": "dress"}, "category: Input should be a valid list"),
        ({"texxt": "x"}, "texxt: "),
    ],
)
def test_an_impossible_search_is_told_before_anything_is_sent(
    client: Client, service: Service, search: Any, message: str
) -> None:
    with pytest.raises(DataError, match=r"(?s).*" + message):
        client.search(**search)
    assert service.asked == []


def test_a_batch_carries_images_inside_and_keeps_the_order(
    client: Client, service: Service
) -> None:
    items = [
        {"status": 200, "response": found("a")},
        {"status": 422, "problem": problem(422, "bad")},
    ]
    service.answers(Reply(body={"items": items}))
    answer = client.search_batch(
        [{"image": b"pixels", "text": "is blue"}, SearchRequest(image_id="DV1")]
    )
    assert [item.status for item in answer.items] == [200, 422]
    assert answer.items[1].problem is not None
    assert answer.items[1].problem.detail == "bad"
    assert service.asked[0].json() == {
        "searches": [
            {"text": "is blue", "image_base64": base64.b64encode(b"pixels").decode()},
            {"image_id": "DV1"},
        ]
    }


def test_an_empty_batch_asks_nobody(client: Client, service: Service) -> None:
    assert client.search_batch([]).items == []
    assert service.asked == []


def test_a_batch_of_another_length_than_asked_is_an_error(client: Client, service: Service) -> None:
    service.answers(Reply(body={"items": []}))
    with pytest.raises(ServiceError, match="cannot be read"):
        client.search_batch([{"text": "x"}])


def test_the_gallery_is_paged_and_filtered(client: Client, service: Service) -> None:
    service.answers(Reply(body={"items": [item("a")], "total": 9, "offset": 4}))
    page = client.gallery(
        offset=4, limit=1, category=["a&b", "c"], attributes={"colour": ["navy blue", "red"]}
    )
    assert (page.items[0].attributes, page.total) == ({"colour": "blue"}, 9)
    assert service.asked[0].path == (
        "/v1/gallery?offset=4&limit=1&category=a%26b&category=c&attribute=colour%3Anavy+blue&attribute=colour%3Ared"
    )


def test_iterating_the_gallery_asks_for_the_longest_pages_until_the_end(
    client: Client, service: Service
) -> None:
    pages = [["a", "b"], ["c"]]
    service.answers(
        Reply(body=info(page=2)),
        *(
            Reply(body={"items": [item(i) for i in page], "total": 3, "offset": 0})
            for page in pages
        ),
    )
    assert [each.image_id for each in client.iter_gallery()] == ["a", "b", "c"]
    assert [asked.path for asked in service.asked[1:]] == [
        "/v1/gallery?offset=0&limit=2",
        "/v1/gallery?offset=2&limit=2",
    ]


def test_an_image_of_any_name_is_fetched(client: Client, service: Service) -> None:
    service.answers(Reply(body=b"\xff\xd8", kind="image/jpeg"))
    assert client.image("a/b c?#%é", size="original") == b"\xff\xd8"
    assert service.asked[0].path == "/v1/images/a%2Fb%20c%3F%23%25%C3%A9?size=original"


def test_info_and_readiness(client: Client, service: Service) -> None:
    service.answers(Reply(body=info()), Reply(body={"status": "ready", "replicas": 2}))
    assert client.info().limits.batch == 32
    assert client.ready().replicas == 2


def test_an_attribute_may_have_the_name_of_any_line_of_the_description() -> None:
    counts = {name: {"x": 1} for name in ("service", "model", "index", "limits", "try")}
    lines = table.info(Info.model_validate(info() | {"attributes": counts})).splitlines()
    assert sorted(line.split()[0] for line in lines if line.endswith("  x 1")) == sorted(counts)
    assert sum(line.startswith("model ") for line in lines) == 2


def test_a_url_may_have_a_path_before_the_services_own(service: Service) -> None:
    service.answers(Reply(body=info()))
    with Client(f"{service.url}/below/") as client:
        client.info()
    assert service.asked[0].path == "/below/v1/info"


ODD_PROXIES = [
    ("ALL_PROXY", "socks5://ann:s3cret@127.0.0.1:9"),
    ("https_proxy", "socks4://127.0.0.1:9"),
    ("HTTP_PROXY", "http://[::1"),
    ("NO_PROXY", "example.com,fd00::/8"),
    ("no_proxy", "[::1]"),
]


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_proxy", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(("name", "value"), [("HTTP_PROXY", "http://127.0.0.1:9"), *ODD_PROXIES])
def test_proxies_of_the_environment_are_not_asked_for_loopback(
    service: Service, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    service.answers(Reply(body=info()))
    with Client(service.url, retries=0) as client:
        assert client.info().version == "0.1.0"


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize(("name", "value"), ODD_PROXIES)
def test_proxies_that_cannot_be_used_are_one_message(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match="the proxies that the environment names cannot be used"
    ) as caught:
        Client("http://shop.example")
    assert f"got:      {name}: " in str(caught.value)
    assert f"env -u {name} " in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_the_api_key_is_sent_and_never_shown(
    connect: Callable[..., Client], service: Service
) -> None:
    service.answers(Reply(401, b"who?", "text/plain"))
    client = connect(api_key="s3cret\n")
    with pytest.raises(ServiceError, match="RAYCD_API_KEY") as caught:
        client.info()
    assert service.asked[0].headers["authorization"] == "Bearer s3cret"
    assert "s3cret" not in f"{client!r} {vars(client)} {caught.value} {caught.value.__dict__}"


def test_a_password_in_the_url_and_a_key_are_refused_together_without_showing_them() -> None:
    with pytest.raises(ConfigError, match="one header has both") as caught:
        Client("http://ann:s3cret@127.0.0.1:9", api_key="k3y")
    assert "s3cret" not in str(caught.value)
    assert "k3y" not in str(caught.value)


def test_an_impossible_key_is_refused_without_showing_it() -> None:
    for key in ("s3c\nret", "s3crét"):
        with pytest.raises(ConfigError, match="the API key is impossible") as caught:
            Client(api_key=key)
        assert "s3c" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://a/?b=c", "", "http://a/#b"],
)
def test_an_impossible_url_is_told(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected: http://host:port") as caught:
        Client(url)
    assert repr(url) in str(caught.value)


def test_a_password_in_the_url_is_never_shown() -> None:
    with Client("http://ann:s3cret@127.0.0.1:9/", retries=0) as client:
        assert repr(client) == "Client('http://127.0.0.1:9')"
        with pytest.raises(ServiceError) as caught:
            client.info()
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError) as impossible:
        Client("http://ann:s3cret@a:b")
    assert "s3cret" not in str(impossible.value)


def test_importing_the_client_imports_neither_torch_nor_ray() -> None:
    heavy = "{'torch', 'ray', 'numpy', 'mlflow', 'faiss', 'PIL', 'serve'}"
    code = (
        "import sys, raycd.client, raycd.client.__main__; "
        f"sys.exit(str({heavy} & set(sys.modules) or 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() in ("", "0")


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_told_by_their_variable(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
) -> None:
    file = tmp_path / "authorities.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(ConfigError) as caught:
        Client("https://127.0.0.1:1")
    assert f"SSL_CERT_FILE={file}" in str(caught.value)
    assert main(["info", "--url", "https://127.0.0.1:1"]) == 2
    assert "certificates" in capsys.readouterr().err


@pytest.mark.parametrize("image_id", ["caf\udce9", "\ud83d", ".", "..", ""])
def test_an_id_that_no_address_can_carry_is_told_before_anything_is_sent(
    client: Client, image_id: str
) -> None:
    for ask in (client.image, client.delete, lambda one: client.put(one, b"picture")):
        with pytest.raises(DataError, match="impossible"):
            ask(image_id)


def test_warnings_of_a_page_are_read(client: Client, service: Service) -> None:
    page = {
        "items": [],
        "total": 0,
        "offset": 0,
        "version": 1,
        "warnings": ["no image is in the category 'x'"],
    }
    service.replies = [Reply(body=page)]
    assert client.gallery(category=["x"]).warnings == page["warnings"]
