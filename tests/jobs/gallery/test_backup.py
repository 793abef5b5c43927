"""What jobs/gallery.py copies, on both databases, and that it overwrites nothing."""

import shutil
import subprocess
import threading
import time
from pathlib import Path

import fsspec
import pytest

from jobs import gallery
from raycd.gallery.records import Delete, Put
from raycd.gallery_db import GalleryDatabase, backup
from raycd.gallery_db.pictures import Pictures
from tests.jobs.gallery.galleries import FEATURE, OURS, contents, picture, run, uploaded
from tests.postgres import Postgres, programs


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_restored_gallery_is_the_one_that_was_backed_up(
    url: str,
    gallery_db: GalleryDatabase,
    pictures: Pictures,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(gallery_db)
    assert run("backup", url, pictures, "--to", tmp_path / "monday") == 0
    said = capsys.readouterr().out
    assert "database:  2 images at version 4\npictures:  1 copied and compared\n" in said
    gallery_db.write([Delete("uploaded"), Put("later", FEATURE)], OURS)
    fresh = Pictures(str(tmp_path / "new" / "gallery.sqlite.pictures"))
    assert (
        gallery.main(
            [
                "restore",
                "--from",
                str(tmp_path / "monday"),
                "--gallery",
                str(tmp_path / "new/gallery.sqlite"),
            ]
        )
        == 0
    )
    with GalleryDatabase.open(str(tmp_path / "new" / "gallery.sqlite")) as restored:
        assert contents(restored) == before
        found = picture(restored, fresh)
    assert found.read_bytes() == b"picture"
    modes = [oct(path.stat().st_mode & 0o777) for path in (found, *found.parents[:2])]
    assert modes == ["0o600", "0o700", "0o700"]
    assert gallery.main(["check", "--gallery", str(tmp_path / "new" / "gallery.sqlite")]) == 0


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_backup_while_images_come_and_go_is_whole(
    url: str, gallery_db: GalleryDatabase, pictures: Pictures, tmp_path: Path
) -> None:
    gallery_db.write([uploaded(f"image {n}", pictures, bytes([n])) for n in range(50)], OURS)
    ended = threading.Event()

    def change() -> None:
        n = 0
        while not ended.is_set():
            n = (n + 1) % 50
            done = gallery_db.write([uploaded(f"image {n}", pictures, bytes([n]))], OURS)
            assert done[0].old_path is not None
            pictures.remove(
                done[0].old_path
            )  # at once: the service waits until every replica knows

    writer = threading.Thread(target=change)
    writer.start()
    codes = [run("backup", url, pictures, "--to", tmp_path / f"backup {n}") for n in range(3)]
    ended.set()
    writer.join()
    assert codes == [0, 0, 0]
    for n in range(3):
        target = tmp_path / f"restored {n}" / "gallery.sqlite"
        assert (
            gallery.main(
                ["restore", "--from", str(tmp_path / f"backup {n}"), "--gallery", str(target)]
            )
            == 0
        )
        assert gallery.main(["check", "--gallery", str(target)]) == 0


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_backup_never_overwrites_another(
    url: str,
    gallery_db: GalleryDatabase,
    pictures: Pictures,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("backup", url, pictures, "--to", tmp_path / "monday") == 0
    before = {
        path: path.read_bytes() for path in (tmp_path / "monday").rglob("*") if path.is_file()
    }
    gallery_db.write([Delete("bare")], OURS)
    assert run("backup", url, pictures, "--to", tmp_path / "monday") == 2
    assert "never overwrites" in capsys.readouterr().err
    assert {
        path: path.read_bytes() for path in (tmp_path / "monday").rglob("*") if path.is_file()
    } == before


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_of_two_backups_at_once_the_later_does_not_replace_the_earlier(
    url: str,
    gallery_db: GalleryDatabase,
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monday, original = tmp_path / "monday", backup.verify

    def verify(folder: Path) -> backup.Backup:
        monday.mkdir()
        (monday / "earlier").touch()
        return original(folder)

    monkeypatch.setattr(backup, "verify", verify)
    assert run("backup", url, pictures, "--to", monday) == 2
    assert "monday is there already" in capsys.readouterr().err
    assert [path.name for path in monday.iterdir()] == ["earlier"]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "there", ["gallery.sqlite", "gallery.sqlite-wal", "gallery.sqlite.pictures"]
)
def test_restoring_never_overwrites_a_gallery(
    url: str,
    gallery_db: GalleryDatabase,
    pictures: Pictures,
    tmp_path: Path,
    there: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("backup", url, pictures, "--to", tmp_path / "monday") == 0
    target = tmp_path / "new" / there
    target.parent.mkdir()
    if there.endswith(".pictures"):
        shutil.copytree(pictures.root, target)
    else:
        target.write_bytes(b"precious")
    before = sorted(target.parent.rglob("*"))
    code = gallery.main(
        [
            "restore",
            "--from",
            str(tmp_path / "monday"),
            "--gallery",
            str(tmp_path / "new/gallery.sqlite"),
        ]
    )
    assert code == 2
    assert "never overwrites" in capsys.readouterr().err
    assert sorted(target.parent.rglob("*")) == before


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", ["gallery.sqlite", "backup.json", "picture"])
@pytest.mark.parametrize("what", ["changed", "absent"])
def test_a_backup_that_is_not_whole_is_refused(
    url: str, gallery_db: GalleryDatabase, pictures: Pictures, tmp_path: Path, name: str, what: str
) -> None:
    assert run("backup", url, pictures, "--to", tmp_path / "monday") == 0
    [copy] = (tmp_path / "monday" / "pictures").rglob("*.png")
    file = copy if name == "picture" else tmp_path / "monday" / name
    if what == "changed":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    target = tmp_path / "new" / "gallery.sqlite"
    assert (
        gallery.main(["restore", "--from", str(tmp_path / "monday"), "--gallery", str(target)]) == 2
    )
    assert not target.exists()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_backup_of_a_gallery_that_lacks_a_picture_says_so(
    url: str,
    gallery_db: GalleryDatabase,
    pictures: Pictures,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture(gallery_db, pictures).unlink()
    assert run("backup", url, pictures, "--to", tmp_path / "monday") == 2
    assert "lost:      the gallery itself has no picture of uploaded\n" in capsys.readouterr().out


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_postgresql_is_backed_up_by_pg_dump_and_the_pictures_by_the_job(
    url: str,
    gallery_db: GalleryDatabase,
    pictures: Pictures,
    tmp_path: Path,
    postgres: Postgres,
    capsys: pytest.CaptureFixture[str],
) -> None:
    binaries = programs()
    assert binaries is not None
    dump = tmp_path / "raycd.dump"
    subprocess.run([binaries / "pg_dump", "--format", "custom", "--file", dump, url], check=True)
    assert run("backup", url, pictures, "--to", tmp_path / "monday") == 0
    said = capsys.readouterr().out
    assert "database:  not copied: use pg_dump" in said
    assert "pictures:  1 copied and compared" in said
    before = contents(gallery_db)
    back = postgres.create(f"restored_{time.monotonic_ns()}")
    subprocess.run(
        [binaries / "pg_restore", "--no-owner", "--exit-on-error", "--dbname", back, dump],
        check=True,
    )
    copied = Pictures(str(tmp_path / "monday" / "pictures"))
    with GalleryDatabase.open(back) as restored:
        assert contents(restored) == before
        assert picture(restored, copied).read_bytes() == b"picture"
        assert restored.write([Put("new", FEATURE)], OURS)[0].version == restored.version() == 5
    assert run("check", back, copied) == 0
    assert (
        gallery.main(
            ["restore", "--from", str(tmp_path / "monday"), "--gallery", str(tmp_path / "x.sqlite")]
        )
        == 2
    )
    assert "pg_restore" in capsys.readouterr().err


def test_pictures_in_another_store_are_checked_and_copied(url: str, tmp_path: Path) -> None:
    pictures = Pictures(f"memory://{tmp_path.name}/{time.monotonic_ns()}")
    with GalleryDatabase.open(url) as gallery_db:
        gallery_db.write([uploaded("uploaded", pictures, b"far away")], OURS)
        assert run("check", url, pictures) == 0
        assert run("backup", url, pictures, "--to", tmp_path / "monday") == 0
        [copy] = (tmp_path / "monday" / "pictures").rglob("*.png")
        assert copy.read_bytes() == b"far away"
        store, inside = fsspec.url_to_fs(pictures.root)
        store.rm(inside, recursive=True)
        assert run("check", url, pictures) == 2
