"""What a user reads when the service refuses, does not answer, or is something else."""

import logging
import pickle
import socket
import threading
from typing import Any

import pytest

from raycd.client import Client, ServiceError
from raycd.errors import ConfigError, DataError
from tests import refused
from tests.client.scripted import JSON, PROBLEM, Reply, Service, refusal


def failure(client: Client) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        client.info()
    return caught.value


def test_a_problem_keeps_its_members_and_its_words(client: Client, service: Service) -> None:
    errors = [{"field": "top_k", "message": "got 500, at most 200"}]
    service.answers(refusal(422, "too many results: got 500", limit="max_top_k", errors=errors))
    with pytest.raises(ServiceError) as caught:
        client.search(text="is blue", top_k=500)
    error = caught.value
    assert str(error).splitlines() == [
        f"{service.url} answered 422 Unprocessable Entity to POST /v1/search",
        "  got:      too many results: got 500",
    ]
    assert error.status == 422
    assert error.problem is not None
    assert error.problem.limit == "max_top_k"
    assert error.problem.errors is not None
    assert error.problem.errors[0].field == "top_k"


def test_an_error_survives_the_way_between_processes(client: Client, service: Service) -> None:
    service.answers(refusal(404, "there is no image 'x'"))
    error = failure(client)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.status, copy.problem) == (str(error), 404, error.problem)


def test_the_page_of_a_proxy_is_named_and_not_shown(client: Client, service: Service) -> None:
    service.answers(
        *[Reply(502, b"<html>" + b"secret of the proxy " * 1000, "text/html; charset=utf-8")] * 5
    )
    error = failure(client)
    assert (error.status, error.problem) == (502, None)
    assert "502 Bad Gateway" in str(error)
    assert "20,006 bytes of text/html" in str(error)
    assert "a proxy, or another server, may have answered (tried 5 times)" in str(error)
    assert "secret" not in str(error)


def test_a_plain_text_is_shown_in_part_and_cannot_steer_the_terminal(
    client: Client, service: Service
) -> None:
    service.answers(Reply(400, b"no \x1b[31mroute\n" + b"x" * 9999, "text/plain"))
    error = str(failure(client))
    assert "no [31mroute xxx" in error
    assert "\x1b" not in error
    assert len(error) < 700


@pytest.mark.parametrize("body", [b"", b"{", b'{"detail": 7}'])
def test_a_problem_document_that_is_none_is_told(
    client: Client, service: Service, body: bytes
) -> None:
    service.answers(Reply(500, body, PROBLEM))
    error = failure(client)
    assert (error.status, error.problem) == (500, None)
    assert f"{len(body)} bytes of application/problem+json" in str(error)


def test_a_redirect_is_not_followed_and_its_place_is_told(client: Client, service: Service) -> None:
    service.answers(
        Reply(308, b"", "", {"Location": "https://ann:s3cret@elsewhere/v1/info?token=s3cret"})
    )
    error = failure(client)
    assert error.status == 308
    assert "use the url that it points to: https://elsewhere/v1/info" in str(error)
    assert "s3cret" not in str(error)


@pytest.mark.parametrize(
    "reply", [Reply(200, b"<html>hello</html>", "text/html"), Reply(200, b'{"version": 1}', JSON)]
)
def test_an_answer_of_another_server_is_told(
    client: Client, service: Service, reply: Reply
) -> None:
    service.answers(reply)
    error = failure(client)
    assert error.status == 200
    assert "cannot be read" in str(error)
    assert "hello" not in str(error)


def test_where_nothing_listens_the_url_and_the_remedy_are_told() -> None:
    with refused.port() as port:
        url = f"http://127.0.0.1:{port}"
        with Client(url, retries=0) as client:
            error = failure(client)
    assert error.status is None
    assert str(error).splitlines()[0] == f"no service answers at {url}"
    assert "Connection refused" in str(error)
    assert "python serve/app.py --bundle" in str(error)


def test_a_service_that_is_silent_is_not_asked_again() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.05) as client:
            assert "did not answer in time" in str(failure(client))
        connection, _ = listener.accept()
        connection.close()
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_refusal_before_the_body_was_read_is_heard() -> None:
    """As the service refuses large bodies: it answers at their header, and closes."""
    body = (
        b'{"type":"about:blank","title":"Content Too Large","status":413,'
        b'"detail":"too large","limit":"max_body_bytes"}'
    )

    def refuse(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            head = (
                f"HTTP/1.1 413 X\r\nContent-Type: {PROBLEM}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1_000_000):
                pass

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=refuse, args=(listener,))
        thread.start()
        with (
            Client(f"http://127.0.0.1:{listener.getsockname()[1]}", retries=0) as client,
            pytest.raises(ServiceError, match="413") as caught,
        ):
            client.search(image=b"x" * 5_000_000)
        thread.join()
    assert caught.value.problem is not None
    assert caught.value.problem.limit == "max_body_bytes"


def test_a_service_without_tls_is_told_and_not_asked_again(service: Service) -> None:
    with Client(service.url.replace("http://", "https://")) as client:
        error = failure(client)
    assert "no TLS connection to https://" in str(error)
    assert "give http:// where the service has no TLS" in str(error)


@pytest.mark.parametrize("url", ["http://-a..b", f"http://{'a' * 64}.org", "http://xn--a"])
def test_a_host_that_can_be_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="the url of the service is impossible"):
        Client(url)


@pytest.mark.parametrize("filters", [{"category": ["\udcff"]}, {"attributes": {"a": {"gte": "x"}}}])
def test_filters_that_cannot_be_sent_are_one_message(
    client: Client, service: Service, filters: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match="the search is impossible"):
        client.gallery(**filters)
    assert not service.asked


def test_a_url_that_is_too_long_is_one_message(client: Client) -> None:
    with pytest.raises(DataError, match=r"the request cannot be sent\n.*too long"):
        client.image("a" * 70_000)


def test_the_password_of_a_url_is_sent_and_in_no_log(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.answers(refusal(404, "there is no image"))
    with (
        caplog.at_level(logging.INFO),
        Client(service.url.replace("http://", "http://ann:secret@")) as client,
    ):
        failure(client)
    assert service.asked[0].headers["authorization"].startswith("Basic ")
    assert "HTTP Request: GET" in caplog.text
    assert "secret" not in caplog.text
