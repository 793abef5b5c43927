"""Images that a replica encodes itself, while the store of their pictures fails for a moment."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycd import bundle
from raycd.errors import GalleryError
from raycd.gallery.records import Put
from raycd.gallery_db import GalleryDatabase
from raycd.search.searcher import Searcher
from serve.args import ServeArgs
from serve.live import unencoded
from serve.live.engine_follower import EngineFollower
from serve.live.follower import Follower
from serve.live.store import GalleryStore


class PictureStore(ThreadingHTTPServer):
    """A store that fails until it is `up`; then it has one picture at every path but /absent."""

    def __init__(self, picture: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.picture, self.up, self.asked = picture, False, Counter[str]()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: PictureStore

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        status = 404 if self.path == "/absent" else 200 if self.server.up else 503
        body = self.server.picture if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def far(tiny_bundle: Any) -> Iterator[PictureStore]:
    picture = (tiny_bundle.folder.parent / "image-3.png").read_bytes()
    with PictureStore(picture) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def until(state: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not state():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["faiss", "engine", "another pusher"])
def test_images_whose_store_fails_are_found_once_it_answers(
    tiny_bundle: Any,
    far: PictureStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(unencoded, "AGAIN_S", 0.2)
    engine = "" if kind == "faiss" else f"milvus://{tmp_path}/milvus.db"
    args = ServeArgs(lag_s=0.1, gallery_engine=engine)
    with (
        GalleryDatabase.open(str(tmp_path / "gallery.sqlite")) as gallery_db,
        ThreadPoolExecutor(1) as model,
        ExitStack() as stack,
    ):
        store = GalleryStore(gallery_db, None)

        def followed() -> tuple[Searcher, Follower | EngineFollower]:
            searcher = Searcher(bundle.load(tiny_bundle.folder))
            kind = EngineFollower if engine else Follower
            follower = kind(searcher, store, model, args)
            stack.callback(stop, follower)
            return searcher, follower

        searcher, follower = followed()
        names = ["refused", "absent", "later"]
        other = np.ones(8, np.float32)
        puts = [Put(name, other, path=f"{far.url}/{name}") for name in names]
        version = gallery_db.write(puts, "f" * 64)[-1].version
        until(lambda: searcher.view.version >= version and far.asked["/later"])
        assert [there(searcher, name) for name in ("image-3", *names)] == [True] + 3 * [False]
        if kind == "another pusher":
            stop(follower)
            searcher, follower = followed()
            until(lambda: searcher.view.version >= version)
        far.up = True
        until(lambda: there(searcher, "refused") and there(searcher, "later"))
        assert follower.without == 1
        asked = far.asked["/absent"]
        time.sleep(0.5)
        assert far.asked["/absent"] == asked, "it is not there, and is not asked for again"


def stop(follower: Follower | EngineFollower) -> None:
    follower.stop()
    if isinstance(follower, EngineFollower):
        follower._pusher.join()


def there(searcher: Searcher, image_id: str) -> bool:
    try:
        return searcher.view.find(image_id) is not None
    except GalleryError:  # the collection is being filled
        return False
