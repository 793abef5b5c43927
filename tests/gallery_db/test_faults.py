"""Faults of databases: one clear message with its reason, and no loss."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, event, text

from raycd.errors import GalleryError
from raycd.gallery.records import Put
from raycd.gallery_db import GalleryDatabase, database, faults, schema
from tests.gallery_db.values import CLIP, put
from tests.postgres import Postgres

WRITER = """
import sys
from raycd.gallery_db import GalleryDatabase
from tests.gallery_db.values import CLIP, put
with GalleryDatabase.open(sys.argv[1]) as gallery_db:
    for number in range(1_000_000):
        changes = [put(f"image-{number}-{part}") for part in range(20)]
        print(gallery_db.write(changes, CLIP)[-1].version, flush=True)
"""


def test_what_was_acknowledged_outlives_a_writer_that_is_killed(url: str) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        printed = [int(process.stdout.readline()) for _ in range(10)]
        process.send_signal(signal.SIGKILL)
        printed += [int(line) for line in process.stdout.read().split()]
    with GalleryDatabase.open(url) as gallery_db:
        assert gallery_db.version() >= printed[-1]
        assert gallery_db.count() == gallery_db.version()
        assert gallery_db.version() % 20 == 0, "all of a write or nothing"
        assert gallery_db.write([put("after")], CLIP)[0].version == gallery_db.version()


def test_a_server_that_was_killed_is_told_and_the_same_gallery_goes_on_after_it(
    postgres: Postgres,
) -> None:
    with GalleryDatabase.open(postgres.create("killed")) as gallery_db:
        gallery_db.write([put("a")], CLIP)
        postgres.kill()
        for attempt in (gallery_db.version, lambda: gallery_db.write([put("b")], CLIP)):
            with pytest.raises(GalleryError) as caught:
                attempt()
            assert caught.value.reason == "unreachable"
        postgres.start()
        assert (gallery_db.version(), gallery_db.count()) == (1, 1)
        assert gallery_db.write([put("b")], CLIP)[0].version == 2


def test_a_server_that_is_not_there_is_told_without_its_password() -> None:
    with pytest.raises(GalleryError) as caught:
        GalleryDatabase.open("postgresql://ann:s3cret@127.0.0.1:1/gallery")
    assert caught.value.reason == "unreachable"
    assert "s3cret" not in str(caught.value)
    assert "ann:***@" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["mysql://host/x", "postgresql://host:port/x", "sqlite://", "sqlite:///:memory:", "://"]
)
def test_a_place_for_no_gallery_is_refused(url: str) -> None:
    with pytest.raises(GalleryError, match="gallery"):
        GalleryDatabase.open(url)


def test_a_sqlite_file_that_is_locked_is_told_after_a_while_and_reads_go_on(tmp_path: Path) -> None:
    with GalleryDatabase.open(str(tmp_path / "gallery.sqlite"), busy_s=0.2) as gallery_db:
        gallery_db.write([put("a")], CLIP)
        other = sqlite3.connect(tmp_path / "gallery.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(GalleryError) as caught:
            gallery_db.write([put("b")], CLIP)
        assert caught.value.reason == "locked"
        assert gallery_db.version() == 1
        other.execute("ROLLBACK")
        other.close()
        assert gallery_db.write([put("b")], CLIP)[0].version == 2


def test_a_postgresql_row_that_is_locked_is_told_after_a_while(postgres: Postgres) -> None:
    url = postgres.create("locked")
    with GalleryDatabase.open(url, busy_s=0.2) as gallery_db, psycopg.connect(url) as other:
        other.execute("SELECT version FROM raycd_gallery FOR UPDATE")
        with pytest.raises(GalleryError) as caught:
            gallery_db.write([put("a")], CLIP)
        assert caught.value.reason == "locked"
        other.rollback()
        assert gallery_db.write([put("a")], CLIP)[0].version == 1


def fill(gallery_db: GalleryDatabase) -> None:
    """Write more than any small disk can hold."""
    for number in range(200):
        gallery_db.write([put(f"{number}-{part}") for part in range(100)], CLIP)


def test_a_full_disk_is_told_and_what_was_there_stays(tmp_path: Path) -> None:
    with GalleryDatabase.open(str(tmp_path / "gallery.sqlite")) as gallery_db:
        gallery_db.write([put("a")], CLIP)
        with gallery_db._engine.connect() as connection:  # SQLite's own limit says what a disk says
            connection.execute(text("PRAGMA max_page_count = 1"))
        with pytest.raises(GalleryError) as caught:
            fill(gallery_db)
        assert caught.value.reason == "full"
        before = gallery_db.version()
        assert gallery_db.count() == before
        with gallery_db._engine.connect() as connection:
            connection.execute(text("PRAGMA max_page_count = 1000000"))
        assert gallery_db.write([put("b")], CLIP)[0].version == before + 1


def test_a_disk_that_is_full_when_the_tables_are_made_is_no_migration_that_failed(
    tmp_path: Path,
) -> None:
    engine = database.engine(database.address(str(tmp_path / "gallery.sqlite")), busy_s=1)
    event.listen(engine, "connect", lambda own, _: own.execute("PRAGMA max_page_count = 3"))
    with (
        pytest.raises(GalleryError) as caught,
        faults.translate_errors("opening the gallery's database", "sqlite"),
    ):
        schema.upgrade(engine)
    assert caught.value.reason == "full"
    engine.dispose()


def test_a_disk_that_is_really_full_is_told(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small)]).returncode
    ):
        pytest.skip("no small disk can be mounted here")
    try:
        with GalleryDatabase.open(str(small / "gallery.sqlite")) as gallery_db:
            gallery_db.write([put("a")], CLIP)
            filler = small / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(small).free - 20_000))
            with pytest.raises(GalleryError) as caught:
                fill(gallery_db)
            assert caught.value.reason == "full"
            before = gallery_db.version()
            filler.unlink()
            assert gallery_db.write([put("b")], CLIP)[0].version == before + 1
            assert gallery_db.count() == before + 1
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_that_is_read_only_is_told(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    with GalleryDatabase.open(str(mounted / "gallery.sqlite")) as gallery_db:
        gallery_db.write([put("a")], CLIP)
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "--bind", "-o", "ro", str(mounted), str(mounted)]).returncode
    ):
        pytest.skip("nothing can be mounted here")
    try:
        with (
            pytest.raises(GalleryError) as caught,
            GalleryDatabase.open(str(mounted / "gallery.sqlite")) as gallery_db,
        ):
            gallery_db.write([put("b")], CLIP)
        assert caught.value.reason == "read_only"
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
    with GalleryDatabase.open(str(mounted / "gallery.sqlite")) as gallery_db:
        assert gallery_db.count() == 1


def test_a_postgresql_that_is_read_only_is_told(postgres: Postgres) -> None:
    url = postgres.create("standby")
    GalleryDatabase.open(url).close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER DATABASE standby SET default_transaction_read_only = on")
    with GalleryDatabase.open(url) as gallery_db:
        assert gallery_db.version() == 0
        with pytest.raises(GalleryError) as caught:
            gallery_db.write([put("a")], CLIP)
    assert caught.value.reason == "read_only"


def test_a_file_that_is_no_database_is_told_and_stays(tmp_path: Path) -> None:
    file = tmp_path / "gallery.sqlite"
    file.write_bytes(b"a letter to my aunt, " * 100)
    with pytest.raises(GalleryError) as caught:
        GalleryDatabase.open(str(file))
    assert caught.value.reason == "damaged"
    assert file.read_bytes().startswith(b"a letter")


def revision(folder: Path, name: str, body: str) -> None:
    (folder / "versions" / f"{name}.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision = '{name}'\ndown_revision = '0003'\n"
        f"def upgrade():\n    {body}\n"
    )


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """Return a copy of the migrations, to which a test may add."""
    folder = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_a_schema_of_a_later_version_is_told_and_stays(url: str, migrations: Path) -> None:
    with GalleryDatabase.open(url) as gallery_db:
        gallery_db.write([put("a")], CLIP)
        revision(migrations, "0004", "op.add_column('raycd_images', sa.Column('later', sa.Text))")
        schema.upgrade(gallery_db._engine, migrations)
    for _ in range(2):
        with pytest.raises(GalleryError) as caught:
            GalleryDatabase.open(url)
        assert caught.value.reason == "newer"
        assert "0003" in str(caught.value)


def test_a_migration_that_breaks_leaves_all_as_it_was(url: str, migrations: Path) -> None:
    with GalleryDatabase.open(url) as gallery_db:
        gallery_db.write([put("a", 3)], CLIP)
        broken = (
            "op.add_column('raycd_images', sa.Column('later', sa.Text)); "
            "op.execute('DELETE FROM raycd_images');"
        )
        revision(migrations, "0004", f"{broken} op.execute('nonsense')")
        with pytest.raises(GalleryError) as caught:
            schema.upgrade(gallery_db._engine, migrations)
        assert caught.value.reason == "unmigrated"
        assert gallery_db.count() == 1
    with GalleryDatabase.open(url) as gallery_db:
        assert gallery_db.write([put("b")], CLIP)[0].version == 2


def test_a_good_migration_keeps_what_is_there(url: str, migrations: Path) -> None:
    with GalleryDatabase.open(url) as gallery_db:
        gallery_db.write([put("a", 3)], CLIP)
        revision(migrations, "0004", "op.add_column('raycd_images', sa.Column('later', sa.Text))")
        schema.upgrade(gallery_db._engine, migrations)
        schema.upgrade(gallery_db._engine, migrations)
        assert gallery_db.count() == 1


def test_a_database_that_was_not_migrated_is_told_where_it_must_be(url: str) -> None:
    with pytest.raises(GalleryError) as caught:
        GalleryDatabase.open(url, migrate=False)
    assert caught.value.reason == "unmigrated"
    GalleryDatabase.open(url).close()
    GalleryDatabase.open(url, migrate=False).close()


def opened(url: str, versions: Any) -> None:
    with GalleryDatabase.open(url) as gallery_db:
        versions.put(gallery_db.write([put(f"of-{os.getpid()}")], CLIP)[0].version)


@pytest.mark.slow
def test_processes_that_open_a_new_database_at_once_migrate_it_once(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    versions = context.Queue()
    processes = [context.Process(target=opened, args=(url, versions)) for _ in range(4)]
    for process in processes:
        process.start()
    assert sorted(versions.get(timeout=60) for _ in processes) == [1, 2, 3, 4]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_connections_that_make_a_new_file_at_once_wait_for_each_other(tmp_path: Path) -> None:
    together = Barrier(8)

    def connect(url: URL) -> None:
        engine = database.engine(url, busy_s=5)
        together.wait()
        with engine.connect():
            pass
        engine.dispose()

    with ThreadPoolExecutor(8) as threads:
        for number in range(100):  # without the wait, one in twenty fails
            urls = [database.address(str(tmp_path / f"{number}.sqlite"))] * 8
            assert list(threads.map(connect, urls)) == [None] * 8


def test_sqlite_syncs_every_commit(tmp_path: Path) -> None:
    with (
        GalleryDatabase.open(str(tmp_path / "gallery.sqlite")) as gallery_db,
        gallery_db._engine.connect() as connection,
    ):
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2, "FULL"


def test_addresses() -> None:
    assert database.address("some/gallery.sqlite").database == str(
        Path("some/gallery.sqlite").absolute()
    )
    assert database.address("sqlite:////var/gallery.sqlite").database == "/var/gallery.sqlite"
    assert database.address("postgresql://ann@host/x").drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    "url", ["mysql://u:secret?secret@h/x?a=secret", "postgresql://u:secret/secret#secret@h:x/x"]
)
def test_an_address_that_cannot_be_is_told_without_its_password(url: str) -> None:
    with pytest.raises(GalleryError, match=r"://u:\*\*\*@h") as caught:
        database.address(url)
    assert "secret" not in str(caught.value)


def test_an_error_of_ours_is_not_taken_for_the_databases(tmp_path: Path) -> None:
    with (
        GalleryDatabase.open(str(tmp_path / "gallery.sqlite")) as gallery_db,
        pytest.raises(Exception, match="NOT NULL"),
    ):
        gallery_db.write([Put(None, put("a").feature)], CLIP)  # type: ignore[arg-type]  # the mistake
