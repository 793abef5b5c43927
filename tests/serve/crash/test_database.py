"""A full disk, a locked or read-only database, two services on one file, a schema that does not
fit: a clear message, and nothing lost.
"""

from __future__ import annotations

import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest

from raycd.client import Client
from raycd.gallery_db import GalleryDatabase
from serve.args import ServeArgs
from tests.postgres import Postgres
from tests.serve.asking import ask, problem
from tests.serve.crash.audit import audit
from tests.serve.crash.load import Gallery, content
from tests.serve.crash.process import refusal
from tests.serve.crash.truth import Image, Ledger

DISK = "16m"


class Writer:
    """Writes to a service, one image after the other, and knows what was acknowledged. Use it in
    `closing`.
    """

    def __init__(self, url: str, gallery: Gallery) -> None:
        self.http = httpx.Client(base_url=url, timeout=120)
        self.gallery, self.ledger, self._url = gallery, Ledger(), url

    def close(self) -> None:
        self.http.close()

    def put(self, tag: str, *, pictured: bool = False) -> httpx.Response:
        """Return what the service says to a new image, whose id is its tag.

        What it refuses must not be there.
        """
        image = Image(tag, pictured)
        response = self.http.put(
            f"/v1/gallery/{quote(tag, safe='')}", **content(image, self.gallery)
        )
        if response.status_code == 201:
            self.ledger.sent(tag, image)
            self.ledger.acknowledged(tag, image, response.json()["version"])
        else:
            assert self.ledger.known[tag].acknowledged is None, "never written"
        return response

    def check(self, database: str) -> None:
        """Check that all that was acknowledged is there, nothing else, and known to the service."""
        with Client(self._url) as client, GalleryDatabase.open(database) as gallery_db:
            audit(client, gallery_db, self.ledger, self.gallery.encoder)

    def searches(self) -> bool:
        """Return whether the service goes on to search."""
        response = ask(self.http, text="is blue", top_k=1)
        return response.status_code == 200


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount a file system of a few megabytes."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no file system of its own can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_refuses_what_it_cannot_keep(
    disk: Path, start_service: Callable[..., str], service_args: ServeArgs, gallery: Gallery
) -> None:
    database, filler = str(disk / "gallery.sqlite"), disk / "filler"
    writer = Writer(
        start_service(service_args.model_copy(update={"gallery": database}), "full"), gallery
    )
    assert [writer.put(f"before-{number}").status_code for number in range(5)] == [201] * 5
    with pytest.raises(OSError, match="No space left"):
        _fill(filler)
    refused = next(
        answer
        for number in range(1000)
        if (answer := writer.put(f"full-{number}")).status_code != 201
    )
    assert "make room" in problem(refused, 507)["detail"]
    assert "make room" in problem(writer.put("picture", pictured=True), 507)["detail"]
    assert writer.searches()
    filler.unlink()
    assert writer.put("after").status_code == 201
    assert writer.put("picture", pictured=True).status_code == 201
    writer.check(database)


def _fill(filler: Path) -> None:
    """Write until there is no room left."""
    with filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.slow
def test_a_locked_database_refuses_writes_and_is_searched(
    start_service: Callable[..., str], service_args: ServeArgs, gallery: Gallery, tmp_path: Path
) -> None:
    database = str(tmp_path / "gallery.sqlite")
    writer = Writer(
        start_service(service_args.model_copy(update={"gallery": database}), "locked"), gallery
    )
    assert writer.put("before").status_code == 201
    with (
        closing(sqlite3.connect(database, isolation_level=None)) as other,
        ThreadPoolExecutor(1) as thread,
    ):
        other.execute("BEGIN EXCLUSIVE")
        waiting = thread.submit(writer.put, "locked")
        while not waiting.done():
            assert writer.searches()
        refused = waiting.result()
        assert "busy with another writer" in problem(refused, 503)["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        other.execute("ROLLBACK")
    assert writer.put("after").status_code == 201
    writer.check(database)


@pytest.mark.slow
def test_a_read_only_database_refuses_writes_and_is_searched(
    start_service: Callable[..., str], service_args: ServeArgs, gallery: Gallery, tmp_path: Path
) -> None:
    with tempfile.TemporaryDirectory(prefix="raycd-postgres-") as folder:
        server = Postgres(Path(folder))
        server.start()
        database = server.create("gallery")
        changes = {"gallery": database, "pictures": str(tmp_path)}
        writer = Writer(start_service(service_args.model_copy(update=changes), "readonly"), gallery)
        assert writer.put("before").status_code == 201
        with psycopg.connect(database, autocommit=True) as owner:
            owner.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            owner.execute("SELECT pg_reload_conf()")
            refused = next(
                answer
                for number in range(1000)
                if (answer := writer.put(f"{number}")).status_code != 201
            )
            assert "read-only" in problem(refused, 503)["detail"]
            assert writer.searches()
            owner.execute("SET default_transaction_read_only = off")
            owner.execute("ALTER SYSTEM RESET default_transaction_read_only")
            owner.execute("SELECT pg_reload_conf()")
        answer = next(
            answer for _ in range(1000) if (answer := writer.put("after")).status_code != 503
        )
        assert answer.status_code == 201
        writer.check(database)
        server.stop()


@pytest.mark.slow
def test_a_second_service_on_the_same_file_is_refused(
    start_service: Callable[..., str],
    service_args: ServeArgs,
    gallery: Gallery,
    tiny_bundle: Any,
    tmp_path: Path,
    log: Path,
) -> None:
    database = str(tmp_path / "gallery.sqlite")
    writer = Writer(
        start_service(service_args.model_copy(update={"gallery": database}), "first"), gallery
    )
    assert writer.put("before").status_code == 201
    said = refusal("--bundle", str(tiny_bundle.folder), "--gallery", database, log=log)
    assert "another service has the gallery" in said
    assert "one service for a SQLite file" in said
    assert writer.put("after").status_code == 201
    writer.check(database)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        pytest.param(
            "UPDATE raycd_schema SET version_num = '9999'",
            "of a later version of raycd",
            id="newer",
        ),
        pytest.param(
            "DELETE FROM raycd_schema", "could not be brought to this version's schema", id="broken"
        ),
    ],
)
def test_a_service_does_not_start_on_a_schema_that_does_not_fit(
    tiny_bundle: Any, tmp_path: Path, log: Path, spoil: str, expected: str
) -> None:
    database = tmp_path / "gallery.sqlite"
    GalleryDatabase.open(str(database)).close()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(spoil)
        connection.commit()
        before = list(connection.iterdump())
    assert expected in refusal(
        "--bundle", str(tiny_bundle.folder), "--gallery", str(database), log=log
    )
    with closing(sqlite3.connect(database)) as connection:
        assert list(connection.iterdump()) == before
