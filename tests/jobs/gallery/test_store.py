"""Pictures in a bucket, which jobs/gallery.py checks, copies and restores."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from jobs import gallery
from raycd import stores
from raycd.gallery.records import Put, Row
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.pictures import Pictures
from raycd.gallery_db.stored import StoredGallery
from tests.jobs.gallery.galleries import FEATURE, OURS, run, uploaded

UNREACHABLE = "http://127.0.0.1:1"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "gallery.sqlite")


@pytest.fixture
def pictures(s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pictures:
    monkeypatch.setattr(stores, "WAITS", (0.01,))
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return Pictures(f"s3://raycd/{tmp_path.name}")


def test_a_picture_that_comes_after_they_were_listed_is_there(
    url: str, pictures: Pictures, gallery_db: GalleryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    [there] = pictures
    late = f"{there.partition('/')[0]}/{uuid.uuid4().hex}.png"  # of a folder that was listed
    original = StoredGallery.rows

    def rows(self: StoredGallery) -> Iterator[Row]:
        # A service is another process, and has an S3FileSystem of its own
        S3FileSystem(skip_instance_cache=True).pipe_file(pictures.locate(late), b"late")
        gallery_db.write([Put("late", FEATURE, path=late)], OURS)
        yield from original(self)

    monkeypatch.setattr(StoredGallery, "rows", rows)
    assert run("check", url, pictures) == 0


@pytest.mark.parametrize("where", ["nowhere", "no bucket"])
def test_a_store_that_fails_is_told(
    url: str,
    pictures: Pictures,
    gallery_db: GalleryDatabase,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("backup", url, pictures, "--to", tmp_path / "monday") == 0
    if where == "nowhere":
        monkeypatch.setenv("AWS_ENDPOINT_URL", UNREACHABLE)
        S3FileSystem.clear_instance_cache()
    else:
        pictures = Pictures("s3://no-such/pictures")
    capsys.readouterr()
    there = ["backup", "--gallery", url, "--pictures", pictures.root]
    restored = ["restore", "--from", str(tmp_path / "monday"), "--pictures", pictures.root]
    for command in (
        ["check", "--gallery", url, "--pictures", pictures.root],
        [*there, "--to", str(tmp_path / "tuesday")],
        [*restored, "--gallery", str(tmp_path / "new.sqlite")],
    ):
        assert gallery.main(command) == 2
        said = capsys.readouterr().err
        wanted = "s3://raycd does not answer" if where == "nowhere" else "no bucket s3://no-such"
        assert wanted in said, said
    if where == "no bucket":
        assert not S3FileSystem().exists("no-such"), "it was mistyped"


def test_pictures_are_restored_to_a_bucket(
    url: str, pictures: Pictures, gallery_db: GalleryDatabase, tmp_path: Path
) -> None:
    assert run("backup", url, pictures, "--to", tmp_path / "monday") == 0
    new, back = str(tmp_path / "new.sqlite"), Pictures(f"{pictures.root}/restored")
    assert run("restore", new, back, "--from", tmp_path / "monday") == 0
    assert len(list(back)) == 1
    assert run("check", new, back) == 0


@pytest.fixture
def gallery_db(url: str, pictures: Pictures) -> Iterator[GalleryDatabase]:
    with GalleryDatabase.open(url) as opened:
        opened.write([uploaded("uploaded", pictures)], OURS)
        yield opened
