"""Opening a database, and what must never be stored or shown."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import traceback
from pathlib import Path

import numpy as np
import psycopg
import pytest
from sqlalchemy import text

from raycd.errors import DataError, GalleryError
from raycd.gallery.records import Delete, Put
from raycd.gallery_db import GalleryDatabase, schema, stored
from tests.gallery_db.values import CLIP, DIM, feature, put
from tests.postgres import Postgres


def test_threads_open_different_new_databases_at_once(tmp_path: Path) -> None:
    barrier, versions = threading.Barrier(4), []

    def opened(name: str) -> None:
        barrier.wait()
        with GalleryDatabase.open(str(tmp_path / name)) as gallery_db:
            versions.append(gallery_db.write([put(name)], CLIP)[0].version)

    threads = [threading.Thread(target=opened, args=(f"{number}.sqlite",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions == [1] * 4


@pytest.mark.parametrize("error", ["raise RuntimeError('no')", "assert False"])
def test_a_migration_that_fails_by_itself_leaves_all_as_it_was(
    url: str, tmp_path: Path, error: str
) -> None:
    migrations = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, migrations, ignore=shutil.ignore_patterns("__pycache__"))
    head = "from alembic import op\nrevision = '0004'\ndown_revision = '0003'\n"
    (migrations / "versions" / "0004.py").write_text(
        f"{head}def upgrade():\n    op.execute('DELETE FROM raycd_images')\n    {error}\n"
    )
    with GalleryDatabase.open(url) as gallery_db:
        gallery_db.write([put("a")], CLIP)
        with pytest.raises(GalleryError) as caught:
            schema.upgrade(gallery_db._engine, migrations)
        assert caught.value.reason == "unmigrated"
        assert gallery_db.count() == 1


def test_a_feature_that_is_no_vector_is_refused(gallery_db: GalleryDatabase) -> None:
    wrong = np.ones((DIM, 2), np.float32)
    gallery_db.write([put("a")], CLIP)
    for attempt in (
        lambda: gallery_db.write([Delete("a"), Put("b", wrong)], CLIP),
        lambda: gallery_db.add_features(CLIP, [("a", 1, wrong)]),
    ):
        with pytest.raises(GalleryError) as caught:
            attempt()
        assert caught.value.reason == "mismatch"
    assert len(gallery_db.load(CLIP).table) == 1


@pytest.mark.parametrize(
    "wrong",
    [put("a\ud800"), Put("b", feature(0), attributes={"colour": "\udfff"})],
    ids=["id", "attribute"],
)
def test_a_text_that_is_no_unicode_is_refused_and_nothing_has_changed(
    gallery_db: GalleryDatabase, wrong: Put
) -> None:
    with pytest.raises(DataError, match="a text cannot be stored"):
        gallery_db.write([put("x"), wrong], CLIP)
    assert (gallery_db.version(), gallery_db.count()) == (0, 0)


def test_postgresql_refuses_an_id_with_the_character_nul(postgres: Postgres) -> None:
    with GalleryDatabase.open(postgres.create("nul")) as gallery_db:
        with pytest.raises(DataError, match="NUL"):
            gallery_db.write([put("x"), put("a\0b")], CLIP)
        assert gallery_db.version() == 0


def test_nothing_that_was_written_is_in_a_traceback(postgres: Postgres) -> None:
    url = postgres.create("private")
    with GalleryDatabase.open(url, busy_s=0.2) as gallery_db, psycopg.connect(url) as other:
        other.execute("LOCK TABLE raycd_images IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(GalleryError) as caught:
            gallery_db.write([put(f"private{number}") for number in range(2)], CLIP)
        other.rollback()
        assert caught.value.reason == "locked"
        assert "private0" not in "".join(traceback.format_exception(caught.value))


def test_a_password_among_the_parameters_is_not_shown() -> None:
    with pytest.raises(GalleryError) as caught:
        GalleryDatabase.open(
            "postgresql://ann@127.0.0.1:1/gallery?password=s3cret&connect_timeout=1"
        )
    assert "s3cret" not in str(caught.value)


def test_postgresql_keeps_what_it_acknowledged_whatever_its_default(postgres: Postgres) -> None:
    url = postgres.create("careless")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER DATABASE careless SET synchronous_commit = off")
    with GalleryDatabase.open(url) as gallery_db, gallery_db._engine.connect() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"
        assert (
            connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar() == "1min"
        )


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GalleryError, match="folder cannot be made"):
        GalleryDatabase.open(str(tmp_path / "file" / "gallery.sqlite"))


def test_a_replaced_image_is_found_by_its_key_whatever_the_encoder(tmp_path: Path) -> None:
    GalleryDatabase.open(str(tmp_path / "gallery.sqlite")).close()
    with sqlite3.connect(tmp_path / "gallery.sqlite") as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN DELETE FROM raycd_features WHERE image_id IN ('a', 'b')"
        ).fetchall()
    connection.close()
    assert [row[3].split(" ")[0] for row in plan] == ["SEARCH"], plan


def test_a_file_is_locked_and_opened_by_one_name_whichever_way_leads_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "data")
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "data" / "gallery.sqlite")
    file = tmp_path / "data" / "gallery.sqlite"
    for url in (
        "~/data/gallery.sqlite",
        "data/gallery.sqlite",
        "sqlite:///data/gallery.sqlite",
        str(tmp_path / "folder" / "gallery.sqlite"),
        "~/link.sqlite",
    ):
        assert stored.sqlite_file(url) == file
        assert stored.pictures_root(url) == f"{file}.pictures"
        with GalleryDatabase.open(url) as gallery_db:
            assert gallery_db._engine.url.database == str(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "folder", "link.sqlite"]
