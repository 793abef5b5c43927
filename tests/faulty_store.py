"""A proxy before the S3 server of the tests that is busy, slow, breaks off, refuses or is gone."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>{}</Message></Error>'


@dataclass
class Fault:
    """What happens to the next `times` requests of some methods whose path has `path` in it."""

    kind: str
    """An S3 error ("503 SlowDown"), "slow 0.5" (seconds), "cut" (half an answer), "gone", "lost"
    (done, and no answer).
    """
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    path: str = ""
    times: float = 1
    after: int = 0
    """Requests that pass before."""
    met: int = field(default=0, init=False)

    def meets(self, method: str, path: str) -> bool:
        if method not in self.methods or self.path not in path:
            return False
        self.met += 1
        return self.after < self.met <= self.after + self.times


class FaultyStore(ThreadingHTTPServer):
    """The proxy; `faults` may be changed at any time."""

    daemon_threads = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = urlsplit(server).netloc
        self.faults: list[Fault] = []
        self.asked: list[str] = []
        """Method and path of every request."""
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, method: str, path: str) -> str:
        """Return what happens to a request, "" for nothing."""
        with self._lock:
            self.asked.append(f"{method} {path}")
            return next((each.kind for each in self.faults if each.meets(method, path)), "")


@contextmanager
def faulty_store(server: str) -> Iterator[FaultyStore]:
    proxy = FaultyStore(server)
    threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FaultyStore
    protocol_version = "HTTP/1.1"

    def _pass(self) -> None:
        # The body of HTTP/1.1's "Expect: 100-continue" comes as well: http.server has answered it
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.server.fault(self.command, self.path)
        name, _, rest = kind.partition(" ")
        if name == "gone":
            self.close_connection = True
            return
        if name == "slow":
            time.sleep(float(rest))
        if name.isdigit():
            self._answer(int(name), {}, ERROR.format(rest, "a fault of the tests").encode())
            return
        behind = http.client.HTTPConnection(self.server.behind, timeout=60)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        if name == "lost":
            self.close_connection = True
            return
        headers = {key: value for key, value in answer.getheaders() if key not in _HOP}
        if self.command == "HEAD":  # the length of what is not sent
            headers["Content-Length"] = answer.getheader("Content-Length", "0")
        self._answer(answer.status, headers, answer.read(), cut=name == "cut")
        behind.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False
    ) -> None:
        with suppress(ConnectionError):  # a client that did not wait
            self.send_response_only(status)
            for key, value in headers.items():
                self.send_header(key, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def log_message(self, *_: Any) -> None:
        pass


_HOP = ("Connection", "Transfer-Encoding", "Content-Length", "Keep-Alive")
