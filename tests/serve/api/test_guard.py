"""Keys, origins and hosts: the guard of a small application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import ValidationError

from raycd.errors import ConfigError
from serve import keys
from serve.api import guard, problems
from serve.args import ServeArgs
from tests.serve.asking import problem
from tests.serve.test_app import message

if TYPE_CHECKING:
    from serve.security.keyring import Scope

PAGE = "https://shop.example"


@pytest.fixture
def made(tmp_path: Path) -> dict[str, str]:
    """Return a key of each scope, and their file."""
    file = tmp_path / "keys.json"
    return {
        "read": keys.add(file, "bob", "read"),
        "write": keys.add(file, "alice", "write"),
        "file": str(file),
    }


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def small_app(**args: Any) -> FastAPI:
    """Return an application that answers with the length of the body, behind the real guard."""
    app = FastAPI()
    problems.add_handlers(app)

    @app.get("/v1/info", responses=problems.responses(422))
    @app.post("/v1/search")
    @app.post("/v1/gallery:import")
    @app.put("/v1/gallery/{image_id:path}")
    @app.get("/healthz")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.api_route(
        "/{rest:path}",
        methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        include_in_schema=False,
    )
    async def rest(request: Request) -> int:
        return len(await request.body())

    settings = ServeArgs(**args)
    guard.add(app, settings)
    guard.add_origins(app, settings)
    return app


def call(app: FastAPI, method: str, path: str, **request: Any) -> httpx.Response:
    async def answered() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.request(method, f"http://127.0.0.1:8000{path}", **request)

    return asyncio.run(answered())


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/", None),
        ("GET", "/healthz", None),
        ("HEAD", "/healthz", None),
        ("GET", "/readyz", None),
        ("GET", "/web/app.js", None),
        ("GET", "/docs", None),
        ("GET", "/static-offline-docs/swagger-ui.css", None),
        ("GET", "/openapi.json", None),
        ("GET", "/v1/info", "read"),
        ("HEAD", "/v1/images/a", "read"),
        ("GET", "/v1/images/web/a", "read"),
        ("POST", "/v1/search", "read"),
        ("POST", "/v1/search/batch", "read"),
        ("GET", "/v1/not-yet-invented", "read"),
        ("GET", "/v2/info", "read"),
        ("GET", "//healthz", "read"),
        ("GET", "/docs/elsewhere", "read"),
        ("PUT", "/v1/gallery/a", "write"),
        ("DELETE", "/v1/gallery/a/b", "write"),
        ("POST", "/v1/gallery:import", "write"),
        ("POST", "/v1/searches", "write"),
        ("POST", "/v1/not-yet-invented", "write"),
        ("PATCH", "/v1/search", "write"),
        ("DELETE", "/healthz", "write"),
    ],
)
def test_a_request_needs_a_key_of_its_scope(
    made: dict[str, str], method: str, path: str, scope: Scope | None
) -> None:
    app = small_app(api_keys=made["file"])
    statuses = [
        call(app, method, path, headers=headers).status_code
        for headers in ({}, bearer(made["read"]))
    ]
    assert statuses == {None: [200, 200], "read": [401, 200], "write": [401, 403]}[scope]
    assert call(app, method, path, headers=bearer(made["write"])).status_code == 200


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        (None, "Bearer"),
        ("", "Bearer"),
        ("Bearer", "Bearer"),
        ("Bearer ", "Bearer"),
        ("Basic YWxpY2U6cw==", "Bearer"),
        ("{write}", "Bearer"),
        ("Token {write}", "Bearer"),
        ("Bearer {write}x", 'Bearer error="invalid_token"'),
        ("Bearer x{write}", 'Bearer error="invalid_token"'),
        ("Bearer {write} {write}", 'Bearer error="invalid_token"'),
        ("Bearer schlüssel", 'Bearer error="invalid_token"'),
    ],
)
def test_a_missing_or_wrong_key_is_told_which_header_to_send(
    made: dict[str, str], header: str | None, challenge: str
) -> None:
    app = small_app(api_keys=made["file"])
    headers = {} if header is None else {b"authorization": header.format(**made).encode("latin-1")}
    response = call(app, "GET", "/v1/info", headers=headers)
    assert "Authorization: Bearer <key>" in problem(response, 401)["detail"]
    assert response.headers["www-authenticate"] == challenge


@pytest.mark.parametrize("header", ["Bearer {read}", "bearer {read}", "BEARER  {read} "])
def test_the_scheme_is_told_in_any_case(made: dict[str, str], header: str) -> None:
    app = small_app(api_keys=made["file"])
    assert (
        call(app, "GET", "/v1/info", headers={"Authorization": header.format(**made)}).status_code
        == 200
    )


def test_a_key_that_may_only_read_is_told_which_scope_is_needed(made: dict[str, str]) -> None:
    response = call(
        small_app(api_keys=made["file"]), "PUT", "/v1/gallery/a", headers=bearer(made["read"])
    )
    detail = problem(response, 403)["detail"]
    assert "needs write" in detail
    assert "ask whoever runs the service" in detail
    assert (
        response.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="write"'
    )


@pytest.mark.parametrize("key", [None, "raycd_wrong", "read"])
def test_no_body_is_read_before_the_key_is_checked(made: dict[str, str], key: str | None) -> None:
    read = []

    async def body() -> AsyncIterator[bytes]:
        for part in (b"a", b"b"):
            read.append(part)
            yield part

    app = small_app(api_keys=made["file"])
    headers = {} if key is None else bearer(made.get(key, key))
    assert call(app, "PUT", "/v1/gallery/a", content=body(), headers=headers).status_code in (
        401,
        403,
    )
    assert read == []
    assert (
        call(app, "PUT", "/v1/gallery/a", content=body(), headers=bearer(made["write"])).json() == 2
    )


def test_no_key_stands_in_an_answer_or_in_the_log(
    made: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    app = small_app(api_keys=made["file"])
    wrong = "raycd_n0t-a-key"
    with caplog.at_level("DEBUG"):
        for key in (made["read"], made["write"], wrong):
            for method, path in (
                ("GET", "/v1/info"),
                ("PUT", "/v1/gallery/a"),
                ("GET", "/openapi.json"),
            ):
                response = call(app, method, path, headers=bearer(key))
                seen = f"{response.headers} {response.text}"
                assert key not in seen
                assert made["file"] not in seen
    for key in (made["read"], made["write"], wrong):
        assert key.removeprefix(keys.PREFIX) not in caplog.text


def test_without_keys_everything_is_answered(tmp_path: Path) -> None:
    assert call(small_app(), "PUT", "/v1/gallery/a").status_code == 200
    assert "securitySchemes" not in call(small_app(), "GET", "/openapi.json").json().get(
        "components", {}
    )


def test_a_file_of_keys_that_cannot_be_read_lets_no_service_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        small_app(api_keys=str(tmp_path / "nothing.json"))


def test_the_description_says_which_scope_an_operation_needs(made: dict[str, str]) -> None:
    app = small_app(api_keys=made["file"])
    for _ in range(2):  # the second one is from FastAPI's cache
        schema = call(app, "GET", "/openapi.json").json()
        assert schema["components"]["securitySchemes"] == {
            "api_key": {"type": "http", "scheme": "bearer"}
        }
        paths = schema["paths"]
        assert paths["/v1/info"]["get"]["security"] == [{"api_key": ["read"]}]
        assert paths["/v1/search"]["post"]["security"] == [{"api_key": ["read"]}]
        assert paths["/v1/gallery/{image_id}"]["put"]["security"] == [{"api_key": ["write"]}]
        assert "401" in paths["/v1/search"]["post"]["responses"]
        assert "403" in paths["/v1/gallery:import"]["post"]["responses"]
        assert "security" not in paths["/healthz"]["get"]


def preflight(
    app: FastAPI, origin: str, method: str, headers: str = "authorization, content-type"
) -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }
    return call(app, "OPTIONS", "/v1/gallery/a", headers=asked)


def cors(response: httpx.Response) -> dict[str, str]:
    return {
        name: value
        for name, value in response.headers.items()
        if name.startswith("access-control-")
    }


def test_other_origins_get_no_header_by_default(made: dict[str, str]) -> None:
    app = small_app(api_keys=made["file"])
    assert cors(call(app, "GET", "/v1/info", headers=bearer(made["read"]) | {"Origin": PAGE})) == {}
    refused = preflight(app, PAGE, "PUT")
    assert refused.status_code == 401
    assert cors(refused) == {}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_a_preflight_needs_no_key(made: dict[str, str], method: str) -> None:
    response = preflight(small_app(api_keys=made["file"], cors_origins=(PAGE,)), PAGE, method)
    assert response.status_code == 200
    headers = cors(response)
    assert headers["access-control-allow-origin"] == PAGE
    assert method in headers["access-control-allow-methods"]
    assert {"authorization", "content-type"} <= set(
        headers["access-control-allow-headers"].lower().split(", ")
    )
    assert "access-control-allow-credentials" not in headers


def test_a_preflight_of_another_origin_or_method_is_refused(made: dict[str, str]) -> None:
    app = small_app(api_keys=made["file"], cors_origins=(PAGE,))
    assert "access-control-allow-origin" not in cors(preflight(app, "https://evil.example", "PUT"))
    assert preflight(app, "https://evil.example", "PUT").status_code == 400
    assert preflight(app, PAGE, "PATCH").status_code == 400
    assert preflight(app, PAGE, "PUT", "x-other").status_code == 400


def test_a_page_of_an_allowed_origin_may_read_why_it_is_refused(made: dict[str, str]) -> None:
    app = small_app(api_keys=made["file"], cors_origins=(PAGE,))
    refused = call(app, "GET", "/v1/info", headers={"Origin": PAGE})
    problem(refused, 401)
    assert refused.headers["access-control-allow-origin"] == PAGE
    assert cors(
        call(app, "GET", "/v1/info", headers={"Origin": "https://evil.example"})
    ).keys() <= {"access-control-expose-headers"}


def test_every_origin_may_ask_only_where_keys_are_needed(made: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="set api_keys, too"):
        ServeArgs(cors_origins=("*",))
    app = small_app(api_keys=made["file"], cors_origins=("*",))
    assert preflight(app, PAGE, "PUT").headers["access-control-allow-origin"] == "*"
    assert call(app, "GET", "/v1/info", headers={"Origin": PAGE}).status_code == 401


@pytest.mark.parametrize(
    "origin", ["shop.example", "https://shop.example/", "null", "https://u@shop.example", ""]
)
def test_what_is_not_an_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        ServeArgs(cors_origins=(origin,))


LOOPBACK = ("127.0.0.1", "localhost", "::1")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LocalHost", "[::1]", "[::1]:8000"]
)
def test_a_host_of_ours_is_answered(host: str) -> None:
    assert (
        call(small_app(hosts=LOOPBACK), "GET", "/v1/info", headers={"Host": host}).status_code
        == 200
    )


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"),
        *(
            "localhost@evil.example",
            "evil@localhost",
            "evil.example#localhost",
            "localhost:8000:9",
            "localhost x",
        ),
        *("127.0.0.2", "[::2]", "::1", ""),
    ],
)
def test_a_foreign_host_gets_a_problem_whatever_else_it_brings(
    made: dict[str, str], host: str
) -> None:
    app = small_app(hosts=LOOPBACK, api_keys=made["file"], cors_origins=(PAGE,))
    headers = bearer(made["write"]) | {"Host": host, "Origin": PAGE}
    response = call(app, "PUT", "/v1/gallery/a", headers=headers)
    assert "(hosts)" in problem(response, 421)["detail"]
    assert cors(response)["access-control-allow-origin"] == PAGE
    assert call(app, "GET", "/healthz", headers=headers).status_code == 200


@pytest.mark.parametrize("hosts", [(), ("*",), ("shop.example", "*")])
def test_any_host_is_answered_where_none_is_named(hosts: tuple[str, ...]) -> None:
    assert (
        call(
            small_app(hosts=hosts), "GET", "/v1/info", headers={"Host": "evil.example"}
        ).status_code
        == 200
    )


@pytest.mark.parametrize(
    "host", ["http://shop.example", "shop.example:8000", "shop.example/", "[::1]:8000", ""]
)
def test_what_is_not_a_host_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="is not a host"):
        ServeArgs(hosts=(host,))


def test_keys_that_cannot_be_read_are_told_before_ray_starts(
    tiny_bundle: Any, tmp_path: Path, free_port: int
) -> None:
    arguments = ("--bundle", str(tiny_bundle.folder), "--port", str(free_port))
    error = message(*arguments, "--api-keys", str(tmp_path / "nothing.json"))
    assert "the file of API keys cannot be read" in error
    assert "cors_origins: impossible value" in message(*arguments, "--cors-origins", "*")


@pytest.mark.slow
def test_listening_for_all_without_keys_is_warned_of(
    tmp_path: Path, free_port: int, made: dict[str, str]
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")  # so that the command ends by itself
    arguments = ("--bundle", str(bundle), "--port", str(free_port))
    error = message(*arguments, "--host", "0.0.0.0")
    assert "warning: the service listens on 0.0.0.0 without API keys" in error
    assert "serve/keys.py add" in error
    assert "warning" not in message(*arguments, "--host", "0.0.0.0", "--api-keys", made["file"])
    assert "warning" not in message(*arguments)
