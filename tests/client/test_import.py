"""Imports of many images: what is sent, what is sent again, and the result of each."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raycd.api import ImportItem, ImportLine
from raycd.client import Client, ServiceError
from raycd.client.importing import Importable
from tests.client.scripted import (
    LINES,
    PROBLEM,
    Reply,
    Service,
    Waits,
    done,
    failed,
    info,
    problem,
    refusal,
    settled,
    takes_all,
)

ENCODER = "0123456789ab"
DROPPED = Reply(0)


def images(*names: str) -> list[dict[str, Any]]:
    return [{"image_id": name, "image": name.encode()} for name in names]


def brief(items: Iterator[ImportItem]) -> list[tuple[int, int]]:
    return [(item.line, item.status) for item in items]


def sent(service: Service) -> list[list[str]]:
    """Return the names in each import."""
    return [[line["image_id"] for line in asked.lines()] for asked in service.asked[1:]]


def test_every_form_of_an_item_is_a_line_that_the_service_reads(
    client: Client, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "x.jpg").write_bytes(b"pixels")
    service.answers(Reply(body=info()), takes_all)
    items: list[Importable] = [
        {
            "image_id": "file",
            "image": "x.jpg",
            "category": "dress",
            "attributes": {"colour": "blue"},
        },
        {"image_id": "absolute", "image": tmp_path / "x.jpg", "category": ["dress", "shirt"]},
        ImportLine(image_id="line", feature=[0.5], encoder=ENCODER),
        {"image_id": "feature", "feature": [0.5], "encoder": ENCODER},
        b'{"image_id": "json\\u2028", "image": "x.jpg"}\n',
    ]
    assert brief(client.import_images(items, root=tmp_path)) == [(n, 201) for n in range(1, 6)]
    asked = service.asked[1]
    assert (asked.method, asked.path) == ("POST", "/v1/gallery:import")
    assert asked.headers["content-type"] == LINES
    pixels, feature = base64.b64encode(b"pixels").decode(), base64.b64encode(b"\0\0\0?").decode()
    lines = [ImportLine.model_validate_json(line) for line in asked.body.split(b"\n")[:-1]]
    assert lines == [
        ImportLine(
            image_id="file", image_base64=pixels, category=["dress"], attributes={"colour": "blue"}
        ),
        ImportLine(image_id="absolute", image_base64=pixels, category=["dress", "shirt"]),
        ImportLine(image_id="line", feature=[0.5], encoder=ENCODER),
        ImportLine(image_id="feature", feature=feature, encoder=ENCODER),
        ImportLine(image_id="json\u2028", image_base64=pixels),
    ]


def test_an_impossible_item_fails_alone_and_in_its_place(client: Client, service: Service) -> None:
    items: list[Any] = [
        *images("a"),
        {"image_id": "b", "image": "/nowhere.jpg"},
        b"no json",
        b" \n",
        b"[1]",
        {"image_id": "c"},
        {"image_id": "d", "image": b"x", "attributes": {"size": 7}},
        {"image_id": "e", "feature": [float("inf")], "encoder": ENCODER},
        7,
        '{"image_id": "\\ud800", "image": "x.jpg", "attributes": {"\\udfff": "x"}}',
        *images("f"),
    ]
    service.answers(Reply(body=info()), takes_all)
    answers = list(client.import_images(items))
    expected = [
        (1, 201),
        (2, 422),
        (3, 422),
        (5, 422),
        (6, 422),
        (7, 422),
        (8, 422),
        (9, 422),
        (10, 422),
        (11, 201),
    ]
    assert brief(iter(answers)) == expected
    assert sent(service) == [["a", "f"]]
    assert [answer.image_id for answer in answers] == [
        "a",
        "b",
        None,
        None,
        "c",
        "d",
        "e",
        None,
        "?",
        "f",
    ]
    details = [answer.problem.detail for answer in answers if answer.problem]
    assert "cannot read the image '/nowhere.jpg'" in details[0]
    assert "not JSON" in details[1]
    assert "attributes.size" in details[4]
    assert all(answer.model_dump_json() for answer in answers)


def test_only_impossible_items_send_nothing(client: Client, service: Service) -> None:
    service.answers(Reply(body=info()))
    assert brief(client.import_images([{"image_id": "a"}, {"image_id": "b"}])) == [
        (1, 422),
        (2, 422),
    ]
    assert len(service.asked) == 1


def test_any_number_goes_in_requests_that_the_service_takes(
    client: Client, service: Service
) -> None:
    service.answers(Reply(body=info(import_lines=3)), *[takes_all] * 3)
    assert brief(client.import_images(images(*"abcdefg"))) == [(n, 201) for n in range(1, 8)]
    assert sent(service) == [["a", "b", "c"], ["d", "e", "f"], ["g"]]


def test_a_request_is_no_larger_than_the_service_takes(client: Client, service: Service) -> None:
    items = [{"image_id": name, "image": name.encode() * 100} for name in "abc"]
    service.answers(Reply(body=info(body_bytes=400)), *[takes_all] * 2)
    assert brief(client.import_images(items)) == [(1, 201), (2, 201), (3, 201)]
    assert sent(service) == [["a", "b"], ["c"]]
    assert all(len(asked.body) <= 400 for asked in service.asked[1:])


def test_items_are_read_no_further_ahead_than_one_request(client: Client, service: Service) -> None:
    read: list[int] = []

    def endless() -> Iterator[dict[str, Any]]:
        number = 0
        while True:
            number += 1
            read.append(number)
            yield {"image_id": str(number), "image": b"x"}

    service.answers(Reply(body=info()), *[takes_all] * 3)
    answers = client.import_images(endless(), per_request=10)
    for line in range(1, 26):
        assert next(answers).line == line
        assert len(read) <= -(-line // 10) * 10 + 1


def test_an_answer_is_told_before_the_next_one_comes(client: Client, service: Service) -> None:
    first_is_told = threading.Event()

    def parts() -> Iterator[bytes]:
        yield json.dumps(done(1)).encode() + b"\n" + json.dumps(done(2)).encode()[:5]
        assert first_is_told.wait(30)
        yield json.dumps(done(2)).encode()[5:] + b"\n"

    service.answers(Reply(body=info()), Reply(200, parts(), LINES))
    answers = client.import_images(images("a", "b"))
    assert next(answers).line == 1
    first_is_told.set()
    assert brief(answers) == [(2, 201)]


@pytest.mark.parametrize("status", [503, 429])
def test_items_that_find_the_service_busy_are_sent_again_and_no_others(
    client: Client, service: Service, waits: Waits, status: int
) -> None:
    service.answers(
        Reply(body=info()),
        settled(failed(1, status), done(2), failed(3, 422), failed(4, status)),
        settled(done(1, 8), failed(2, status)),
        settled(done(1, 9)),
    )
    answers = list(client.import_images(images(*"abcd")))
    assert brief(iter(answers)) == [(2, 201), (3, 422), (1, 201), (4, 201)]
    assert [answer.image_id for answer in answers] == ["b", "c", "a", "d"]
    assert sent(service) == [["a", "b", "c", "d"], ["a", "d"], ["d"]]
    assert len(waits.seconds) == 2


def test_of_two_items_with_one_name_the_later_one_is_the_last_that_is_sent(
    client: Client, service: Service
) -> None:
    items = [*images("a", "b"), {"image_id": "a", "image": b"later"}]
    service.answers(Reply(body=info()), settled(failed(1, 503), done(2)), takes_all, takes_all)
    assert brief(client.import_images(items)) == [(2, 201), (1, 201), (3, 201)]
    assert sent(service) == [["a", "b"], ["a"], ["a"]]
    assert service.asked[-1].lines()[0]["image_base64"] == base64.b64encode(b"later").decode()


def test_after_the_last_try_a_busy_service_is_the_items_own_problem_and_the_rest_goes_on(
    connect: Callable[..., Client], service: Service
) -> None:
    service.answers(
        Reply(body=info()),
        *(settled(failed(1, 503, "the queue is full")) for _ in range(3)),
        takes_all,
    )
    answers = list(connect(count=2).import_images(images("a", "b"), per_request=1))
    assert brief(iter(answers)) == [(1, 503), (2, 201)]
    assert answers[0].problem is not None
    assert answers[0].problem.detail == "the queue is full"


@pytest.mark.parametrize("cut", [b"", b'{"line": 2, "image_id": "b", "sta', b'{"line": 2}'])
def test_what_a_broken_answer_does_not_tell_is_sent_again_and_nothing_else(
    client: Client, service: Service, waits: Waits, cut: bytes
) -> None:
    service.answers(Reply(body=info()), settled(done(1), cut=cut), takes_all)
    assert brief(client.import_images(images("a", "b", "c"))) == [(1, 201), (2, 201), (3, 201)]
    assert sent(service) == [["a", "b", "c"], ["b", "c"]]
    assert len(waits.seconds) == 1


def test_an_answer_that_ends_early_is_as_a_broken_one(client: Client, service: Service) -> None:
    service.answers(Reply(body=info()), settled(done(1), failed(2, 413)), takes_all)
    assert brief(client.import_images(images("a", "b", "c"))) == [(1, 201), (2, 413), (3, 201)]
    assert sent(service) == [["a", "b", "c"], ["c"]]


def test_an_import_through_connections_that_always_break_gets_to_its_end(
    connect: Callable[..., Client], service: Service
) -> None:
    service.answers(Reply(body=info()), *(settled(done(1), cut=b"") for _ in range(8)), takes_all)
    answers = connect(count=1).import_images(images(*"abcdefghi"))
    assert brief(answers) == [(n, 201) for n in range(1, 10)]


def test_an_answer_that_never_tells_anything_is_given_up(
    connect: Callable[..., Client], service: Service
) -> None:
    service.answers(
        Reply(body=info()), settled(done(1), cut=b""), *(settled(cut=b"") for _ in range(2))
    )
    answers = connect(count=2).import_images(images("a", "b"))
    assert next(answers).line == 1
    with pytest.raises(ServiceError, match="before the last line \\(tried 3 times\\)"):
        next(answers)


def test_a_request_that_got_no_answer_is_sent_again(
    client: Client, service: Service, waits: Waits
) -> None:
    service.answers(Reply(body=info()), DROPPED, refusal(503, after="3"), takes_all)
    assert brief(client.import_images(images("a", "b"))) == [(1, 201), (2, 201)]
    assert sent(service) == [["a", "b"]] * 3
    assert waits.seconds[1] > 3


@pytest.mark.parametrize("status", [401, 403, 415, 500, 507])
def test_a_refused_import_is_told_once_and_not_sent_again(
    client: Client, service: Service, status: int
) -> None:
    service.answers(Reply(body=info()), refusal(status, "not like this"))
    with pytest.raises(ServiceError, match="not like this") as caught:
        list(client.import_images(images("a", "b"), per_request=1))
    assert caught.value.status == status


def test_an_image_larger_than_the_service_takes_fails_alone(
    client: Client, service: Service
) -> None:
    service.answers(
        Reply(body=info(body_bytes=200)),
        refusal(413, "larger than 200 bytes", limit="max_body_bytes"),
        takes_all,
    )
    items = [{"image_id": "a", "image": b"x" * 300}, *images("b")]
    answers = list(client.import_images(items))
    assert [(answer.line, answer.image_id, answer.status) for answer in answers] == [
        (1, "a", 413),
        (2, "b", 201),
    ]
    assert answers[0].problem is not None
    assert answers[0].problem.limit == "max_body_bytes"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"<html>hello</html>", "text/html"),
        Reply(200, b"hello\n", LINES),
        Reply(200, json.dumps(done(3)).encode() + b"\n", LINES),
        Reply(200, (json.dumps(done(1)).encode() + b"\n") * 2, LINES),
    ],
)
def test_an_answer_that_is_none_is_told(client: Client, service: Service, reply: Reply) -> None:
    service.answers(Reply(body=info()), reply)
    with pytest.raises(ServiceError, match="/v1/gallery:import cannot be read") as caught:
        list(client.import_images(images("a", "b")))
    assert "hello" not in str(caught.value)


def test_a_line_separator_inside_of_a_text_ends_no_line(client: Client, service: Service) -> None:
    service.answers(Reply(body=info()), settled(failed(1, 422, "no\u2028such\x85thing"), done(2)))
    answers = list(client.import_images(images("a", "b")))
    assert answers[0].problem is not None
    assert answers[0].problem.detail == "no\u2028such\x85thing"


def test_leaving_an_import_ends_its_connection(client: Client, service: Service) -> None:
    left = threading.Event()

    def parts() -> Iterator[bytes]:
        try:
            while True:
                yield json.dumps(done(1)).encode() + b"\n" + b" " * 100_000 + b"\n"
        finally:
            left.set()

    service.answers(Reply(body=info()), Reply(200, parts(), LINES))
    answers = client.import_images(images("a", "b"))
    assert next(answers).line == 1
    answers.close()  # type: ignore[attr-defined]  # it is a generator
    assert left.wait(30)


def test_nothing_to_import_asks_for_nothing(client: Client, service: Service) -> None:
    service.answers(Reply(body=info()))
    assert list(client.import_images([])) == []


def test_a_service_whose_gallery_does_not_change_says_so(client: Client, service: Service) -> None:
    body = problem(403, "this service's gallery does not change")
    service.answers(Reply(body=info()), Reply(403, body, PROBLEM))
    with pytest.raises(ServiceError, match="does not change"):
        list(client.import_images(images("a")))
