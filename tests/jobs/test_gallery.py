"""jobs/gallery.py on both databases: what it finds and copies, and that it overwrites nothing."""

import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from sqlalchemy import text

from jobs import gallery
from raycd.gallery.records import Delete, Put
from raycd.gallery_db import GalleryDatabase, database
from raycd.gallery_db.check import SETTLED
from raycd.gallery_db.pictures import Pictures
from tests.postgres import Postgres, programs

OURS, OTHER = "a" * 64, "b" * 64  # encoders
FEATURE = np.arange(1, 5, dtype=np.float32)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "gallery.sqlite")
    name = f"gallery_{time.monotonic_ns()}"
    return str(request.getfixturevalue("postgres").create(name))


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Where the service would keep those of `tmp_path / gallery.sqlite`."""
    return Pictures(str(tmp_path / "gallery.sqlite.pictures"))


@pytest.fixture
def gallery_db(url: str, pictures: Pictures) -> Iterator[GalleryDatabase]:
    """Three images: one with an uploaded picture, one with a feature only, one that was deleted."""
    with GalleryDatabase.open(url) as opened:
        opened.write(
            [uploaded("uploaded", pictures), Put("bare", FEATURE), Put("gone", FEATURE)], OURS
        )
        opened.write([Delete("gone")], OURS)
        yield opened


def uploaded(image_id: str, pictures: Pictures, content: bytes = b"picture") -> Put:
    return Put(image_id, FEATURE, ("dress",), {"colour": "blue"}, pictures.add(content, "png"))


def picture(gallery_db: GalleryDatabase, pictures: Pictures, image_id: str = "uploaded") -> Path:
    [row] = [row for row in gallery_db.changes(0, OURS).rows if row.image_id == image_id]
    assert row.path is not None
    return Path(pictures.locate(row.path))


def run(command: str, url: str, pictures: Pictures, *more: object) -> int:
    return gallery.main([command, "--gallery", url, "--pictures", pictures.root, *map(str, more)])


def execute(url: str, statement: str) -> None:
    """Do to the database what no program of ours does."""
    engine = database.engine(database.address(url), busy_s=1)
    with database.writing(engine).begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def contents(gallery_db: GalleryDatabase) -> list[object]:
    found = gallery_db.load(OURS)
    return [found.version, found.table.to_pylist(), found.features_GD.tolist()]


def test_a_whole_gallery_is_told_so(
    url: str, gallery_db: GalleryDatabase, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check", url, pictures) == 0
    said = capsys.readouterr().out
    assert "images:    2 at version 4\n" in said
    assert f"encoder:   {OURS[:12]}, features of 2 images\n" in said
    assert "pictures:  1 named, 0 of them not there\n" in said
    assert "wrong" not in said


def test_an_image_without_its_picture_is_named(
    url: str, gallery_db: GalleryDatabase, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(gallery_db, pictures).unlink()
    assert run("check", url, pictures) == 2
    assert "wrong:     there is no picture of uploaded\n" in capsys.readouterr().out


def test_a_picture_of_the_bundle_is_looked_for_where_it_lies(
    url: str,
    gallery_db: GalleryDatabase,
    pictures: Pictures,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "there.png").write_bytes(b"picture")
    changes = [Put(name, FEATURE, path=str(tmp_path / f"{name}.png")) for name in ("there", "lost")]
    gallery_db.write(changes, OURS)
    assert run("check", url, pictures) == 2
    assert "wrong:     there is no picture of lost\n" in capsys.readouterr().out


def test_mending_removes_what_nothing_has_named_for_an_hour_and_nothing_else(
    url: str, gallery_db: GalleryDatabase, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    old, young = (Path(pictures.locate(pictures.add(b"unnamed", "png"))) for _ in range(2))
    for path in (old, picture(gallery_db, pictures)):
        long_ago = time.time() - SETTLED.total_seconds() - 60
        os.utime(path, (long_ago, long_ago))
    assert run("check", url, pictures) == 0
    assert "unnamed:   2 pictures that no image names, 0 removed\n" in capsys.readouterr().out
    assert run("check", url, pictures, "--mend") == 0
    assert "unnamed:   2 pictures that no image names, 1 removed\n" in capsys.readouterr().out
    assert not old.exists()
    assert young.exists()
    assert picture(gallery_db, pictures).exists()


def test_nothing_is_mended_where_the_pictures_may_be_anothers(
    url: str, gallery_db: GalleryDatabase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = Pictures(str(tmp_path / "others"))
    path = Path(others.locate(others.add(b"theirs", "png")))
    os.utime(path, (0, 0))
    assert run("check", url, others, "--mend") == 2
    assert "nothing was removed" in capsys.readouterr().err
    assert path.exists()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE raycd_gallery SET version = 3", "1 images are newer than the gallery's version"),
        (
            "UPDATE raycd_images SET path = 'x' WHERE image_id = 'gone'",
            "1 deleted images have kept their picture",
        ),
        (
            "DELETE FROM raycd_images WHERE image_id = 'bare'",
            "1 features belong to no image that is there",
        ),
        ("DELETE FROM raycd_encoders", "2 features are of an encoder that is not known"),
        ("UPDATE raycd_encoders SET dim = 5", "2 features are not of their encoder's size"),
    ],
)
def test_rows_that_cannot_be_are_told(
    url: str,
    gallery_db: GalleryDatabase,
    pictures: Pictures,
    statement: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    execute(url, statement)
    assert run("check", url, pictures) == 2
    assert f"wrong:     {message}" in capsys.readouterr().out


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_damaged_file_is_told(
    url: str, gallery_db: GalleryDatabase, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery_db.write([Put(f"image {n}", np.ones(2000, np.float32)) for n in range(200)], OTHER)
    gallery_db.close()
    size = Path(url).stat().st_size
    with open(url, "r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(40_000))
    assert run("check", url, pictures) == 2
    said = capsys.readouterr()
    assert "wrong:" in said.out or said.err.startswith("error:")


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
        assert picture(restored, fresh).read_bytes() == b"picture"
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
    assert run("backup", url, pictures, "--to", tmp_path / "monday") == 0
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


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("command", ["check", "backup"])
def test_uploaded_pictures_without_a_place_are_a_clear_message(
    url: str,
    gallery_db: GalleryDatabase,
    tmp_path: Path,
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--to", str(tmp_path / "monday")] if command == "backup" else []
    assert gallery.main([command, "--gallery", url, *more]) == 2
    assert "give --pictures" in capsys.readouterr().err


def test_an_encoder_that_another_has_replaced_is_forgotten_by_the_begin_of_its_fingerprint(
    url: str, gallery_db: GalleryDatabase, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery_db.add_features(
        OTHER, [(row.image_id, row.version, FEATURE) for row in gallery_db.unencoded(OTHER)]
    )
    assert run("forget", url, pictures, "--encoder", OURS[:12]) == 2
    said = capsys.readouterr().err
    assert f"nothing was forgotten yet: 2 features of encoder {OURS[:12]} would go" in said
    assert "--yes" in said
    assert gallery_db.encoders() == {OURS: 2, OTHER: 2}
    assert run("forget", url, pictures, "--encoder", OURS[:12], "--yes") == 0
    assert f"forgotten: 2 features of encoder {OURS[:12]}\n" in capsys.readouterr().out
    assert gallery_db.encoders() == {OTHER: 2}


@pytest.mark.parametrize(
    ("encoder", "message"),
    [("c", "0 encoders begin with 'c'"), ("a", "no other encoder has encoded every image")],
)
def test_no_image_is_left_without_a_feature(
    url: str,
    gallery_db: GalleryDatabase,
    pictures: Pictures,
    encoder: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = gallery_db.unencoded(OTHER)[0]
    gallery_db.add_features(OTHER, [(row.image_id, row.version, FEATURE)])
    assert run("forget", url, pictures, "--encoder", encoder, "--yes") == 2
    assert message in capsys.readouterr().err
    assert gallery_db.encoders() == {OURS: 2, OTHER: 1}


@pytest.mark.parametrize("command", ["check", "backup", "forget"])
def test_a_gallery_that_is_not_there_is_told_and_not_made(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {
        "check": [],
        "backup": ["--to", str(tmp_path / "monday")],
        "forget": ["--encoder", "a"],
    }[command]
    assert gallery.main([command, "--gallery", str(tmp_path / "no.sqlite"), *more]) == 2
    assert "there is no gallery" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_database_of_another_program_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    assert gallery.main(["check", "--gallery", str(file)]) == 2
    assert "schema" in capsys.readouterr().err
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


def test_a_password_is_never_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql://raycd:topsecret@127.0.0.1:1/raycd"
    for options in (["--gallery", url], []):
        assert gallery.main(["check", *options]) == 2
        said = capsys.readouterr()
        assert "topsecret" not in said.out + said.err
        assert said.err.startswith("error: ")
        assert ("RAYCD_SERVE__GALLERY" in said.err) == bool(options)
        monkeypatch.setenv("RAYCD_SERVE__GALLERY", url)


def test_the_gallery_may_be_named_by_the_environment_of_the_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gallery.main(["check"]) == 2
    assert "no gallery is named" in capsys.readouterr().err
    monkeypatch.setenv("RAYCD_SERVE__GALLERY", str(tmp_path / "no.sqlite"))
    assert gallery.main(["check"]) == 2
    assert "there is no gallery" in capsys.readouterr().err
