"""Pictures of the gallery: small ones are made once, and what cannot be shown is named without its
path.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.spec import AbstractFileSystem
from PIL import Image, ImageChops

from raycd.config import IndexConfig
from raycd.data import images
from raycd.errors import GalleryError
from raycd.gallery.static import Gallery
from raycd.gallery.view import View
from raycd.gallery_db import GalleryDatabase
from raycd.index import Index
from serve.api import problems
from serve.args import ServeArgs
from serve.errors import UnreadablePicture
from serve.live.pictures import GalleryPictures
from serve.live.store import GalleryStore


def gallery(*paths: Path | str | None) -> View:
    """Return a gallery of images named 0, 1, ..."""
    count = len(paths)
    table = pa.table(
        {
            "image_id": [str(number) for number in range(count)],
            "categories": pa.array([[]] * count, pa.list_(pa.string())),
            "path": pa.array([path and str(path) for path in paths], pa.string()),
            "attributes": pa.array([[]] * count, pa.map_(pa.string(), pa.string())),
        }
    )
    return View.of(Index.build(np.ones((count, 2), np.float32), IndexConfig()), Gallery(table))


def test_a_thumbnail_keeps_the_proportions_and_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (1000, 500), (0, 0, 255, 0)).save(path)
    pictures, view = GalleryPictures(ServeArgs(), None), gallery(path)
    first = pictures.thumbnail(view, "0")
    image = Image.open(BytesIO(first.data))
    assert (image.size, image.format, image.getpixel((5, 5))) == (
        (256, 128),
        "JPEG",
        (255, 255, 255),
    )
    assert pictures.thumbnail(view, "0") is first


def test_a_picture_that_is_another_under_its_path_has_another_thumbnail(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    pictures, view = GalleryPictures(ServeArgs(), None), gallery(path)
    first = pictures.thumbnail(view, "0")
    Image.new("RGB", (9, 9), "blue").save(path)
    second = pictures.thumbnail(view, "0")
    assert second.etag != first.etag
    path.unlink()  # as where its disk is away
    assert pictures.thumbnail(view, "0") is second


def test_the_original_is_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    Image.new("P", (20, 10)).save(path)
    picture = GalleryPictures(ServeArgs(), None).original(gallery(path), "0")
    assert (picture.data, picture.media_type) == (path.read_bytes(), "image/gif")


@pytest.mark.parametrize(("size", "longest"), [("thumbnail", 256), ("original", 680)])
def test_a_part_of_a_photograph_is_shown_as_it_is_encoded(
    tmp_path: Path, size: str, longest: int
) -> None:
    path = tmp_path / "7.jpg"
    Image.effect_noise((1600, 1200), 50).convert("RGB").save(path)
    of_part = f"{path}#dilated=100,50,400,200"
    picture = getattr(GalleryPictures(ServeArgs(), None), size)(gallery(of_part), "0")
    shown = Image.open(BytesIO(picture.data))
    assert Image.MIME[str(shown.format)] == picture.media_type
    expected = images.fitted(images.load(of_part), longest)
    assert shown.size == expected.size == (longest, longest)
    difference = ImageChops.difference(shown.convert("RGB"), expected)
    assert np.asarray(difference).mean() < (10 if size == "thumbnail" else 1e-9)


@pytest.mark.parametrize("size", ["thumbnail", "original"])
def test_a_part_outside_of_its_photograph_cannot_be_shown(tmp_path: Path, size: str) -> None:
    path = tmp_path / "7.jpg"
    Image.new("RGB", (64, 64)).save(path)
    view = gallery(f"{path}#dilated=100,100,20,20")
    with pytest.raises(UnreadablePicture) as caught:
        getattr(GalleryPictures(ServeArgs(), None), size)(view, "0")
    assert caught.value.reason == "too_small"


@pytest.mark.parametrize("size", ["thumbnail", "original"])
def test_what_cannot_be_shown_is_told_without_its_path(tmp_path: Path, size: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the password")
    cut = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:20])
    pictures, view = (
        GalleryPictures(ServeArgs(), None),
        gallery(tmp_path / "gone.png", None, secret, tmp_path, cut),
    )
    reasons = []
    for number in range(5):
        with pytest.raises(UnreadablePicture) as caught:
            getattr(pictures, size)(view, str(number))
        found = problems.of_request(caught.value)
        assert found.status_code == 404
        assert str(tmp_path) not in found.problem.detail
        reasons.append(found.problem.reason)
    assert reasons[:4] == ["missing", "missing", "not_an_image", "missing"]
    assert reasons[4] in ("not_an_image", "truncated")


class StoreError(Exception):
    """An error as botocore's: not an OSError."""


@pytest.mark.parametrize("size", ["thumbnail", "original", "a head's reference"])
@pytest.mark.parametrize(
    "error", [PermissionError(13, "denied"), TimeoutError(110, "timed out"), StoreError("no route")]
)
def test_a_store_that_does_not_answer_is_no_missing_picture(
    size: str, error: Exception, tmp_path: Path
) -> None:
    class Away(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
        protocol = "away"
        cachable = False

        def _open(self, *_: Any, **__: Any) -> Any:
            raise error

    fsspec.register_implementation("away", Away, clobber=True)
    path, pictures = "away://bucket/a.png", GalleryPictures(ServeArgs(), None)
    with GalleryDatabase.open(str(tmp_path / "gallery.sqlite")) as gallery_db:
        store = GalleryStore(gallery_db, None)
        shown: dict[str, Callable[[], object]] = {
            "thumbnail": lambda: pictures.thumbnail(gallery(path), "0"),
            "original": lambda: pictures.original(gallery(path), "0"),
            "a head's reference": lambda: store.image(path, max_pixels=10**6, enough=0),
        }
        with pytest.raises(GalleryError) as caught:
            shown[size]()
    assert caught.value.reason == "unreachable"
    found = problems.of(caught.value)
    assert found is not None
    assert found.status_code == 503
    assert "bucket" not in found.problem.detail
