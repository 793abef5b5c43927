"""A form within the limits is read, whatever its size; one beyond them names its limit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from raycd.api import GalleryImage, SearchRequest
from serve.api import bodies, intake
from serve.api.problems import ProblemError
from serve.args import ServeArgs

ARGS = ServeArgs(max_attributes=70, max_filters=90)


def read(method: str, kind: str, body: bytes) -> tuple[Any, bytes | None]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", kind.encode())]
    return asyncio.run(
        bodies.read(
            Request({"type": "http", "app": 0, "method": method, "headers": headers}, receive), ARGS
        )
    )


def multipart(count: int, *others: str) -> tuple[str, bytes]:
    names = ["category"] * count + list(others)
    parts = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n1\r\n' for name in names
    )
    return "multipart/form-data; boundary=x", f"{parts}--x--\r\n".encode()


def urlencoded(count: int, *others: str) -> tuple[str, bytes]:
    return bodies.URLENCODED, "&".join(
        f"{name}=1" for name in ["category"] * count + list(others)
    ).encode()


@pytest.mark.parametrize("form", [multipart, urlencoded])
@pytest.mark.parametrize(
    ("method", "model", "limit"),
    [("PUT", GalleryImage, "max_attributes"), ("POST", SearchRequest, "max_filters")],
)
def test_as_many_categories_as_are_allowed_fit_beside_all_other_fields(
    form: Any, method: str, model: Any, limit: str
) -> None:
    most = getattr(ARGS, limit)
    others = [name for name in model.model_fields if name != "category"]
    fields, _ = read(method, *form(most, *others))
    assert set(fields) == set(model.model_fields)
    assert len(fields["category"]) == most
    with pytest.raises(ProblemError) as caught:
        read(method, *form(most + 30))
    assert (caught.value.status_code, caught.value.problem.limit) == (422, limit)
    assert limit in caught.value.problem.detail


@pytest.mark.parametrize("name", bodies.AS_JSON)
def test_an_empty_field_of_json_is_absent(name: str) -> None:
    part = 'Content-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    form = "--x\r\n".join(["", part.format(name, " "), part.format("text", "red")]) + "--x--\r\n"
    assert read("POST", "multipart/form-data; boundary=x", form.encode()) == ({"text": "red"}, None)
    assert read("POST", bodies.URLENCODED, f"text=red&{name}=".encode()) == ({"text": "red"}, None)


@pytest.mark.parametrize("charset", ["punycode", "idna", "utf-7", "base64", "no"])
def test_a_charset_that_may_take_minutes_is_refused_at_once(charset: str) -> None:
    _, form = multipart(1)
    with pytest.raises(ProblemError, match="send UTF-8") as caught:
        read("POST", f"multipart/form-data; boundary=x; charset={charset}", form)
    assert caught.value.status_code == 400


@pytest.mark.parametrize("charset", ["UTF8", "us-ascii", "latin-1", '"windows-1252"'])
def test_the_charsets_of_forms_are_known_by_all_their_names(charset: str) -> None:
    _, form = multipart(1)
    assert read("POST", f"multipart/form-data; boundary=x; charset={charset}", form) == (
        {"category": ["1"]},
        None,
    )


def test_what_else_is_wrong_with_a_form_is_not_blamed_on_the_limit() -> None:
    part = 'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n1\r\n'
    with pytest.raises(HTTPException, match="Too many files"):
        read(
            "PUT",
            "multipart/form-data; boundary=x",
            f"--x\r\n{part}--x\r\n{part}--x--\r\n".encode(),
        )


def test_json_in_a_form_has_no_more_values_than_a_body_of_json() -> None:
    def images(count: int) -> bytes:
        return f"images=[{','.join(['0'] * count)}]".encode()

    most = intake.COMMAS + ARGS.max_filters + 1
    fields, _ = read("POST", bodies.URLENCODED, images(most))
    assert len(fields["images"]) == most
    with pytest.raises(ProblemError, match="too many values"):
        read("POST", bodies.URLENCODED, images(most + 1))
