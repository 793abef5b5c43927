"""`kill -9` of replicas, of the database's server and of the whole service, while many clients
write and search.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from raycd.client import Client
from raycd.gallery_db import GalleryDatabase
from tests.postgres import Postgres
from tests.serve.asking import png, problem
from tests.serve.crash.audit import audit, fixed_answers, same
from tests.serve.crash.load import Gallery, Importer, Load, Searcher, Writer
from tests.serve.crash.process import Service, wait_until

FEW = pytest.param({Writer: 12, Importer: 2, Searcher: 6}, 150, id="20-clients")
MANY_CLIENTS: dict[Any, int] = {Writer: 130, Importer: 10, Searcher: 60}
MANY_WRITES = 1000
MANY = pytest.param(MANY_CLIENTS, MANY_WRITES, id="200-clients")


@pytest.fixture
def server() -> Iterator[Postgres]:
    """Start a PostgreSQL that may be killed; its user may not enter pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="raycd-postgres-") as folder:
        server = Postgres(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "writes"), [FEW, MANY])
def test_sqlite_keeps_what_was_acknowledged_before_kills(
    tiny_bundle: Any,
    gallery: Gallery,
    tmp_path: Path,
    log: Path,
    clients: dict[Any, int],
    writes: int,
) -> None:
    url = str(tmp_path / "gallery.sqlite")
    with (
        Service("--bundle", str(tiny_bundle.folder), "--gallery", url, log=log) as service,
        GalleryDatabase.open(url) as gallery_db,
        Client(service.url) as client,
    ):
        load = Load(service.url, gallery, clients)
        with load.running():
            load.advance(writes)
            service.kill_replicas(1)
            load.advance(writes)
            _kill_under(load, service)
        service.start()
        audit(client, gallery_db, load.ledger, gallery.encoder)
        with load.running():
            load.advance(writes)
        audit(client, gallery_db, load.ledger, gallery.encoder)
        _check_afresh(service, client, gallery_db, gallery)


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "writes"), [FEW, MANY])
def test_postgresql_keeps_what_was_acknowledged_before_kills(
    server: Postgres,
    tiny_bundle: Any,
    gallery: Gallery,
    tmp_path: Path,
    log: Path,
    clients: dict[Any, int],
    writes: int,
) -> None:
    url, pictures = server.create("gallery"), str(tmp_path / "pictures")
    arguments = ("--bundle", str(tiny_bundle.folder), "--gallery", url, "--pictures", pictures)
    with (
        Service(*arguments, log=log) as service,
        GalleryDatabase.open(url) as gallery_db,
        Client(service.url) as client,
    ):
        load = Load(service.url, gallery, clients)
        with load.running():
            load.advance(writes)
            server.kill()
            load.advance_searches(20)
            refused = httpx.delete(f"{service.url}/v1/gallery/{gallery.seeds[0]}", timeout=60)
            assert "database" in problem(refused, 503)["detail"]
            assert int(refused.headers["retry-after"]) >= 1
            server.start()
            load.advance(writes)
        audit(client, gallery_db, load.ledger, gallery.encoder)
        _check_afresh(service, client, gallery_db, gallery)


@pytest.mark.slow
def test_postgresql_keeps_what_was_acknowledged_before_the_service_and_the_database_are_killed(
    server: Postgres, tiny_bundle: Any, gallery: Gallery, tmp_path: Path, log: Path
) -> None:
    clients, writes = MANY_CLIENTS, MANY_WRITES
    url, pictures = server.create("gallery"), str(tmp_path / "pictures")
    arguments = ("--bundle", str(tiny_bundle.folder), "--gallery", url, "--pictures", pictures)
    with (
        Service(*arguments, log=log) as service,
        GalleryDatabase.open(url) as gallery_db,
        Client(service.url) as client,
    ):
        load = Load(service.url, gallery, clients)
        with load.running():
            load.advance(writes)
            server.kill()
            service.kill_replicas(1)  # the one that replaces it finds no database
            load.advance_searches(20)
            server.start()
            load.advance(writes)
            wait_until(service.is_whole, "the new replica")
            load.advance(writes)
            _kill_under(load, service)
        server.kill()
        server.start()
        service.start()
        audit(client, gallery_db, load.ledger, gallery.encoder)
        with load.running():
            load.advance(writes)
        audit(client, gallery_db, load.ledger, gallery.encoder)


@pytest.mark.slow
def test_a_client_does_not_notice_that_replicas_are_killed(
    tiny_bundle: Any, tmp_path: Path, log: Path
) -> None:
    database = str(tmp_path / "gallery.sqlite")
    done, over = Counter[str](), Event()
    with Service("--bundle", str(tiny_bundle.folder), "--gallery", database, log=log) as service:

        def work(number: int) -> None:
            image, image_id = png(tiny_bundle.images[number]), f"client-{number}"
            with Client(service.url) as client:
                while not over.is_set():
                    assert client.search(image=image, text="is blue", top_k=3).results
                    version = client.put(image_id, image).version
                    assert client.search(image_id=image_id, top_k=1, min_version=version).results
                    client.delete(image_id)
                    done["turns"] += 1

        with ThreadPoolExecutor(8) as threads:
            workers = [threads.submit(work, number) for number in range(8)]
            try:
                for _ in range(3):
                    enough = done["turns"] + 10

                    def are_done(enough: int = enough) -> bool:
                        return done["turns"] >= enough or any(map(Future.done, workers))

                    wait_until(are_done, "turns")
                    service.kill_replicas(1)
                    wait_until(service.is_whole, "the new replica")
            finally:
                over.set()
        for worker in workers:
            worker.result()


def _kill_under(load: Load, service: Service) -> None:
    """Kill the whole service, with requests under way: it stays unknown what became of those."""
    service.kill()
    load.give_up()


def _check_afresh(
    service: Service, client: Client, gallery_db: GalleryDatabase, gallery: Gallery
) -> None:
    """Check that replicas that load the gallery now answer as those that have followed it."""
    before = fixed_answers(client, gallery.seeds, gallery_db.version())
    service.kill_replicas()
    wait_until(service.is_whole, "new replicas")
    afresh = fixed_answers(client, gallery.seeds, gallery_db.version())
    for answer, again in zip(before, afresh, strict=True):
        same(answer, again)
