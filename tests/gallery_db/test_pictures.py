"""Uploaded pictures: stored completely, found after a move, and no other file is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raycd.data import images
from raycd.errors import GalleryError
from raycd.gallery_db.pictures import SCHEME, Pictures


@pytest.fixture(params=["local", "memory"])
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> Pictures:
    return Pictures(
        str(tmp_path / "pictures")
        if request.param == "local"
        else f"memory://{tmp_path.name}/pictures"
    )


def test_a_picture_is_kept_and_found(pictures: Pictures) -> None:
    location = pictures.add(b"data", "jpeg")
    assert location.startswith(SCHEME)
    assert location.endswith(".jpeg")
    assert images.read_bytes(pictures.locate(location)) == b"data"
    assert list(pictures) == [location]


def test_the_same_picture_twice_is_two_files_of_which_one_can_go(pictures: Pictures) -> None:
    first, second = pictures.add(b"data", "png"), pictures.add(b"data", "png")
    pictures.remove(first)
    pictures.remove(first)  # it is gone already
    assert list(pictures) == [second]
    assert images.read_bytes(pictures.locate(second)) == b"data"


def test_a_location_holds_where_the_folder_is_moved(tmp_path: Path) -> None:
    location = Pictures(str(tmp_path / "old")).add(b"data", "png")
    (tmp_path / "old").rename(tmp_path / "new")
    assert images.read_bytes(Pictures(str(tmp_path / "new")).locate(location)) == b"data"


def test_others_files_are_neither_changed_nor_removed(pictures: Pictures, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"mine")
    assert pictures.locate(str(photo)) == str(photo)
    pictures.remove(str(photo))
    assert photo.exists()


@pytest.mark.parametrize(
    "forged",
    ["../../etc/passwd", "/etc/passwd", "ab/../../x", "", "ab/x.jpg", "file:///etc/passwd"],
)
def test_a_forged_location_leads_nowhere(pictures: Pictures, forged: str) -> None:
    for act in (pictures.locate, pictures.remove):
        with pytest.raises(GalleryError, match="malformed"):
            act(SCHEME + forged)


def test_a_strange_extension_is_left_out(pictures: Pictures) -> None:
    location = pictures.add(b"data", "../x")
    assert images.read_bytes(pictures.locate(location)) == b"data"


@pytest.mark.parametrize("version", ["today", "before"])
def test_what_a_killed_writer_left_is_listed_and_can_be_removed(
    tmp_path: Path, version: str
) -> None:
    pictures = Pictures(str(tmp_path))
    path = Path(pictures.locate(pictures.add(b"data", "png")))
    if version == "before":
        path.rename(f"{path}.unfinished")
    else:
        code = (
            "import os, pathlib, sys; from raycd.durable import replace_file\n"
            "with replace_file(pathlib.Path(sys.argv[1])): os._exit(1)"
        )
        path.unlink()
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-c", code, str(path)], check=False, env=environment)
    [left] = pictures
    pictures.remove(left)
    assert list(pictures) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)]).returncode
    ):
        pytest.skip("no small disk can be mounted here")
    try:
        pictures = Pictures(str(small))
        kept = pictures.add(b"small", "png")
        with pytest.raises(GalleryError) as caught:
            pictures.add(bytes(2 << 20), "png")
        assert caught.value.reason == "full"
        assert list(pictures) == [kept]
        assert not list(small.glob("*/*unfinished"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_unknown_store_is_told() -> None:
    with pytest.raises(GalleryError, match="cannot be kept"):
        Pictures("nosuch://place").add(b"data", "png")
