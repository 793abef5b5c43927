"""A real HTTP server on loopback with scripted answers, and clients of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from raycd.client import Client, Retries
from tests.client.scripted import Asked, Reply, Service, Waits


@pytest.fixture
def service() -> Iterator[Service]:
    script = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.asked.append(Asked(self.command, self.path, headers, body))
            reply = script.replies.pop(0)
            if callable(reply):
                reply = reply(script.asked[-1])
            if reply.status == 0:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if isinstance(reply.body, Iterator):
                self.stream(reply)
                return
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in {
                "Content-Type": reply.kind,
                "Content-Length": str(len(data)),
                **reply.headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PUT = do_DELETE = do_GET

        def stream(self, reply: Reply) -> None:
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for part in reply.body:
                    self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")
            except ConnectionError:  # of the script's own, or a client that has left
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield script
        server.shutdown()
        thread.join()
    assert script.replies == []


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def connect(service: Service, waits: Waits) -> Iterator[Callable[..., Client]]:
    """Return a function that makes clients of the server, whose waits take no time."""
    opened: list[Client] = []

    def make(*, count: int = 4, deadline: float = 120.0, **settings: Any) -> Client:
        retries = Retries(count, deadline, waits.sleep, waits.clock)
        opened.append(Client(service.url, retries=retries, **settings))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def client(connect: Callable[..., Client]) -> Client:
    return connect()
