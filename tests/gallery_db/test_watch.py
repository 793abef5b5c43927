"""A SQLite file that is removed, replaced or truncated while open: no write is acknowledged."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from raycd.errors import GalleryError
from raycd.gallery_db import GalleryDatabase, backup, owner
from raycd.gallery_db.pictures import Pictures
from raycd.gallery_db.stored import StoredGallery
from tests.gallery_db.values import CLIP, put


def beside(file: Path, ending: str) -> Path:
    return file.with_name(file.name + ending)


def of_before(file: Path) -> Path:
    """Return a copy of the gallery as it was before its last images."""
    return beside(file, ".before")


def remove(file: Path) -> None:
    file.unlink()


def move_away(file: Path) -> None:
    file.rename(beside(file, ".moved"))


def remove_the_log(file: Path) -> None:
    beside(file, "-wal").unlink()


def remove_the_index_of_the_log(file: Path) -> None:
    beside(file, "-shm").unlink()


def rename_another_over_it(file: Path) -> None:
    of_before(file).rename(file)


def copy_another_over_it(file: Path) -> None:
    file.write_bytes(of_before(file).read_bytes())


def make_a_new_one(file: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        beside(file, ending).unlink()
    GalleryDatabase.open(str(file)).close()


def empty(file: Path) -> None:
    os.truncate(file, 0)


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 8192 // 2 * 8192)


def overwrite(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(bytes(200))


def remove_its_folder(file: Path) -> None:
    file.parent.rename(file.parent.with_name("away"))


def empty_the_log(file: Path) -> None:
    os.truncate(beside(file, "-wal"), 0)


HARM = [
    remove,
    move_away,
    remove_the_log,
    remove_the_index_of_the_log,
    rename_another_over_it,
    copy_another_over_it,
    make_a_new_one,
    empty,
    cut_off,
    overwrite,
    remove_its_folder,
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "gallery").mkdir()
    return tmp_path / "gallery" / "gallery.sqlite"


def filled(file: Path) -> GalleryDatabase:
    """Return an open gallery, with some images in the log only, and a copy of an earlier state."""
    with GalleryDatabase.open(str(file)) as gallery_db:
        gallery_db.write([put(f"old-{number}") for number in range(200)], CLIP)
    shutil.copyfile(file, of_before(file))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE other (x)")  # a change of the file's header
    gallery_db = GalleryDatabase.open(str(file))
    gallery_db.write([put("acknowledged")], CLIP)
    return gallery_db


@pytest.mark.parametrize("harm", HARM)
def test_a_file_that_is_another_one_takes_no_write_and_is_not_read(
    file: Path, harm: Callable[[Path], None]
) -> None:
    with filled(file) as gallery_db:
        gallery_db.check_file()
        harm(file)
        for attempt in (
            gallery_db.check_file,
            gallery_db.version,
            lambda: gallery_db.changes(0, CLIP),
            lambda: gallery_db.load(CLIP),
            lambda: gallery_db.write([put("lost")], CLIP),
            lambda: gallery_db.add_features("f" * 64, [("acknowledged", 201, put("x").feature)]),
            lambda: gallery_db.forget(CLIP),
        ):
            with pytest.raises(GalleryError) as caught:
                attempt()
            assert caught.value.reason == "replaced"
            assert "put back the file" in str(caught.value)


def test_a_log_that_was_emptied_is_noticed_with_the_next_commit(file: Path) -> None:
    with filled(file) as gallery_db:
        empty_the_log(file)
        with pytest.raises(GalleryError) as caught:
            gallery_db.write([put("lost")], CLIP)
        assert caught.value.reason in ("replaced", "damaged", "unreachable")


@pytest.mark.parametrize("harm", HARM[:3])
def test_a_change_is_not_acknowledged_where_the_file_goes_before_the_commit(
    file: Path, harm: Callable[[Path], None]
) -> None:
    def write_and_harm(gallery_db: GalleryDatabase) -> None:
        with gallery_db.transaction("writing") as connection:
            connection.exec_driver_sql("UPDATE raycd_gallery SET version = version + 1")
            harm(file)

    with filled(file) as gallery_db:
        with pytest.raises(GalleryError) as caught:
            write_and_harm(gallery_db)
        assert caught.value.reason == "replaced"


def test_no_new_connection_makes_an_empty_file_where_the_old_one_has_gone(file: Path) -> None:
    with filled(file) as gallery_db, gallery_db._engine.connect():  # the pool's only one is in use
        file.unlink()
        with pytest.raises(GalleryError):
            gallery_db.version()
        assert not file.exists()


def test_a_file_that_is_put_back_is_written_on(file: Path) -> None:
    with filled(file) as gallery_db:
        version = gallery_db.version()
        move_away(file)
        with pytest.raises(GalleryError):
            gallery_db.write([put("a")], CLIP)
        beside(file, ".moved").rename(file)
        assert gallery_db.write([put("a")], CLIP)[0].version == version + 1
    with GalleryDatabase.open(str(file)) as gallery_db:
        assert gallery_db.count() == version + 1


def test_what_grows_shrinks_and_is_looked_at_by_others_is_still_the_file(file: Path) -> None:
    with filled(file) as gallery_db, GalleryDatabase.open(str(file)) as second:
        for number in range(30):  # some of SQLite's checkpoints
            gallery_db.write([put(f"{number}-{part}") for part in range(100)], CLIP)
            second.write([put(f"second-{number}")], CLIP)
        gallery_db.forget(CLIP)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            before = file.stat().st_size
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert file.stat().st_size < before
        assert (
            gallery_db.write([put("after")], CLIP)[0].version
            == gallery_db.version()
            == second.version()
        )


def test_a_disk_that_goes_away_takes_no_write(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)]).returncode
    ):
        pytest.skip("nothing can be mounted here")
    try:
        gallery_db = filled(disk / "gallery.sqlite")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
    with gallery_db, pytest.raises(GalleryError) as caught:
        gallery_db.write([put("lost")], CLIP)
    assert caught.value.reason == "replaced"


def test_a_replica_that_starts_later_must_find_the_file_of_its_service(file: Path) -> None:
    filled(file).close()
    first = owner.hold(file, "shop")
    owner.check(file, first)
    owner.note(file, first)
    owner.check(file, owner.hold(file, "shop"))
    os.close(first)
    move_away(file)
    with pytest.raises(GalleryError) as caught:
        owner.check(file, owner.hold(file, "shop"))
    assert caught.value.reason == "replaced"


def test_what_was_restored_belongs_to_the_next_service_of_the_same_name(
    file: Path, tmp_path: Path
) -> None:
    with filled(file) as gallery_db:
        backup.save(StoredGallery(str(file), gallery_db, None), tmp_path / "monday")
    held = owner.hold(file, "shop")
    owner.note(file, held)
    for ending in ("", "-wal", "-shm"):
        beside(file, ending).unlink(missing_ok=True)
    with pytest.raises(GalleryError, match="another service has the gallery"):
        backup.restore(tmp_path / "monday", str(file))
    os.close(held)
    backup.restore(tmp_path / "monday", str(file))
    owner.check(file, owner.hold(file, "shop"))
    with GalleryDatabase.open(str(file)) as restored:
        assert restored.count() == 201


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_its_owner_may_read_a_gallery_and_its_pictures(file: Path, tmp_path: Path) -> None:
    pictures = Pictures(str(tmp_path / "pictures"))
    with GalleryDatabase.open(str(file)) as gallery_db:
        location = pictures.add(b"picture", "png")
        gallery_db.write([put("a", path=location)], CLIP)
        backup.save(StoredGallery(str(file), gallery_db, pictures), tmp_path / "monday")
        os.close(owner.hold(file, "shop"))
        assert {
            ending: rights(beside(file, ending)) for ending in ("", "-wal", "-shm", ".lock")
        } == {"": 0o600, "-wal": 0o600, "-shm": 0o600, ".lock": 0o600}
    kept = Path(pictures.locate(location))
    assert (rights(kept), rights(kept.parent), rights(kept.parent.parent)) == (0o600, 0o700, 0o700)
    new = tmp_path / "new" / "gallery.sqlite"
    backup.restore(tmp_path / "monday", str(new))
    assert rights(tmp_path / "monday") == rights(beside(new, ".pictures")) == 0o700
    assert rights(new) == 0o600
