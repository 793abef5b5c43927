import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raycd import bundle
from raycd.data.moved import Move
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.stored import StoredGallery
from serve.args import ServeArgs
from serve.live.store import GalleryStore


def make(root: Path, *paths: Path | str | None) -> Path:
    """Make a run with a bundle's gallery of these pictures; return its folder."""
    run = root / "runs" / "demo"
    (run / "bundle").mkdir(parents=True)
    names = [str(n) for n in range(len(paths))]
    texts = [path if path is None else str(path) for path in paths]
    features = np.ones((len(paths), 4), np.float32)
    table = bundle.gallery_table(names, [[]] * len(paths), texts, features, "f" * 64, run=str(run))
    pq.write_table(table, run / "bundle" / "gallery.parquet")
    return run


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"picture")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    inside = picture(tmp_path / "old" / "runs" / "demo" / "catalogue" / "images" / "a.jpg")
    return make(tmp_path / "old", inside)


def test_pictures_of_a_run_that_stayed_are_where_they_were(run: Path) -> None:
    path = str(run / "catalogue" / "images" / "a.jpg")
    assert Move.of(run / "bundle").locate(path) == path


@pytest.mark.parametrize("stays", [False, True], ids=["moved", "copied"])
def test_pictures_go_with_their_run(run: Path, tmp_path: Path, stays: bool) -> None:
    new = tmp_path / "new folder"
    shutil.copytree(run, new)
    if not stays:
        shutil.rmtree(run)
    found = Move.of(new / "bundle").locate(str(run / "catalogue" / "images" / "a.jpg"))
    assert found == str(new / "catalogue" / "images" / "a.jpg")


def test_a_bundle_that_was_copied_alone_names_the_pictures_of_its_run(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "bundle", tmp_path / "artifacts" / "bundle")
    path = str(run / "catalogue" / "images" / "a.jpg")
    assert Move.of(tmp_path / "artifacts" / "bundle").locate(path) == path


def test_a_data_set_that_stayed_is_left_alone_and_one_that_moved_with_the_run_is_found(
    tmp_path: Path,
) -> None:
    data = picture(tmp_path / "old" / "data" / "images" / "b.jpg")
    run = make(tmp_path / "old", data)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    moved = Move.of(tmp_path / "new" / "runs" / "demo" / "bundle")
    assert moved.locate_all([str(data), None]) == [str(data), None]
    shutil.rmtree(tmp_path / "old")
    assert moved.locate(str(data)) == str(tmp_path / "new" / "data" / "images" / "b.jpg")
    assert moved.locate("/nowhere/at/all.jpg") == "/nowhere/at/all.jpg"
    assert moved.locate("https://example.org/a.jpg") == "https://example.org/a.jpg"
    assert not run.exists()


def test_a_folder_whose_name_begins_like_the_runs_is_not_in_it(run: Path, tmp_path: Path) -> None:
    neighbour = picture(run.parent / "demo2" / "catalogue" / "images" / "a.jpg")
    shutil.copytree(run, tmp_path / "new")
    assert Move.of(tmp_path / "new" / "bundle").locate(str(neighbour)) == str(neighbour)


@pytest.mark.parametrize("content", [None, b"", b"PAR1"])
def test_without_a_readable_bundle_nothing_has_moved(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "gallery.parquet").write_bytes(content)
    assert Move.of(tmp_path).locate("/a/b.jpg") == "/a/b.jpg"


def test_an_older_bundle_names_its_pictures_as_before(run: Path, tmp_path: Path) -> None:
    file = run / "bundle" / "gallery.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata({b"encoder": b"f"}), file)
    shutil.copytree(run, tmp_path / "new")
    path = str(run / "catalogue" / "images" / "a.jpg")
    assert Move.of(tmp_path / "new" / "bundle").locate(path) == path


def test_the_live_gallery_of_a_moved_run_finds_its_pictures(run: Path, tmp_path: Path) -> None:
    with GalleryDatabase.open(str(run / "gallery.sqlite")) as database:
        database.begin(bundle.read_gallery(run / "bundle"), "f" * 64, "digest")
    new = tmp_path / "new"
    shutil.move(run, new)
    expected = str(new / "catalogue" / "images" / "a.jpg")
    with StoredGallery.open(str(new / "gallery.sqlite")) as stored:
        [row] = stored.rows()
        assert stored.locate(row.path) == expected
    store = GalleryStore.open(ServeArgs(bundle=str(new / "bundle")), "test")
    assert store is not None
    with store.gallery_db:
        assert store.locate(row.path) == expected
