"""Stores that refuse, are busy, break off or do not exist, with a real HTTP client."""

from __future__ import annotations

import errno
import socket
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from huggingface_hub import HfFileSystem
from PIL import Image
from s3fs import S3FileSystem

from raycd import stores
from raycd.config import Config, cli
from raycd.data import files
from raycd.data.images import BrokenImage, load, read_bytes
from raycd.errors import DataError
from raycd.model.encoder import Encoder
from raycd.run import open_uri
from raycd.runtime.embed import embed_shards, embedding


class ImageStore(ThreadingHTTPServer):
    """A store with an image at every path, after the statuses that `script` has for it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: dict[str, list[int]] = {}
        self.headers: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        self.data = BytesIO()
        Image.fromarray(np.arange(48 * 40 * 3, dtype=np.uint8).reshape(48, 40, 3)).save(
            self.data, "PNG"
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: ImageStore

    def do_GET(self) -> None:
        statuses = self.server.script.get(self.path, [200])
        status = statuses[min(self.server.asked[self.path], len(statuses) - 1)]
        self.server.asked[self.path] += 1
        body = self.server.data.getvalue() if status == 200 else b"no"
        self.send_response(status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + (100 if status == 206 else 0)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def store() -> Iterator[ImageStore]:
    server = ImageStore()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return what `ask` would have waited, in seconds."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def refused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("status", [404, 410])
def test_what_a_store_says_is_absent_is_missing_and_asked_for_once(
    store: ImageStore, status: int
) -> None:
    store.script["/a.png"] = [status]
    with pytest.raises(BrokenImage) as caught:
        load(f"{store.url}/a.png", max_pixels=10**6, min_side=8)
    assert caught.value.reason == "missing"
    assert store.asked["/a.png"] == 1


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_store_that_refuses_is_an_error_about_credentials(store: ImageStore, status: int) -> None:
    store.script["/a.png"] = [status]
    with pytest.raises(DataError, match="credentials") as caught:
        read_bytes(f"{store.url}/a.png")
    assert not isinstance(caught.value, BrokenImage)
    assert f"{store.url} refuses" in str(caught.value)
    assert store.asked["/a.png"] == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_store_is_asked_again(store: ImageStore, waits: list[float], status: int) -> None:
    store.script["/a.png"] = [status, status, 200]
    assert load(f"{store.url}/a.png", max_pixels=10**6, min_side=8).size == (40, 48)
    assert [round(wait) for wait in waits] in ([0, 1], [1, 1])


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7), ("100000", 60), ("Fri, 01 Jan 2100 00:00:00 GMT", 60)]
)
def test_retry_after_is_honoured_within_bounds(
    store: ImageStore, waits: list[float], said: str, seconds: float
) -> None:
    store.script["/a.png"], store.headers["Retry-After"] = [429, 200], said
    read_bytes(f"{store.url}/a.png")
    assert waits == [pytest.approx(seconds, abs=0.2)]


@pytest.mark.parametrize("said", ["", "soon", "-3", "nan"])
def test_a_malformed_retry_after_is_ignored(
    store: ImageStore, waits: list[float], said: str
) -> None:
    store.script["/a.png"], store.headers["Retry-After"] = [503, 200], said
    read_bytes(f"{store.url}/a.png")
    assert waits == [pytest.approx(0.5, abs=0.2)]


def test_a_store_that_stays_busy_is_an_error_that_names_it(
    store: ImageStore, waits: list[float]
) -> None:
    store.script["/a.png"] = [503]
    with pytest.raises(DataError) as caught:
        load(f"{store.url}/a.png", max_pixels=10**6, min_side=8)
    assert not isinstance(caught.value, BrokenImage)
    assert f"{store.url} does not answer" in str(caught.value)
    assert "6 tries" in str(caught.value)
    assert len(waits) == 5
    assert sum(waits) < 20


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "no-such-host.invalid"])
def test_a_store_that_is_not_there_is_an_error_that_names_it(
    waits: list[float], address: str
) -> None:
    url = f"http://{address.format(port=refused_port())}"
    with pytest.raises(DataError) as caught:
        read_bytes(f"{url}/a.png")
    assert not isinstance(caught.value, BrokenImage)
    assert f"{url} does not answer" in str(caught.value)
    assert len(waits) == 5


@pytest.mark.parametrize(
    ("uri", "said", "tries"),
    [
        ("hf://datasets/owner/name/data", "hf://datasets does not answer", 6),
        ("hf://datasets/name", "reading hf://datasets/name failed", 1),
    ],
)
def test_a_hub_that_is_away_and_a_name_that_it_cannot_have_are_told(
    waits: list[float], monkeypatch: pytest.MonkeyPatch, uri: str, said: str, tries: int
) -> None:
    """It is asked where its listings are forgotten."""
    store = HfFileSystem(endpoint=f"http://127.0.0.1:{refused_port()}", skip_instance_cache=True)
    path = uri.removeprefix("hf://")
    with pytest.raises(DataError, match=said):
        stores.names(uri, store, path)
    assert len(waits) == tries - 1


@pytest.mark.parametrize("kind", ["", "file://", "memory:/"])
def test_only_a_folder_has_names_in_it(kind: str, tmp_path: Path) -> None:
    uri = f"{kind}{tmp_path}/folder"
    with fsspec.open(f"{uri}/b.txt", "w", auto_mkdir=True) as file:
        file.write("x")
    assert stores.names(uri, *open_uri(uri)) == ["b.txt"]
    for other in (f"{uri}/b.txt", f"{uri}/absent"):
        assert stores.names(other, *open_uri(other)) == []


def test_a_bucket_that_lists_a_folder_in_itself_has_no_such_name(
    s3: dict[str, str], tmp_path: Path
) -> None:
    store, path = S3FileSystem(), f"raycd/{tmp_path.name}/folder"
    for name in ("", "b.txt"):
        store.call_s3("put_object", Bucket="raycd", Key=f"{tmp_path.name}/folder/{name}", Body=b"")
    assert any(each.rstrip("/") == path for each in store.ls(path)), "it does"
    assert stores.names(f"s3://{path}", store, path) == ["b.txt"]


def test_an_answer_that_breaks_off_is_asked_for_again(
    store: ImageStore, waits: list[float]
) -> None:
    store.script["/a.png"] = [206, 200]
    assert read_bytes(f"{store.url}/a.png") == store.data.getvalue()
    assert len(waits) == 1


def test_who_cannot_wait_asks_once(store: ImageStore, waits: list[float]) -> None:
    store.script["/a.png"] = [503]
    with pytest.raises(DataError):
        read_bytes(f"{store.url}/a.png", patient=False)
    assert (store.asked["/a.png"], waits) == (1, [])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        PermissionError(errno.EACCES, "Permission denied", "/models/a"),
    ],
)
def test_the_disk_of_this_machine_is_not_taken_for_the_store(
    waits: list[float], error: OSError
) -> None:
    def copied() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        stores.ask("s3://bucket/a", copied)
    assert (caught.value, waits) == (error, [])
    assert stores.translate_error("s3://bucket/a", [error], DataError) is None


@pytest.mark.parametrize("status", [400, 405, 418, 501])
def test_another_refusal_is_told_at_once(
    store: ImageStore, waits: list[float], status: int
) -> None:
    store.script["/a.png"] = [status]
    with pytest.raises(DataError, match=str(status)):
        read_bytes(f"{store.url}/a.png")
    assert waits == []


@pytest.mark.parametrize(
    ("uri", "store"),
    [
        ("https://me:secret@example.org:8443/a.png?token=x", "https://example.org:8443"),
        ("s3://bucket/a/b.png", "s3://bucket"),
        ("zip://a.png::s3://bucket/a.zip", "s3://bucket"),
        ("http://[::1/a.png", "http://"),
    ],
)
def test_a_store_is_named_without_secrets(uri: str, store: str) -> None:
    assert stores.store_of(uri) == store


def test_which_images_a_store_has_is_asked_without_reading_them(
    store: ImageStore, waits: list[float]
) -> None:
    store.script = {"/1.png": [404], "/2.png": [503, 503, 200], "/3.png": [410]}
    size = len(store.data.getvalue())
    found = files.states([f"{store.url}/{n}.png" for n in range(20)])
    assert [state is None for state in found[:4]] == [False, True, False, True]
    assert found[0] == found[2] == [size, ""]


def test_a_store_that_refuses_to_say_what_it_has_is_an_error(store: ImageStore) -> None:
    store.script = {"/3.png": [403]}
    with pytest.raises(DataError, match="refuses"):
        files.states([f"{store.url}/{n}.png" for n in range(9)])


CONFIG = Config.model_validate(
    {"embed": {"batch_size": 2}, "compute": {"embed_workers": 2, "threads": 1}}
)


@pytest.mark.slow
def test_workers_ask_again_and_count_what_is_absent(
    ray_cluster: None, new_encoder: Callable[[], Encoder], store: ImageStore
) -> None:
    store.script = {"/busy.png": [429, 200], "/gone.png": [404]}
    paths = {name: f"{store.url}/{name}.png" for name in ("good", "busy", "gone")}
    table = embedding.embed_images(paths, new_encoder(), CONFIG)
    assert table["status"].to_pylist() == ["ok", "ok", "missing"]


@pytest.mark.slow
def test_a_store_that_refuses_ends_the_workers_with_one_message(
    ray_cluster: None,
    new_encoder: Callable[[], Encoder],
    store: ImageStore,
    capfd: pytest.CaptureFixture[str],
) -> None:
    store.script = {f"/{n}.png": [403] for n in range(3, 9)}
    paths: dict[str, str | None] = {str(n): f"{store.url}/{n}.png" for n in range(9)}

    def main(options: cli.Options) -> None:
        embedding.embed_images(paths, new_encoder(), CONFIG)

    assert cli.run(main, ["--name", "x"], prog="x", description="") == cli.EXIT_MISTAKE
    printed = capfd.readouterr().err
    assert f"error: {store.url} refuses to give {store.url}/" in printed
    assert not {"Traceback", "ERROR"} & set(printed.replace(":", " ").split())


class _Guarded(SimpleHTTPRequestHandler):
    """The files of a folder, for who gives the password."""

    def do_GET(self) -> None:
        asked = self.headers.get("Authorization", "")
        if asked == f"Basic {b64encode(b'ann:s3cret').decode()}":
            super().do_GET()
        else:
            self.send_error(401)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def test_a_password_in_a_uri_is_used_and_neither_kept_nor_shown(
    ray_cluster: None, new_encoder: Callable[[], Encoder], store: ImageStore, tmp_path: Path
) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for n in range(5):
        (pictures / f"{n}.png").write_bytes(store.data.getvalue())
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Guarded, directory=str(tmp_path))
    ) as guarded:
        threading.Thread(target=guarded.serve_forever, args=(0.02,), daemon=True).start()
        uri = f"http://ann:s3cret@127.0.0.1:{guarded.server_port}/pictures"
        stored = embed_shards.embed_source(str(out), uri, new_encoder(), CONFIG)
        assert stored.report().counts() == {}
        assert stored.keys().to_pylist() == [f"{n}.png" for n in range(5)]
        kept = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
        assert b"http://ann:***@127.0.0.1" in kept
        assert b"s3cret" not in kept
        with pytest.raises(DataError, match=r"ann:\*\*\*@") as caught:
            embed_shards.embed_source(f"{out}2", f"{uri}/nothing", new_encoder(), CONFIG)
        guarded.shutdown()
    assert "s3cret" not in str(caught.value)
