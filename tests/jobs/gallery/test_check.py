"""What jobs/gallery.py check finds and removes, on both databases."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text

from raycd.gallery.records import Delete, Put
from raycd.gallery_db import GalleryDatabase, database
from raycd.gallery_db.check import SETTLED
from raycd.gallery_db.pictures import Pictures
from tests.jobs.gallery.galleries import FEATURE, OTHER, OURS, picture, run


def execute(url: str, statement: str) -> None:
    """Do to the database what no program of ours does."""
    engine = database.engine(database.address(url), busy_s=1)
    with database.writing(engine).begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


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
    gallery_db.write([Delete("uploaded")], OURS)  # now none of its images names a picture
    assert run("check", url, others, "--mend") == 2
    assert "they may be another gallery's" in capsys.readouterr().err
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
